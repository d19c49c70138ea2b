# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the source: its node, its scanners, its capture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from bdr.common.ring.layout import Mode
from bdr.common.scan.comparer import Comparer
from bdr.common.scan.job import Closed, Job
from bdr.common.source import events
from bdr.common.source.consistency import Consistency, StatusSeen
from bdr.common.source.generation import Generation
from bdr.common.source.greeting import Greeting
from bdr.common.source.hold import Hold
from bdr.common.source.node import SourceNode
from bdr.common.source.order import Order
from bdr.common.source.overflow import OverflowSettings
from bdr.common.source.quota import QuotaSettings
from bdr.common.source.release_tracker import ReleaseTracker
from bdr.common.source.scheduler import ResyncScheduler
from bdr.common.source.session import Phase, Session
from bdr.common.source.session_events import Lost
from bdr.common.source.settings import SchedulerSettings, SourceSettings
from bdr.common.source.verification import Verification
from bdr.common.source.window import Window, WindowSettings
from bdr.common.wire.batch import Marker
from bdr.common.wire.condition import Condition
from tests.simulation.application import Application
from tests.simulation.bugs import Patch, all_of, bug, followed, handled, ignored, nothing, wrapped
from tests.simulation.scanner import Scanner
from tests.simulation.source import Gate, Write

# Order.


@bug()
def release_on_send() -> Patch:
    def make(end_round: Any) -> Any:
        def broken(self: SourceNode, event: Any) -> None:
            end_round(self, event)
            self._actions.append(events.Release(self.order.cursor, self.order.cursor, 0, 0))

        return broken

    return handled(SourceNode, events.RoundEnded, make)


@bug()
def release_on_arrival() -> Patch:
    def make(acknowledge: Any) -> Any:
        return lambda self, ack: acknowledge(self, replace(ack, durable=ack.accepted))

    return wrapped(Order, "acknowledge", make)


@bug(may_overflow=True)
def gap_marker_forgotten() -> Patch:
    def make(due: Any) -> Any:
        def broken(self: Consistency, cursor: int) -> Marker | None:
            marker: Marker | None = due(self, cursor)
            is_known = self.state is not Condition.UNKNOWN
            return None if marker is Marker.INCONSISTENT and is_known else marker

        return broken

    return wrapped(Consistency, "due_marker", make)


@bug(may_overflow=True, capacity=8, in_flight=8, source_disk_s=0.02, think_s=0.0005)
def gap_marker_only_in_stream_mode() -> Patch:
    def make(is_passed: Any) -> Any:
        def broken(self: Consistency, cursor: int) -> bool:
            return self._status.mode is Mode.STREAM and bool(is_passed(self, cursor))

        return broken

    return wrapped(Consistency, "_is_gap_passed", make)


@bug(may_overflow=True)
def ring_not_looked_at_after_resume() -> Patch:
    def make(mark: Any) -> Any:
        def broken(self: SourceNode, actions: Any) -> None:
            mark(self, actions)
            self._awaits_status = not any(isinstance(each, events.Resume) for each in actions)

        return broken

    return wrapped(SourceNode, "_mark", make)


@bug(store="direct")
def caught_up_at_once() -> Patch:
    def make(begin: Any) -> Any:
        def broken(self: Order, welcome: Any) -> None:
            begin(self, welcome)
            if self.consistency._consistent_at is not None:
                self.consistency._consistent_at = self.cursor

        return broken

    return wrapped(Order, "begin", make)


@bug()
def welcome_slot_ignored() -> Patch:
    def make(begin: Any) -> Any:
        return lambda self, welcome: begin(self, replace(welcome, slot=self.head))

    return wrapped(Order, "begin", make)


@bug(may_overflow=True, capacity=8, in_flight=8, source_disk_s=0.02, think_s=0.0005)
def batch_across_a_gap() -> Patch:
    return mock.patch.object(Order, "_limit", lambda self: self.window.room_slots)


