# SPDX-License-Identifier: GPL-2.0-only
"""Reader, senders and applier as in `services/`, around the real state machines.

Each is a loop without sockets: what a socket would deliver arrives by a `Channel`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from bdr.common.errors import WireError
from bdr.common.ring.layout import WRITE_SLOTS_MAX
from bdr.common.ring.slots import published_count
from bdr.common.source import sequencer
from bdr.common.source.sequencer import Sequencer
from bdr.common.target import replica
from bdr.common.target.job import Apply
from bdr.common.target.replica import Replica
from bdr.common.wire import control as wire
from tests.simulation.clock import Process
from tests.simulation.disk import DiskFailedError, PowerLostError
from tests.simulation.network import Channel
from tests.simulation.source import BrokenRuleError
from tests.simulation.stores import VOLUME

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_S = 0.25
DESCRIPTORS_MAX = 4
"""Descriptors that wait for a sender: the high-water marks of both ends."""
OUTGOING_MAX = 8


class ControlLink:
    """The connection of one reader to one applier."""

    def __init__(self, world: World, reader: Reader, applier: Applier) -> None:
        options = world.options
        world.connections += 1
        self.peer = b"peer-%d" % world.connections
        self.up: Channel[bytes] = Channel(
            world.clock,
            world.rng,
            lambda data: applier.on_control(self.peer, data),
            delay_s=options.delay_s,
            duplicates=options.duplicates,
        )
        self.down: Channel[bytes] = Channel(
            world.clock,
            world.rng,
            reader.on_control,
            delay_s=options.delay_s,
            duplicates=options.duplicates,
        )


class Reader(Process):
    """Mirrors `services/reader.py`."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.world = world
        self.senders: list[Sender] = []
        """Those that the descriptor socket knows, dead or alive."""
        self.link: ControlLink | None = None
        self._must_release = False
        self._is_wake_planned = False
        self._is_resuming = False
        self._backlog: deque[sequencer.Event] = deque()
        self.machine = Sequencer(
            volume=VOLUME,
            info=world.gate.info(),
            status=world.gate.status(),
            assume_clean=world.options.assume_clean,
            settings=world.options.sequencer,
        )
        self.machine.handle(sequencer.Tick(self.clock.now_s))
        self.after(TICK_S, self._on_tick)
        self.after(world.rng.uniform(0.0, 0.1), self.connect)

    # The network's side.

    def connect(self) -> None:
        world = self.world
        if self.link is not None:
            return
        if world.is_control_cut or world.applier is None:
            self.after(world.rng.uniform(0.05, 0.3), self.connect)
            return
        self.link = ControlLink(world, self, world.applier)
        world.applier.links[self.link.peer] = self.link
        self.on_event(sequencer.LinkUp())

    def disconnect(self) -> None:
        """The connection is lost; the reader learns of it soon."""
        link, self.link = self.link, None
        if link is None:
            return
        link.up.cut()
        link.down.cut()
        delay_s = self.world.rng.uniform(0.0, 0.01)
        self.after(delay_s, lambda: self.on_event(sequencer.LinkDown()))
        self.after(delay_s + self.world.rng.uniform(0.01, 0.3), self.connect)

    def kill(self) -> None:
        if self.link is not None:
            self.link.up.cut()
            self.link.down.cut()
        super().kill()

    def lose_sender(self, sender: Sender) -> None:
        """A descriptor connection is gone: socket and monitor learn it, in any order."""

        def forget() -> None:
            if sender in self.senders:
                self.senders.remove(sender)

        if sender in self.senders:
            self.after(self.world.rng.uniform(0.0, 0.003), forget)
            delay_s = self.world.rng.uniform(0.0, 0.003)
            self.after(delay_s, lambda: self.on_event(sequencer.SenderLost()))

    # The loop.

    def wake(self) -> None:
        """Something was published, or a sender has room."""
        if not self._is_wake_planned:
            self._is_wake_planned = True
            self.after(self.world.rng.uniform(0.00005, 0.001), self._on_wake)

    def on_control(self, data: bytes) -> None:
        if self.alive:
            self.on_event(sequencer.MessageArrived(wire.decode_message(data)))

    def on_event(self, event: sequencer.Event) -> None:
        if self._is_resuming:
            self._backlog.append(event)
            return
        self._tell(sequencer.Tick(self.clock.now_s))
        self._tell(event)
        self._pump()

    def _on_tick(self) -> None:
        self.after(TICK_S, self._on_tick)
        if not self._is_resuming:
            self._tell(sequencer.Tick(self.clock.now_s))
            self._look()
            self._pump()

    def _on_wake(self) -> None:
        self._is_wake_planned = False
        if self._is_resuming:
            return
        self._tell(sequencer.Tick(self.clock.now_s))
        headers, cursor = self.world.gate.headers, self.machine.cursor
        if not published_count(headers, cursor=cursor, limit=WRITE_SLOTS_MAX):
            self._look()
        self._pump()

    def _look(self) -> None:
        self._tell(sequencer.CaptureSeen(self.world.gate.status()))

    def _pump(self) -> None:
        headers, machine = self.world.gate.headers, self.machine
        while not self._is_resuming:
            limit = machine.dispatch_limit
            published = published_count(headers, cursor=machine.cursor, limit=limit) if limit else 0
            if not published and (limit or not machine.has_mark_due):
                break
            ready = [sender for sender in self.senders if sender.has_room]
            if not ready:
                break
            self._tell(sequencer.SendersReady(published), self.world.rng.choice(ready))
        if self._must_release and not self._is_resuming:
            self._must_release = False
            self.world.release(machine.tail)
        self.world.oracle.check_sequencer(machine)

    def _tell(self, event: sequencer.Event, sender: Sender | None = None) -> None:
        world = self.world
        for action in self.machine.handle(event):
            if world.trace is not None:
                world.note(f"reader {type(event).__name__} -> {action}")
            match action:
                case sequencer.Dispatch(header):
                    assert sender is not None
                    sender.take(wire.encode_descriptor(header))
                case sequencer.Release():
                    self._must_release = True
                case sequencer.Send(message):
                    if self.link is not None:
                        self.link.up.send(wire.encode_message(message))
                case sequencer.Resume():
                    self._resume()
                case sequencer.MarkAll():
                    world.gate.mark_all()
                    self._look()
                case sequencer.Stop(error):
                    raise BrokenRuleError(f"the reader stopped: {error}")
                case sequencer.Announce():
                    pass

    def _resume(self) -> None:
        """As the RESUME request: blocks the reader until unlogged writes have drained."""
        gate = self.world.gate
        self._is_resuming = True
        if not gate.is_drained():
            # A predecessor was killed in its RESUME.
            gate.on_drained = lambda: self._resume() if self.alive else None
            return
        gate.begin_resume()
        if self.world.trace is not None:
            self.world.note(f"resume at slot {gate.head}")
        if gate.is_drained():
            self._finish_resume()
        else:
            gate.on_drained = lambda: self._finish_resume() if self.alive else None

    def _finish_resume(self) -> None:
        self.world.gate.merge()
        self._is_resuming = False
        self._look()
        while self._backlog and not self._is_resuming:
            self.on_event(self._backlog.popleft())
        if not self._is_resuming:
            self._pump()


