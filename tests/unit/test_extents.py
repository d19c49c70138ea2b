# SPDX-License-Identifier: GPL-2.0-only
"""Extents must do to a device what the slots would do, one by one, in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdr.common.errors import InvalidSlotsError
from bdr.common.ring import layout
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Op
from bdr.common.target.extents import Extents, plan

DEVICE_SECTORS = 64
DEVICE_BYTES = DEVICE_SECTORS * SECTOR_BYTES

Slot = tuple[Op, int, int]
"""Operation, first sector, sectors."""


def encode(slots: list[Slot]) -> tuple[bytes, bytes]:
    """Headers and payload; slot i writes words that name it and the place in it."""
    headers, payload = b"", b""
    for i, (op, sector, sectors) in enumerate(slots):
        count = sectors if op is Op.WRITE else 1
        word = sector | (count - 1) << layout.COUNT_SHIFT | op << layout.OP_SHIFT
        headers += (word | (i & 1) << layout.LAST_SHIFT | 1 << layout.PHASE_SHIFT).to_bytes(
            8, "little"
        )
        body = np.arange(i << 16, (i << 16) + PAYLOAD_BYTES // 4, dtype="<u4").tobytes()
        if op in (Op.DISCARD, Op.WRITE_ZEROES):
            body = sectors.to_bytes(8, "little") + body[8:]
        payload += body
    return headers, payload


def apply_slots(slots: list[Slot], payload: bytes) -> bytearray:
    """The slow reference."""
    device = bytearray(b"\xff" * DEVICE_BYTES)
    for i, (op, sector, sectors) in enumerate(slots):
        at, length = sector * SECTOR_BYTES, sectors * SECTOR_BYTES
        if op is Op.WRITE:
            device[at : at + length] = payload[i * PAYLOAD_BYTES : i * PAYLOAD_BYTES + length]
        elif op in (Op.DISCARD, Op.WRITE_ZEROES):
            device[at : at + length] = bytes(length)
    return device


def apply_extents(extents: Extents, payload: bytes) -> bytearray:
    device = bytearray(b"\xff" * DEVICE_BYTES)
    for op, offset, length, source in zip(
        extents.op, extents.offset, extents.length, extents.source, strict=True
    ):
        assert length
        assert offset + length <= DEVICE_BYTES
        if op == Op.WRITE:
            assert source + length <= len(payload)
            device[offset : offset + length] = payload[source : source + length]
        else:
            assert op in (Op.DISCARD, Op.WRITE_ZEROES)
            device[offset : offset + length] = bytes(length)
    return device


@st.composite
def slot_lists(draw: st.DrawFn) -> list[Slot]:
    """Many that continue their predecessor, many that overlap."""
    slots: list[Slot] = []
    follows = 0
    for _ in range(draw(st.integers(0, 24))):
        op = draw(st.sampled_from((Op.WRITE, Op.WRITE, Op.WRITE, *Op)))
        at = draw(st.sampled_from((follows, follows, draw(st.integers(0, DEVICE_SECTORS - 1)))))
        at = min(at, DEVICE_SECTORS - 1)
        most = min(8 if op is Op.WRITE else DEVICE_SECTORS, DEVICE_SECTORS - at)
        least = 1 if op is Op.WRITE else 0
        sectors = draw(st.sampled_from((min(8, most), draw(st.integers(least, most)))))
        slots.append((op, at, sectors))
        follows = at + sectors
    return slots


@settings(max_examples=500)
@given(slot_lists())
def test_extents_do_what_the_slots_do_one_by_one(slots: list[Slot]) -> None:
    headers, payload = encode(slots)
    extents = plan(headers, payload, device_sectors=DEVICE_SECTORS)
    assert apply_extents(extents, payload) == apply_slots(slots, payload)


def test_sequential_slots_are_one_extent() -> None:
    slots = [(Op.WRITE, 8 * i, 8) for i in range(7)] + [(Op.WRITE, 56, 3)]
    extents = plan(*encode(slots), device_sectors=DEVICE_SECTORS)
    assert (extents.offset, extents.length) == ([0], [59 * SECTOR_BYTES])


def test_slot_that_does_not_fill_its_payload_ends_an_extent() -> None:
    slots = [(Op.WRITE, 0, 4), (Op.WRITE, 4, 4)]
    extents = plan(*encode(slots), device_sectors=DEVICE_SECTORS)
    assert extents.source == [0, PAYLOAD_BYTES]


def test_nop_flush_and_empty_ranges_leave_nothing() -> None:
    slots = [(Op.NOP, 3, 8), (Op.FLUSH, 0, 0), (Op.DISCARD, 5, 0), (Op.WRITE_ZEROES, 64, 0)]
    assert len(plan(*encode(slots), device_sectors=DEVICE_SECTORS)) == 0


def test_nop_and_flush_reach_nowhere_whatever_they_say() -> None:
    """The NOP of a failed write still names its sectors."""
    slots = [(Op.NOP, layout.SECTOR_MASK, 8), (Op.FLUSH, layout.SECTOR_MASK, 0)]
    assert len(plan(*encode(slots), device_sectors=DEVICE_SECTORS)) == 0


@pytest.mark.parametrize(
    "slot",
    [
        (Op.WRITE, DEVICE_SECTORS - 7, 8),
        (Op.WRITE, DEVICE_SECTORS, 1),
        (Op.WRITE, layout.SECTOR_MASK, 8),
        (Op.DISCARD, 0, DEVICE_SECTORS + 1),
        (Op.DISCARD, 1, (1 << 64) - 1),
        (Op.WRITE_ZEROES, DEVICE_SECTORS - 1, (1 << 64) - 1),
        (Op.WRITE_ZEROES, layout.SECTOR_MASK, 1),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_slot_that_reaches_outside_condemns_the_whole_batch(slot: Slot, place: int) -> None:
    slots = [(Op.WRITE, 0, 8), (Op.WRITE, 8, 8)]
    slots.insert(place, slot)
    with pytest.raises(InvalidSlotsError, match="sectors"):
        plan(*encode(slots), device_sectors=DEVICE_SECTORS)


@pytest.mark.parametrize("op", [5, 6, 7])
def test_unknown_operation_condemns_the_whole_batch(op: int) -> None:
    words = np.array([1 << layout.OP_SHIFT, op << layout.OP_SHIFT], "<u8")
    with pytest.raises(InvalidSlotsError, match=str(op)):
        plan(words.tobytes(), bytes(2 * PAYLOAD_BYTES), device_sectors=DEVICE_SECTORS)


@settings(max_examples=300)
@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=8), st.integers(0, (1 << 64) - 1))
def test_hostile_slots_are_refused_or_stay_inside(words: list[int], length: int) -> None:
    headers = np.array(words, "<u8").tobytes()
    payload = (length.to_bytes(8, "little") + bytes(PAYLOAD_BYTES - 8)) * len(words)
    try:
        extents = plan(headers, payload, device_sectors=DEVICE_SECTORS)
    except InvalidSlotsError:
        return
    apply_extents(extents, payload)
