# SPDX-License-Identifier: GPL-2.0-only
"""Batches of a slow link are small, those of a fast one as large as they may be."""

from __future__ import annotations

import pytest

from bdr.common.ring.layout import WRITE_SLOTS_MAX
from bdr.common.source.batch_size import BATCH_S, FIRST_SLOTS, SLOTS_MIN, BatchSize
from bdr.common.wire.batch import BATCH_SLOTS_MAX
from tests.support.source_rig import streaming


def after(rate: float, *, seconds: float, batch: BatchSize | None = None) -> BatchSize:
    """What a link of so many slots a second leads to."""
    batch = batch or BatchSize(BATCH_SLOTS_MAX)
    now_at = 0.0
    batch.begin(now_at)
    while now_at < seconds:
        slots = batch.slots
        now_at += slots / rate
        batch.arrived(slots, now_at)
    return batch


@pytest.mark.parametrize("rate", [100.0, 300.0, 900.0])
def test_batch_takes_a_fixed_time(rate: float) -> None:
    assert after(rate, seconds=30.0).slots == pytest.approx(rate * BATCH_S, rel=0.1)


def test_batch_of_a_fast_link_is_as_large_as_it_may_be_within_a_second() -> None:
    assert after(250_000.0, seconds=1.0).slots == BATCH_SLOTS_MAX


def test_batch_of_the_slowest_link_has_a_least_size() -> None:
    assert after(1.0, seconds=1000.0).slots == SLOTS_MIN


def test_link_that_becomes_faster_gets_larger_batches_again() -> None:
    batch = after(1.0, seconds=1000.0)
    assert after(250_000.0, seconds=2.0, batch=batch).slots == BATCH_SLOTS_MAX


def test_time_without_batches_does_not_count() -> None:
    batch = after(250_000.0, seconds=1.0)
    batch.begin(1000.0)
    batch.arrived(1, 1000.001)
    assert batch.slots == BATCH_SLOTS_MAX


def test_batch_ends_where_it_should_and_a_write_that_is_larger_is_whole() -> None:
    rig = streaming()
    rig.capture.publish(WRITE_SLOTS_MAX)
    for _ in range(FIRST_SLOTS + 1):
        rig.capture.publish(1)
    counts = [header.count for header in iter(rig.next_batch, None)]
    assert counts == [WRITE_SLOTS_MAX, FIRST_SLOTS, 1]