class Sender(Process):
    """Mirrors `services/sender.py`; zero copy, so memory is read when bytes go out."""

    def __init__(self, world: World, name: int) -> None:
        super().__init__(world.clock)
        self.world = world
        self.name = name
        self.channel: Channel[list[bytes]] | None = None
        self.paused_until_s = 0.0
        self._applier: Applier | None = None
        self._reader: Reader | None = None
        self._descriptors: deque[bytes] = deque()
        self._outgoing: deque[tuple[bytes, wire.BatchHeader]] = deque()
        self._is_busy = False
        self._incarnation = 0
        self.after(world.rng.uniform(0.0, 0.1), self.connect)

    @property
    def has_room(self) -> bool:
        """Whether the reader's socket would take another descriptor for this sender."""
        return len(self._descriptors) < DESCRIPTORS_MAX

    def connect(self) -> None:
        world = self.world
        if self.channel is not None:
            return
        if world.is_data_cut or world.applier is None:
            self.after(world.rng.uniform(0.05, 0.3), self.connect)
            return
        self._applier = world.applier
        self.channel = Channel(
            world.clock,
            world.rng,
            world.applier.on_data,
            delay_s=world.options.delay_s,
            duplicates=world.options.duplicates,
        )
        world.applier.data_channels.append(self)
        self._attach()

    def _attach(self) -> None:
        """Connects to the reader of the moment, again and again: readers are restarted."""
        reader, world = self.world.reader, self.world
        if self.channel is None:
            return
        if reader is not None and reader is not self._reader:
            self._reader = reader
            reader.senders.append(self)
            reader.wake()
        incarnation = self._incarnation
        self.after(
            world.rng.uniform(0.01, 0.1),
            lambda: self._attach() if incarnation == self._incarnation else None,
        )

    def disconnect(self) -> None:
        """The data connection is lost: drops everything, also what was not asked for."""
        if self.channel is None:
            return
        self.channel.cut()
        self.channel = None
        self._incarnation += 1
        self._descriptors.clear()
        self._outgoing.clear()
        self._is_busy = False
        if self._reader is not None and self._reader.alive:
            self._reader.lose_sender(self)
        self._reader = None
        self.after(self.world.rng.uniform(0.05, 0.3), self.connect)

    def kill(self) -> None:
        self.disconnect()
        super().kill()

    def take(self, descriptor: bytes) -> None:
        """The reader's socket has accepted a descriptor for this sender."""
        if self.alive and self.channel is not None:
            self._descriptors.append(descriptor)
            self._plan(self.world.rng.uniform(0.00002, 0.001), self._pump)

    def _plan(self, delay_s: float, thing: object) -> None:
        incarnation = self._incarnation

        def due() -> None:
            if incarnation == self._incarnation:
                assert callable(thing)
                thing()

        self.after(max(delay_s, self.paused_until_s - self.clock.now_s), due)

    def _pump(self) -> None:
        gate = self.world.gate
        while self._descriptors and len(self._outgoing) < OUTGOING_MAX:
            header = wire.decode_descriptor(self._descriptors.popleft())
            top = wire.encode_batch(
                header,
                gate.headers_at(header.first, header.count),
                gate.payload_at(header.first, header.count),
            )
            self._outgoing.append((top, header))
        if self._outgoing and not self._is_busy:
            self._is_busy = True
            self._plan(self._wire_s(), self._read_half)
        if self._reader is not None and self._reader.alive:
            self._reader.wake()

    def _wire_s(self) -> float:
        return self.world.rng.uniform(0.0, self.world.options.wire_s)

    def _read_half(self) -> None:
        """The first half of the slots goes out now, the second a little later."""
        _, header = self._outgoing[0]
        half = header.count // 2
        gate = self.world.gate
        headers = gate.headers_at(header.first, header.count)
        payload = gate.payload_at(header.first, half)
        self._plan(self._wire_s(), lambda: self._read_rest(headers, payload))

    def _read_rest(self, headers: bytes, payload: bytes) -> None:
        top, header = self._outgoing.popleft()
        half = header.count // 2
        payload += self.world.gate.payload_at(header.first + half, header.count - half)
        assert self.channel is not None
        self.channel.send(self._flip([top, headers, payload]))
        self._is_busy = False
        self._pump()

    def _flip(self, frames: list[bytes]) -> list[bytes]:
        rng, flips = self.world.rng, self.world.options.flips
        if self.world.is_faulty and flips and rng.random() < flips:
            at = rng.choice([i for i, frame in enumerate(frames) if frame])
            bad = bytearray(frames[at])
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            if self.world.trace is not None:
                self.world.note(f"bit flipped in frame {at}")
            return [bytes(bad) if i == at else frame for i, frame in enumerate(frames)]
        return frames


