# SPDX-License-Identifier: GPL-2.0-only
"""When slots were captured, and how far a replica is behind, on the capture's clock."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bdr.common.capture.times import BATCH_NS, Behind, SlotTimes, behind, earlier
from bdr.common.ring.layout import MISSED_NOTHING, MISSED_UNKNOWN
from bdr.common.ring.marks import Marks
from tests.support.source_rig import STATUS

S = 10**9
LEVEL = replace(STATUS, head=40, tail=40, clock_ns=10 * S)
FILLED = replace(LEVEL, head=50)


def seen(marks: list[tuple[int, int]], *, head: int, clock_ns: int) -> SlotTimes:
    times = SlotTimes()
    times.see(replace(STATUS, head=head, clock_ns=clock_ns, marks=1), marks)
    return times


@pytest.mark.parametrize("seed", range(5))
def test_bounds_contain_the_clock_of_every_slot(seed: int) -> None:
    rng = random.Random(seed)
    marks, times, clock_ns = Marks(), SlotTimes(), 1
    reserved_ns: list[int] = []
    for _ in range(3000):
        marks.reserve(len(reserved_ns), clock_ns)
        reserved_ns += [clock_ns] * rng.randint(1, 3)
        clock_ns += rng.randrange(rng.choice((S // 100, S)))
        if rng.random() < 0.05:
            status = replace(STATUS, head=len(reserved_ns), clock_ns=clock_ns, marks=marks.next)
            times.see(status, marks.table() if rng.random() < 0.5 else None)
            clock_ns += rng.randrange(S)
    for slot, true_ns in enumerate(reserved_ns):
        assert times.not_before_ns(slot) <= true_ns <= times.not_after_ns(slot, clock_ns)


def test_look_is_a_mark_too() -> None:
    times = seen([(0, S)], head=10, clock_ns=60 * S)
    assert times.not_before_ns(9) == S
    assert times.not_before_ns(10) == 60 * S
    assert times.not_after_ns(9, 61 * S) == 60 * S
    assert times.not_after_ns(10, 61 * S) == 61 * S
    times.see(replace(STATUS, head=10, clock_ns=70 * S), None)
    assert times.not_before_ns(10) == 70 * S


def test_slots_that_nothing_is_known_of_have_no_time() -> None:
    times = SlotTimes()
    assert times.cut(5, 100) == 100
    assert seen([], head=10, clock_ns=S).not_before_ns(5) == 0


def test_batch_ends_where_a_mark_lies_more_than_a_second_after_its_begin() -> None:
    times = seen([(0, S), (4, 2 * S), (7, 2 * S + 1), (9, 9 * S)], head=20, clock_ns=10 * S)
    assert BATCH_NS == S
    assert times.cut(0, 100) == 7
    assert times.cut(0, 5) == 5
    assert times.cut(4, 100) == 5
    assert times.cut(8, 100) == 1
    assert times.cut(9, 100) == 100


def test_earlier_of_two() -> None:
    assert earlier(MISSED_NOTHING, MISSED_NOTHING) == MISSED_NOTHING
    assert earlier(MISSED_NOTHING, 5) == earlier(5, MISSED_NOTHING) == 5
    assert earlier(7, 5) == 5
    assert earlier(5, MISSED_UNKNOWN) == earlier(MISSED_UNKNOWN, 0) == MISSED_UNKNOWN


def test_age_is_that_of_the_last_mark_at_or_below_the_tail() -> None:
    assert behind(LEVEL, [(0, S)], MISSED_NOTHING) == Behind(0, False)
    # A ring that was empty: the old mark stays beside that of the first write after.
    assert behind(FILLED, [(30, S), (40, 8 * S)], MISSED_NOTHING) == Behind(2 * S, False)
    assert behind(FILLED, [(30, S), (41, 8 * S)], MISSED_NOTHING) == Behind(9 * S, False)
    # The tail has moved on since the look.
    assert behind(FILLED, [(45, 9 * S)], MISSED_NOTHING) == Behind(S, False)
    # A clock with the resolution of a tick.
    assert behind(FILLED, [(40, 10 * S + 1)], MISSED_NOTHING) == Behind(0, False)


def test_what_was_missed_counts_and_unknown_is_never_0() -> None:
    marks = [(40, 8 * S)]
    assert behind(LEVEL, [], 3 * S) == Behind(7 * S, False)
    assert behind(FILLED, marks, 3 * S) == Behind(7 * S, False)
    assert behind(FILLED, marks, 9 * S) == Behind(2 * S, False)
    assert behind(FILLED, marks, MISSED_UNKNOWN) == Behind(2 * S, True)
    assert behind(LEVEL, [], MISSED_UNKNOWN) == Behind(None, True)
    assert behind(FILLED, [], MISSED_NOTHING) == Behind(None, True)
