# SPDX-License-Identifier: GPL-2.0-only
"""The source's node: decides what is sent to the target, in which order, and what is freed.

It divides the published slots into batches, numbers them, keeps batches in flight within a window,
and frees slots once the target has acknowledged them as durable. After any event that may have lost
a batch it starts a new session, for which the target gives the position to continue from
(go-back-N). Resync batches are numbered in the same order.

===================  ==========================================================
`session`            the session with the target
`order`              the order of batches
`order.window`       numbers and positions of batches in flight
`order.consistency`  the replica's condition, and the pending marker
`overflow`           when the capture leaves OVERFLOW
`scheduler`          leases of scanners, exclusions, clearing of regions
===================  ==========================================================

`handle` is the only entry point: it takes an event and returns actions, in order. Time arrives as
`Tick`, results of I/O as events. An action that changes the capture's bitmaps or mode is followed
by a `QueryStatus`, and nothing is decided before its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.facts import Facts
from bdr.common.machine import Story
from bdr.common.ring.layout import WRITE_SLOTS_MAX
from bdr.common.source import events, overflow, session_events
from bdr.common.source.events import Action, Announce, ClearRegions, Event, QueryStatus
from bdr.common.source.findings import Memory
from bdr.common.source.generation import Generation
from bdr.common.source.greeting import Greeting
from bdr.common.source.identity import SourceRecord
from bdr.common.source.order import Order, Waits
from bdr.common.source.overflow import OverflowPacing
from bdr.common.source.release_tracker import ReleaseTracker
from bdr.common.source.requests import Requests
from bdr.common.source.ring import Ring
from bdr.common.source.scheduler import ResyncScheduler
from bdr.common.source.session import Phase, Session
from bdr.common.source.settings import SourceSettings
from bdr.common.wire.batch import BatchKind
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack


class SourceNode:
    """See the module's docstring. One instance per reader process.

    Args:
        record: of this source; its generations are durable.
        info: of the capture; `ring` is its memory.
        status: its first status.
        assume_clean: see `Greeting`.
    """

    def __init__(
        self,
        *,
        record: SourceRecord,
        info: CaptureInfo,
        status: CaptureStatus,
        ring: Ring,
        assume_clean: bool = False,
        settings: SourceSettings | None = None,
    ) -> None:
        settings = settings or SourceSettings()
        story = Story()
        self.session = Session(volume=record.volume, settings=settings.session, story=story)
        self._generation = Generation(record.generations)
        self.order = Order(
            info=info,
            status=status,
            ring=ring,
            session=self.session,
            window=settings.window,
            quota=settings.quota,
            story=story,
        )
        self.overflow = OverflowPacing(
            status=status, capacity=info.capacity, settings=settings.overflow, story=story
        )
        self.scheduler = ResyncScheduler(
            info=info,
            order=self.order,
            read_bits=ring.read_bitmap,
            settings=settings.scheduler,
            story=story,
        )
        self.memory = Memory(record.findings, info=info)
        self._requests = Requests(
            info=info,
            session=self.session,
            order=self.order,
            scheduler=self.scheduler,
            memory=self.memory,
        )
        self.last_ack: Ack | None = None
        """The target's last acknowledgement, with its record of the replica."""
        self.waits_for = Waits.TARGET
        """What is to be watched, besides time and messages; as of the last `RoundEnded`."""
        self._releases = ReleaseTracker(self.order)
        self._greeting = Greeting(
            record=record,
            generation=self._generation,
            info=info,
            order=self.order,
            ring=ring,
            releases=self._releases,
            assume_clean=assume_clean,
        )
        self._info = info
        self._ring = ring
        self._story = story
        self._status_interval_s = settings.status_interval_s
        self._status_at = 0.0
        self._awaits_status = False
        self._actions: list[Action] = []

    def handle(self, event: Event) -> list[Action]:
        """Handles one event; returns the actions, in order.

        Raises:
            InternalError: an invariant was violated, or the event is impossible now; the message
                has the recent story.
        """
        actions = self._actions = []
        if self.session.state is Phase.STOPPED:
            return actions
        if not isinstance(event, events.FREQUENT):
            self._story.add(f"{self.session.state.name} <- {event}")
        if self._awaits_status and not isinstance(event, events.StatusArrived):
            raise self._story.error(f"{event} before the answer to a look")
        dispatched = self.order.dispatched
        self._HANDLERS[type(event)](self, event)
        self.order.check_invariants()
        if self.order.dispatched > dispatched:
            self._generation.dispatched(self.order.now_at)
        return self._releases.before(actions) + actions

    # Time and the target.

    def _on_tick(self, tick: events.Tick) -> None:
        self.order.now_at, self.order.now_utc_ms = tick.now_at, tick.now_utc_ms
        self._fire(tick)
        if self._generation.is_due(tick.now_at):
            self._actions.append(events.SaveGeneration())
        if tick.now_at >= self._status_at:
            self._status_at = tick.now_at + self._status_interval_s
            self._awaits_status = True
        self._advance()

    def _on_generation(self, saved: events.GenerationSaved) -> None:
        self._generation.saved(saved.generation)

    def _on_findings(self, _: events.FindingsSaved) -> None:
        self._actions += self.memory.saved()

    def _on_link(self, event: events.LinkUp | events.LinkDown) -> None:
        self._fire(event)
        self._advance()

    def _on_sender_lost(self, _: events.SenderLost) -> None:
        if self.order.window.in_flight:
            self._fire(session_events.Lost("a sender was lost with batches in flight"))
        self._advance()

    def _on_scanner_lost(self, _: events.ScannerLost) -> None:
        self.scheduler.scanner_lost()
        if self.order.window.has_resync_on_its_way:
            self._fire(session_events.Lost("a scanner was lost with batches in flight"))
        self._advance()

    def _on_message(self, arrived: events.MessageArrived) -> None:
        self.session.heard()
        message, attempt = arrived.message, self.session.attempt
        if (event := self._greeting.session_event(message, attempt=attempt)) is not None:
            self._fire(event)
        elif isinstance(message, Ack) and self.order.is_of_session(message):
            self.last_ack = message
            if self.order.acknowledge(message):
                self.session.progressed()
                self._actions += self._greeting.acknowledged()
            if self.order.window.is_late:
                self._fire(session_events.Lost("no byte of the batches in flight arrives"))
        self._advance()

    def _fire(self, event: object) -> None:
        """Passes an event to the session, and performs its outcome."""
        self.session.fire(event)
        outcome, self.session.outcome = self.session.outcome, []
        for each in outcome:
            match each:
                case session_events.DropInFlight():
                    self.order.forget()
                    self.scheduler.forget()
                case session_events.SendHello(attempt):
                    self._actions.append(events.Send(self._greeting.hello(attempt)))
                case session_events.SendPing():
                    self._greeting.is_ping_due = self._awaits_status = True
                case session_events.SessionBegan(welcome):
                    self.order.begin(welcome)
                    if welcome.condition is Condition.UNKNOWN:
                        self._mark([events.MarkRegions(0, self._info.regions)])
                    self._actions += self._greeting.announce(welcome)
                case _:
                    self._actions.append(each)

    # The capture.

    def _mark(self, actions: list[Action]) -> None:
        """Adds actions that mark regions, which invalidates the results of leases."""
        self.scheduler.forget()
        self._actions += actions
        self._awaits_status = True

    def _on_capture(self, seen: events.StatusArrived) -> None:
        self._awaits_status = False
        status = seen.status
        if (error := self._info.contradiction(status)) is not None:
            self._fire(session_events.Failed(error))
            return
        now_at = self.order.now_at
        self.overflow.fire(overflow.StatusSeen(status, now_at))
        if self.overflow.has_begun:
            facts: Facts = {"slot": status.head, "overflows": status.overflows}
            self._actions.append(Announce("overflow", facts))
        self.order.see(status)
        self._actions += self._greeting.pings()
        if self.order.is_streaming and self.overflow.should_resume(now_at):
            self.overflow.fire(overflow.Resumed(now_at))
            self._mark([events.Resume()])
        while self._requests.are_waiting and not self._awaits_status:
            marks, others = self._requests.answer_next()
            if marks:
                self._mark(marks)
            self._actions += others
        self._advance()

    def _on_ring_woken(self, _: events.RingWoken) -> None:
        self._releases.woken()
        if not self._ring.published(self.order.cursor, WRITE_SLOTS_MAX):
            self._awaits_status = True  # woken without a slot: the mode changed
        self._advance()

    # Batches.

    def _on_sender_ready(self, _: events.SenderReady) -> None:
        if (header := self.order.next_batch()) is None:
            return
        self._actions.append(events.Dispatch(header))
        if header.kind is BatchKind.MARKER:
            self._actions.append(Announce("condition", {"condition": self.order.condition.name}))
        elif self.scheduler.has_open_leases:
            first, count = header.first, header.count
            self.scheduler.dispatched(
                self._ring.slots(first, count), self._ring.payload(first, count)
            )

    def _on_round_ended(self, _: events.RoundEnded) -> None:
        self.waits_for = self.order.waits_for()
        self._actions += self._releases.end_round(self.waits_for)

    # Scanners and commands.

    def _advance(self) -> None:
        """Advances the scheduler; clearing regions is followed by a status query."""
        if self.session.state is Phase.STOPPED:
            return
        if not self._awaits_status:
            self._actions += (actions := self.scheduler.step(self.order.now_at))
            self._actions += self.memory.cleared(actions)
            self._awaits_status = any(isinstance(each, ClearRegions) for each in actions)
        if self._awaits_status:
            self._actions.append(QueryStatus())

    def _on_request(self, arrived: events.RequestArrived) -> None:
        self._actions += self._requests.take(arrived.peer, arrived.request)
        self._awaits_status = self._requests.are_waiting
        self._advance()

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        events.Tick: _on_tick,
        events.LinkUp: _on_link,
        events.LinkDown: _on_link,
        events.SenderLost: _on_sender_lost,
        events.ScannerLost: _on_scanner_lost,
        events.MessageArrived: _on_message,
        events.GenerationSaved: _on_generation,
        events.FindingsSaved: _on_findings,
        events.RequestArrived: _on_request,
        events.StatusArrived: _on_capture,
        events.RingWoken: _on_ring_woken,
        events.SenderReady: _on_sender_ready,
        events.RoundEnded: _on_round_ended,
    }