@bug()
def window_without_a_limit() -> Patch:
    return mock.patch.object(Window, "room_batches", 1 << 20)


# The session.


@bug(faults={"cut_data": 0.15})
def loss_never_noticed() -> Patch:
    return ignored(Session, Phase.STREAMING, Lost)


@bug(faults={"kill_scanner": 0.15, "cut_scanner": 0.15}, is_equal=False, assume_clean=False)
def loss_of_a_scanner_not_noticed() -> Patch:
    return handled(SourceNode, events.ScannerLost, lambda _: lambda self, event: self._advance())


@bug(drops=0.1)
def hello_not_repeated() -> Patch:
    return ignored(Session, Phase.GREETING, events.Tick)


@bug()
def unknown_replica_not_marked() -> Patch:
    return mock.patch.object(SourceNode, "_mark", nothing)


@bug(faults={"liar": 0.5})
def impossible_welcome_believed() -> Patch:
    return mock.patch.object(Greeting, "_check", nothing)


@bug(faults={"liar": 0.5})
def impossible_acknowledgement_believed() -> Patch:
    return mock.patch.object(Greeting, "_check_ack", nothing)


# Identifiers and counters.


@bug(faults={"kill_reader": 0.3})
def generation_sent_before_it_is_durable() -> Patch:
    def make(is_due: Any) -> Any:
        def broken(self: Generation, now_at: float) -> bool:
            due = bool(is_due(self, now_at))
            if due:
                self._known.appendleft(b"%8d" % (1000 * now_at))
            return due

        return broken

    return wrapped(Generation, "is_due", make)


@bug(
    may_overflow=True,
    think_s=0.0005,
    writes=160,
    faults_s=15.0,
    faults={"revert_target": 0.3, "kill_reader": 0.05},
)
def acknowledged_not_told() -> Patch:
    """What a scan has brought is cleared, and the capture does not know why."""

    def make(release: Any) -> Any:
        def broken(self: ReleaseTracker) -> Any:
            return replace(release(self), acknowledged=self._order.status.acknowledged)

        return broken

    return wrapped(ReleaseTracker, "_release", make)


# The capture.


@bug()
def shown_before_it_is_on_disk() -> Patch:
    def make(admit: Any) -> Any:
        def broken(self: Application, write: Write) -> None:
            admit(self, write)
            if write.logged:
                self._world.gate.publish(write, failed=False, slots=range(write.slots))

        return broken

    return wrapped(Application, "_admit", make)


@bug(may_overflow=True)
def missed_write_not_marked() -> Patch:
    return mock.patch.object(Gate, "mark", nothing)


@bug(failing_writes=0.1)
def failed_write_not_marked() -> Patch:
    def make(publish: Any) -> Any:
        def broken(self: Gate, write: Write, **kwargs: Any) -> None:
            with mock.patch.object(self, "mark", nothing):
                publish(self, write, **kwargs)

        return broken

    return wrapped(Gate, "publish", make)


@bug(failing_writes=0.1)
def failed_write_shown_as_a_good_one() -> Patch:
    def make(publish: Any) -> Any:
        def broken(self: Gate, write: Write, *, failed: bool, slots: range) -> None:
            if failed:
                self.mark(write)
            publish(self, write, failed=False, slots=slots)

        return broken

    return wrapped(Gate, "publish", make)


# Scans.

_SCAN: dict[str, Any] = {"is_equal": False, "assume_clean": False}


@bug(**_SCAN)
def no_exclusions() -> Patch:
    return mock.patch.object(ResyncScheduler, "dispatched", nothing)


@bug(**_SCAN)
def cleared_before_it_is_acknowledged() -> Patch:
    return mock.patch.object(Order, "durable", property(lambda self: self.dispatched))


