# SPDX-License-Identifier: GPL-2.0-only
"""The ring's slots against a slow reference that goes one by one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdr.common.ring import layout
from bdr.common.ring.layout import Op
from bdr.common.ring.mapping import RingMap, page_round
from bdr.common.ring.slots import decode, encode, phase, published_count, slots_at, stamp

WRITES_MAX = layout.WRITE_SLOTS_MAX


@dataclass
class SlowRing:
    """Reserves and publishes as `kern/include/bdr_ring.h` does."""

    capacity: int
    head: int = 0
    tail: int = 0
    pending: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.headers = np.zeros(self.capacity, np.uint64)

    def reserve(self, count: int) -> None:
        if count <= self.capacity - (self.head - self.tail):
            self.pending.append((self.head, count))
            self.head += count

    def publish(self, which: int, *, only_later_half: bool = False) -> None:
        if not self.pending:
            return
        first, count = self.pending[which % len(self.pending)]
        slots = range(first + count // 2 if only_later_half and count > 1 else first, first + count)
        for slot in reversed(slots):
            phase = (slot // self.capacity % 2) ^ 1
            last = slot == first + count - 1
            self.headers[slot % self.capacity] = 7 | last << 55 | phase << 63
        if slots[0] == first:
            self.pending.remove((first, count))

    def is_published(self, slot: int) -> bool:
        phase = int(self.headers[slot % self.capacity]) >> 63
        return slot < self.head and phase == (slot // self.capacity % 2) ^ 1

    def whole_writes(self, cursor: int, limit: int) -> int:
        """The longest run from `cursor` on, at most `limit`, that ends with a write's last."""
        best = 0
        for count in range(1, min(limit, self.capacity) + 1):
            slot = cursor + count - 1
            if not self.is_published(slot):
                break
            if int(self.headers[slot % self.capacity]) >> 55 & 1:
                best = count
        return best


STEPS = st.lists(
    st.tuples(st.sampled_from(("reserve", "publish", "half", "release")), st.integers(0, 12)),
    max_size=60,
)


@settings(max_examples=400)
@given(st.integers(8, 24), STEPS, st.integers(1, 40))
def test_published_count_equals_going_slot_by_slot(
    capacity: int, steps: list[tuple[str, int]], limit: int
) -> None:
    slow = SlowRing(capacity)
    for step, number in steps:
        if step == "reserve":
            slow.reserve(number + 1)
        elif step == "release":
            slow.tail += slow.whole_writes(slow.tail, number)
        else:
            slow.publish(number, only_later_half=step == "half")
        for cursor in {slow.tail, slow.tail + slow.whole_writes(slow.tail, 5)}:
            found = published_count(slow.headers, cursor=cursor, limit=limit)
            assert found == slow.whole_writes(cursor, limit)


def test_published_count_of_a_full_ring_that_wraps_is_all_of_it() -> None:
    slow = SlowRing(8)
    slow.reserve(5)
    slow.publish(0)
    slow.tail = 5
    slow.reserve(8)
    slow.publish(0)
    assert published_count(slow.headers, cursor=5, limit=WRITES_MAX) == 8


def test_published_count_of_a_ring_that_was_never_written_is_none() -> None:
    headers = np.zeros(8, np.uint64)
    assert published_count(headers, cursor=0, limit=WRITES_MAX) == 0


def test_published_count_beyond_a_full_lap_is_none() -> None:
    """All that is there was read; the slots of the lap before must not count again."""
    slow = SlowRing(8)
    slow.reserve(8)
    slow.publish(0)
    assert published_count(slow.headers, cursor=8, limit=WRITES_MAX) == 0


@given(st.integers(8, 40), st.integers(0, 1 << 40), st.data())
def test_slots_at_equals_taking_them_one_by_one(
    capacity: int, first: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, capacity))
    array = np.arange(capacity, dtype=np.uint64)
    found = slots_at(array, first=first, count=count)
    assert found.tolist() == [slot % capacity for slot in range(first, first + count)]


@given(st.integers(0, 1 << 40), st.integers(0, 24))
def test_header_bytes_are_those_of_slots_at(first: int, count: int) -> None:
    with tempfile.TemporaryFile() as file:
        capacity = 24
        headers = np.arange(capacity, dtype=np.uint64)
        file.write(headers.tobytes().ljust(page_round(1) + capacity * layout.PAYLOAD_BYTES, b"\0"))
        file.flush()
        mapped = RingMap(
            file.fileno(), capacity=capacity, headers_offset=0, payload_offset=page_round(1)
        )
        try:
            found = mapped.header_bytes(first, count)
            assert found == slots_at(headers, first=first, count=count).tobytes()
            assert found.format == "B"
        finally:
            mapped.close()


SECTORS = st.integers(0, layout.SECTOR_MASK)


@given(
    st.lists(st.tuples(st.sampled_from(Op), SECTORS, st.integers(1, 8), st.booleans()), min_size=1),
    st.booleans(),
)
def test_decode_gives_what_encode_was_given(
    slots: list[tuple[Op, int, int, bool]], fua: bool
) -> None:
    op, sector, sectors, last = (list(column) for column in zip(*slots, strict=True))
    columns = decode(
        encode(
            op=np.array(op, np.uint64),
            sector=np.array(sector, np.uint64),
            sectors=np.array(sectors, np.uint64),
            fua=fua,
            last=np.array(last),
        )
    )
    assert columns.op.tolist() == op
    assert columns.sector.tolist() == sector
    assert columns.sectors.tolist() == sectors
    assert columns.last.tolist() == last
    assert columns.fua.tolist() == [fua] * len(slots)


@given(st.integers(8, 40), st.integers(0, 1 << 62), st.integers(1, 60))
def test_stamp_gives_each_slot_the_phase_of_its_lap(capacity: int, first: int, count: int) -> None:
    stamped = stamp(np.zeros(count, np.uint64), first=first, capacity=capacity)
    wanted = [phase(slot, capacity) for slot in range(first, first + count)]
    assert (stamped >> np.uint64(63)).tolist() == wanted


@pytest.mark.parametrize(("slot", "wanted"), [(0, 1), (7, 1), (8, 0), (15, 0), (16, 1)])
def test_phase_is_the_parity_of_the_lap_and_1_in_the_first(slot: int, wanted: int) -> None:
    assert phase(slot, 8) == wanted
