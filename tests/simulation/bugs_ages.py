# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the ages: marks of the clock, what is missing, what a source says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from bdr.common.ring.layout import MISSED_NOTHING
from bdr.common.ring.marks import Marks
from bdr.common.source.order import Order
from bdr.common.source.target_clock import TargetClock
from bdr.common.source.times import Times
from bdr.common.target.age import Age
from bdr.common.wire.statement import Statement
from tests.simulation.bugs import Patch, bug, wrapped

_SHIFT_NS = 300_000_000
_OVERFLOWS = {"may_overflow": True, "capacity": 8, "in_flight": 8, "think_s": 0.0005}


def _marks_shifted(shift_ns: int) -> Patch:
    def make(reserve: Any) -> Any:
        return lambda self, slot, clock_ns: reserve(self, slot, max(1, clock_ns + shift_ns))

    return wrapped(Marks, "reserve", make)


@bug(faults={"cut_control": 0.5, "partition_data": 1.0})
def mark_too_late() -> Patch:
    return _marks_shifted(_SHIFT_NS)


@bug(faults={"cut_control": 0.5, "partition_data": 1.0})
def mark_too_early() -> Patch:
    return _marks_shifted(-_SHIFT_NS)


@bug(**_OVERFLOWS, faults={"partition_control": 1.0}, read_s=0.02)
def gap_left_out_of_lag() -> Patch:
    """The age is that of what is in the ring."""

    def make(see: Any) -> Any:
        def broken(self: Times, status: Any, *rest: Any, **others: Any) -> None:
            see(self, replace(status, missed_since_ns=MISSED_NOTHING), *rest, **others)

        return broken

    return wrapped(Times, "see", make)


@bug(**_OVERFLOWS, faults={"partition_control": 1.0}, read_s=0.02, delay_s=(0.0001, 0.02))
def gap_ends_with_the_last_dirty_region() -> Patch:
    return mock.patch.object(Order, "_is_prefix_durable", True)


@bug(**_OVERFLOWS, faults={"kill_reader": 0.1, "partition_data": 0.3}, delay_s=(0.0001, 0.02))
def reader_begins_without_what_was_missing() -> Patch:
    def make(begin: Any) -> Any:
        return lambda self, **all_: begin(self, **(all_ | {"is_prefix": True}))

    return wrapped(Times, "begin", make)


@bug(faults={"partition_data": 0.5, "partition_control": 0.5})
def age_as_of_the_words_arrival() -> Patch:
    """The source takes the target's clock for its own."""

    def make(stamp: Any) -> Any:
        def broken(self: TargetClock, clock_ns: int) -> int:
            found: int = stamp(self, clock_ns)
            return found and found + 2 * 10**9

        return broken

    return wrapped(TargetClock, "stamp_ns", make)


@bug(disk_s=1.0, group_jobs=16, faults={})
def word_of_a_batch_that_is_not_durable() -> Patch:
    def make(accepted: Any) -> Any:
        def broken(self: Age, job: int, statement: Statement) -> None:
            accepted(self, job, statement)
            self.durable(job)

        return broken

    return wrapped(Age, "accepted", make)


@bug(**_OVERFLOWS, faults={"partition_data": 1.0}, read_s=0.02)
def as_of_when_it_was_said() -> Patch:
    said = property(lambda self: self.said_utc_ms // 1000)
    return mock.patch.object(Statement, "as_of_utc", said)