class Applier(Process):
    """Mirrors `services/applier.py` and the worker of `services/target/store.py`."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.world = world
        self.store = world.store
        record = self.store.recover()
        self.machine = Replica(record=record, settings=world.options.replica)
        self.links: dict[bytes, ControlLink] = {}
        self.data_channels: list[Sender] = []
        self.jobs: deque[Apply] = deque()
        self.begun_slot = 0
        """Below it lies all that the store was given, perhaps in part."""
        self._group = 0
        self._last: Apply | None = None
        self._is_working = False
        self._is_step_planned = False
        self.bad_messages = 0
        world.oracle.on_recovered(self.machine.record)
        self.after(TICK_S, self._on_tick)

    # The loop.

    def on_control(self, peer: bytes, data: bytes) -> None:
        if self.alive:
            self._tell(replica.Tick(self.clock.now_s))
            self._tell(replica.MessageArrived(peer, wire.decode_message(data)))

    def on_data(self, frames: list[bytes]) -> None:
        if not self.alive:
            return
        try:
            batch = wire.decode_batch(list(frames))
        except WireError:
            self.bad_messages += 1
            return
        self._tell(replica.Tick(self.clock.now_s))
        self._tell(replica.BatchArrived(batch))

    def _on_tick(self) -> None:
        self.after(TICK_S, self._on_tick)
        self._tell(replica.Tick(self.clock.now_s))

    def _tell(self, event: replica.Event) -> None:
        world = self.world
        for action in self.machine.handle(event):
            if world.trace is not None:
                shown = action
                if isinstance(action, Apply):
                    shown = f"Apply job {action.job} {action.extents.offset} {action.record}"
                world.note(f"applier {type(event).__name__} -> {shown}")
            match action:
                case Apply():
                    world.oracle.on_accepted(action)
                    self.jobs.append(action)
                    self._work()
                case replica.Send(peer, message):
                    link = self.links.get(peer)
                    if link is not None:
                        link.down.send(wire.encode_message(message))
                case replica.Stop(error):
                    raise BrokenRuleError(f"the applier stopped: {error}")
                case replica.Note():
                    pass
        world.oracle.check_replica(self.machine)

    # The worker, and what a journal does behind it.

    def _work(self) -> None:
        if not self._is_working and self.jobs:
            self._is_working = True
            self._group = 0
            self.after(self._disk_s(), self._write_one)

    def _disk_s(self) -> float:
        return self.world.rng.uniform(0.0, self.world.options.disk_s)

    def _write_one(self) -> None:
        job = self.jobs[0]
        with self.world.target_disks():
            if not self.store.fits(job):
                self._plan_step()
                self.after(self._disk_s(), self._write_one)
                return
            self.begun_slot = job.record.slot
            self.store.write(job)
            self.jobs.popleft()
            self._last = job
            self._group += 1
            if self.jobs and self._group < self.world.options.group_jobs:
                self.after(self._disk_s(), self._write_one)
            else:
                self.after(self._disk_s() * 3, self._sync)

    def _sync(self) -> None:
        assert self._last is not None
        with self.world.target_disks():
            self.store.sync(self._last.record)
            self._is_working = False
            self._plan_step()
            self._tell(replica.Tick(self.clock.now_s))
            self._tell(replica.Durable(self._last.job))
            self._work()

    def _plan_step(self) -> None:
        if not self._is_step_planned:
            self._is_step_planned = True
            self.after(self._disk_s(), self._step)

    def _step(self) -> None:
        self._is_step_planned = False
        with self.world.target_disks():
            if self.store.step():
                self._plan_step()

    # Ends.

    def stop(self) -> None:
        """As SIGTERM does: finishes what was accepted, then closes."""
        self.jobs.append(self.machine.closing_job())
        while self.jobs:
            while not self.store.fits(self.jobs[0]):
                self.store.step()
            self._last = self.jobs.popleft()
            self.begun_slot = self._last.record.slot
            self.store.write(self._last)
        assert self._last is not None
        self.store.sync(self._last.record)
        self.store.close()

    def kill(self, *, in_a_job: bool = True) -> None:
        """The worker may be in the middle of a job."""
        super().kill()
        if in_a_job and self.world.rng.random() < 0.5:
            self.store.device.fails_write = "killed"
            with contextlib.suppress(DiskFailedError, PowerLostError):
                if not self.store.step() and self._is_working and self.jobs:
                    self.begun_slot = self.jobs[0].record.slot
                    self.store.write(self.jobs[0])
            self.store.device.fails_write = None
