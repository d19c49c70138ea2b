# SPDX-License-Identifier: GPL-2.0-only
"""The reader: the shipped node, and around it what `services/reader.py` does."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from bdr.common.errors import BdrError, RefusedError, StaleCaptureError
from bdr.common.source import events
from bdr.common.source.node import SourceNode
from bdr.common.source.order import Waits
from bdr.common.source.session import Phase
from bdr.common.wire.batch import encode_descriptor
from bdr.common.wire.control import decode_message, encode_message
from bdr.common.wire.scan import decode_request, encode_answer
from tests.simulation.ages import UTC_S
from tests.simulation.clock import Process
from tests.simulation.network import Duplex
from tests.simulation.source import BrokenRuleError
from tests.simulation.stores import VOLUME

if TYPE_CHECKING:
    from tests.simulation.sender import Sender
    from tests.simulation.world import World

TICK_S = 0.25


class Reader(Process):
    """One process, until it is killed."""

    def __init__(self, world: World, volume: str = VOLUME) -> None:
        super().__init__(world.clock)
        self.world = world
        self.volume = volume
        self.was_lied_to = False
        self.gate = world.gate
        self.senders: list[Sender] = []
        """Those that the descriptor socket knows, dead or alive."""
        self.peers: dict[bytes, Duplex] = {}
        """Scanners and commands by address."""
        self.link: Duplex | None = None
        """To the applier."""
        self.node = SourceNode(
            record=replace(world.source_record, volume=volume),
            info=self.gate.info(),
            status=self.gate.status(),
            ring=self.gate,
            assume_clean=world.assume_clean,
            settings=world.options.source,
        )
        self._waiting: deque[events.Event] = deque()
        self._todo: deque[events.Action] = deque()
        self._saves: deque[events.SaveGeneration | events.SaveFindings] = deque()
        """In the order in which the thread does them."""
        self._is_blocked = False
        """Whether a RESUME waits for unlogged writes."""
        self._is_wake_planned = False
        self.after(0.0, self._on_tick)
        self.after(world.rng.uniform(0.0, 0.1), self.connect)

    # The network's side.

    def connect(self) -> None:
        world = self.world
        if self.link is not None:
            return
        if world.is_control_cut or world.applier is None:
            self.after(world.rng.uniform(0.05, 0.3), self.connect)
            return
        self.link = world.applier.accept(self._on_control)
        self.on_event(events.LinkUp())

    def disconnect(self) -> None:
        """The connection is lost; the reader learns of it soon."""
        link, self.link = self.link, None
        if link is None:
            return
        link.cut()
        delay_s = self.world.rng.uniform(0.0, 0.01)
        # Socket and monitor are two: what the monitor says may be lost, or come twice.
        for _ in range(self.world.rng.choice((1,) * 18 + (0, 2))):
            self.after(delay_s, lambda: self.on_event(events.LinkDown()))
        self.after(delay_s + self.world.rng.uniform(0.01, 0.3), self.connect)

    def kill(self) -> None:
        if self.link is not None:
            self.link.cut()
        for link in self.peers.values():
            link.cut()
        super().kill()

    def lose_sender(self, sender: Sender) -> None:
        """A descriptor connection is gone: socket and monitor learn it, in any order."""

        def forget() -> None:
            if sender in self.senders:
                self.senders.remove(sender)

        if sender in self.senders:
            self.after(self.world.rng.uniform(0.0, 0.003), forget)
            delay_s = self.world.rng.uniform(0.0, 0.003)
            self.after(delay_s, lambda: self.on_event(events.SenderLost()))

    def lose_peer(self, peer: bytes) -> None:
        """The connection of a scanner or a command is gone; only the former's are watched."""
        link = self.peers.pop(peer, None)
        if link is None:
            return
        link.cut()
        if peer.startswith(b"scanner"):
            delay_s = self.world.rng.uniform(0.0, 0.01)
            self.after(delay_s, lambda: self.on_event(events.ScannerLost()))

    def on_request(self, peer: bytes, data: bytes) -> None:
        """A message of a scanner or a command."""
        if self.alive:
            self.on_event(events.RequestArrived(peer, decode_request(data)))

    def _on_control(self, data: bytes) -> None:
        if self.alive:
            self.on_event(events.MessageArrived(decode_message(data)))

    # The loop.

    def wake(self) -> None:
        """The capture's descriptor is readable, or a sender has room."""
        if self.alive and not self._is_wake_planned:
            self._is_wake_planned = True
            self.after(self.world.rng.uniform(0.00005, 0.001), self._on_wake)

    def _on_wake(self) -> None:
        self._is_wake_planned = False
        if self.node.waits_for is Waits.RING and self.gate.is_woken:
            self.gate.is_woken = False
            self.on_event(events.RingWoken())
        else:
            self._round()

    def _on_tick(self) -> None:
        self.after(TICK_S, self._on_tick)
        self._round()

    def _tick(self) -> events.Tick:
        now_at = self.clock.now_at
        return events.Tick(now_at, int((UTC_S + now_at) * 1000))

    def on_event(self, event: events.Event) -> None:
        """A round that began with this event."""
        self._waiting += [self._tick(), event]
        self._round()

    def _round(self) -> None:
        if not self.alive:
            return
        self._waiting.append(self._tick())
        self._run()
        while not self._is_blocked:
            ready = [sender for sender in self.senders if sender.has_room]
            if not ready or not self._handle(events.SenderReady()):
                break
        if not self._is_blocked:
            self._handle(events.RoundEnded())
            if self.node.waits_for is Waits.RING and self.gate.is_woken:
                self.wake()
            self.world.oracle.check_source(self.node, self.volume, was_lied_to=self.was_lied_to)

    def _run(self) -> None:
        while not self._is_blocked and (self._todo or self._waiting):
            if self._todo:
                self._perform(self._todo.popleft())
            else:
                self._todo.extend(self._ask(self._waiting.popleft()))

    def _handle(self, event: events.Event) -> bool:
        """Has the node take an event, and what follows from it; whether anything did."""
        actions = self._ask(event)
        self._todo.extend(actions)
        self._run()
        return bool(actions)

    def _ask(self, event: events.Event) -> list[events.Action]:
        was_streaming = self.node.order.is_streaming
        idle_max_s = self.node.order.window.idle_max_s
        actions = self.node.handle(event)
        if was_streaming and self.node.session.state in (Phase.GREETING, Phase.PAUSED):
            self.world.oracle.check_lost(event, idle_max_s=idle_max_s)
        if self.world.trace is not None and not isinstance(event, events.Tick | events.SenderReady):
            self.world.note(f"reader {event} -> {actions}")
        return actions

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Dispatch(header):
                sender = self.world.rng.choice([each for each in self.senders if each.has_room])
                sender.take(encode_descriptor(header))
            case events.Send(message):
                if self.link is not None:
                    self.link.up.send(encode_message(message))
            case events.Reply(peer, answer):
                if peer in self.peers:
                    self.peers[peer].down.send(encode_answer(answer))
            case events.QueryStatus():
                self._waiting.appendleft(events.StatusArrived(self.gate.status()))
            case events.Stop(error):
                self._stop(error)
            case events.SaveGeneration() | events.SaveFindings():
                self._saves.append(action)
                if len(self._saves) == 1:
                    self.after(self.world.source_disk_delay_s(), self._save)
            case events.SaveAssumption(target):
                world = self.world
                world.source_record = replace(world.source_record, assumed_for=target)
            case events.Announce():
                pass
            case _:
                self._change_capture(action)

    def _save(self) -> None:
        """It is durable; the reader learns of it a moment later, or is killed before."""
        world, record = self.world, self.world.source_record
        saved: events.Event
        match self._saves[0]:
            case events.SaveFindings(findings):
                world.source_record = replace(record, findings=findings)
                saved = events.FindingsSaved()
                world.remembered.check("when the source has saved")
            case _:
                generation = world.rng.randbytes(8)
                world.source_record = record.with_generation(generation)
                saved = events.GenerationSaved(generation)

        def done() -> None:
            self._saves.popleft()
            if self._saves:
                self.after(world.source_disk_delay_s(), self._save)
            self.on_event(saved)

        self.after(0.0, done)

    def _change_capture(self, action: events.Action) -> None:
        gate = self.gate
        match action:
            case events.Release(tail, cursor, acknowledged, counted):
                if tail > gate.tail and gate is self.world.gate:
                    self.world.oracle.check_release(tail)
                gate.release(tail, cursor, acknowledged=acknowledged, counted=counted)
            case events.Resume():
                self._resume()
            case events.MarkRegions(first, count):
                gate.mark_regions(first, count)
            case events.ClearRegions(first, count):
                gate.clear_regions(first, count)
                if gate is self.world.gate:
                    self.world.remembered.cleared(first, count)
                    self.world.ages.cleared(range(first, first + count))

    def _stop(self, error: BdrError) -> None:
        """The process ends; supervisord, or a person, starts it again."""
        is_explained = (isinstance(error, StaleCaptureError) and self.gate.successor) or (
            isinstance(error, RefusedError) and (self.volume != VOLUME or self.was_lied_to)
        )
        if not is_explained:
            raise BrokenRuleError(f"the reader stopped: {error}")
        self._todo.clear()
        self._waiting.clear()
        self.world.restart_reader()

    def _resume(self) -> None:
        """As the RESUME request: blocks the reader until unlogged writes have drained."""
        self._is_blocked = True
        gate = self.gate
        if not gate.is_drained():
            # A predecessor was killed in its RESUME.
            gate.on_drained = lambda: self._resume() if self.alive else None
            return
        gate.begin_resume()
        if self.world.trace is not None:
            self.world.note(f"resume at slot {gate.head}")
        if gate.is_drained():
            self._end_resume()
        else:
            gate.on_drained = lambda: self._end_resume() if self.alive else None

    def _end_resume(self) -> None:
        self.gate.merge()
        self._is_blocked = False
        self.after(0.0, self._round)
