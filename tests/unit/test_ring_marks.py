# SPDX-License-Identifier: GPL-2.0-only
"""Marks of the clock, in Python; `test_ring_headers` has the same of the C header."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bdr.common.ring.layout import MARKS_INTERVAL_NS, MARKS_MAX
from bdr.common.ring.marks import Marks, decode_marks


@pytest.mark.parametrize("seed", range(5))
def test_marks_contain_the_clock_of_every_slot(seed: int) -> None:
    rng = random.Random(seed)
    marks = Marks()
    clock_ns, tail = 1, 0
    reserved_at: list[int] = []
    pause_ns = MARKS_INTERVAL_NS >> 6 << rng.randrange(12)
    for _ in range(8000):
        marks.reserve(len(reserved_at), clock_ns)
        reserved_at += [clock_ns] * rng.randint(1, 4)
        clock_ns += rng.randrange(pause_ns)
        if rng.random() < 0.0005:
            tail = rng.randint(tail, len(reserved_at))
            marks.release(tail)
    slots, clocks = np.array(marks.table()).T
    assert len(slots) <= MARKS_MAX
    assert (np.diff(slots) > 0).all()
    true_ns = np.array(reserved_at[tail:])
    at = np.searchsorted(slots, np.arange(tail, len(reserved_at)), side="right")
    assert (at > 0).all()
    assert (clocks[at - 1] <= true_ns).all()
    assert (true_ns <= np.append(clocks, clock_ns)[at]).all()


def test_full_table_loses_every_second_mark_and_the_interval_doubles() -> None:
    marks = Marks()
    for number in range(MARKS_MAX + 1):
        marks.reserve(number, number * MARKS_INTERVAL_NS)
    assert marks.interval_ns == 2 * MARKS_INTERVAL_NS
    assert [slot for slot, _ in marks.table()] == [*range(0, MARKS_MAX, 2), MARKS_MAX]
    assert marks.next == MARKS_MAX + 1
    marks.release(MARKS_MAX)
    assert marks.table() == [(MARKS_MAX, MARKS_MAX * MARKS_INTERVAL_NS)]
    assert marks.interval_ns == MARKS_INTERVAL_NS


def test_table_is_decoded_as_it_is_sent() -> None:
    raw = np.array([1, 2, 3, 1 << 63], "<u8").tobytes()
    assert decode_marks(raw) == [(1, 2), (3, 1 << 63)]
    assert decode_marks(b"") == Marks().table() == []