@bug(
    **_SCAN,
    may_overflow=True,
    capacity=16,
    device_sectors=64,
    in_flight=8,
    writes=160,
    think_s=0.0005,
    wire_s=0.01,
    senders=1,
    faults={},
    source=SourceSettings(
        window=WindowSettings(batches=2, slots=256, batch_slots=256),
        quota=QuotaSettings(batches=2, share=32.0),
        overflow=OverflowSettings(resume_below=0.75, min_s=0.001, max_s=0.002),
        scheduler=SchedulerSettings(lease_chunks=1, lease_sectors=32),
    ),
)
def leases_before_a_gap() -> Patch:
    def broken(self: Hold) -> None:
        self._slot, self._batch = 0, None

    return mock.patch.object(Hold, "begin", broken)


@bug(
    may_overflow=True,
    few_values=True,
    capacity=8,
    device_sectors=64,
    region_sectors=8,
    in_flight=8,
    writes=300,
    think_s=0.0005,
    source_disk_s=0.0005,
    delay_s=(0.0001, 0.0002),
    wire_s=0.01,
    senders=1,
    faults={},
)
def leases_before_the_target_has_the_slots_before_a_gap() -> Patch:
    def make(update: Any) -> Any:
        def broken(self: Hold) -> None:
            update(self)
            self._batch = None if self._batch is None else 0

        return broken

    return wrapped(Hold, "update", make)


@bug(**_SCAN)
def read_before_begin() -> Patch:
    return mock.patch.object(Scanner, "reads_before_begin", True)


@bug(may_overflow=True)
def marks_of_resume_not_noticed() -> Patch:
    def make(mark: Any) -> Any:
        def broken(self: SourceNode, actions: Any) -> None:
            with mock.patch.object(self.scheduler, "forget"):
                mark(self, actions)

        return broken

    return wrapped(SourceNode, "_mark", make)


@bug(
    device_sectors=64,
    region_sectors=64,
    source_disk_s=0.05,
    writes=160,
    read_s=0.0002,
    disk_s=0.0002,
    delay_s=(0.0001, 0.0002),
    wire_s=0.0002,
    faults={"user_resync": 0.1},
)
def consistent_at_once() -> Patch:
    def at_once(self: Consistency, looked: StatusSeen) -> None:
        if self._consistent_at is not None:
            self._consistent_at = looked.cursor

    return followed(Consistency, Condition.INCONSISTENT, StatusSeen, at_once)


@bug(faults={"cut_control": 0.3, "cut_data": 0.3}, **_SCAN)
def leases_survive_a_new_epoch() -> Patch:
    def make(fire: Any) -> Any:
        def broken(self: SourceNode, event: Any) -> None:
            with mock.patch.object(self.scheduler, "forget"):
                fire(self, event)

        return broken

    return wrapped(SourceNode, "_fire", make)


@bug(failing_reads=0.2, **_SCAN)
def unreadable_counts_as_equal() -> Patch:
    return mock.patch.object(Job, "unreadable", return_value=[])


@bug(read_s=0.02, faults={"cut_scanner": 0.15}, **_SCAN)
def buffer_used_while_a_thread_reads_into_it() -> Patch:
    def broken(self: Comparer, job: Any) -> None:
        job.fire(Closed())
        del self._jobs[job.number]
        self._requests = {n: its for n, its in self._requests.items() if its[0] is not job}
        self._buffers.append(job.buffer)

    on_result = Comparer._on_result

    def deaf(self: Comparer, result: Any) -> None:
        if result.job in self._jobs:
            on_result(self, result)

    return all_of(
        mock.patch.object(Comparer, "_end", broken),
        mock.patch.object(Comparer, "_on_result", deaf),
    )


@bug(faults={"user_verify": 0.05})
def verify_ends_before_what_it_saw_is_dispatched() -> Patch:
    return mock.patch.object(Order, "head", property(lambda self: self.cursor))


@bug(may_overflow=True, faults={"user_verify": 0.05})
def verify_judges_what_is_marked() -> Patch:
    return mock.patch.object(Verification, "exclude_marked", nothing)
