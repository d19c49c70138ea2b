# SPDX-License-Identifier: GPL-2.0-only
"""The ring's slots, decoded with numpy. No I/O here.

A slot is one write of at most 4096 bytes: a header of 8 bytes and a payload of
4096. Slots are numbered from 0, never reused, and live at index `number mod
capacity`. A slot is published when its header has the phase (the parity) of its lap. See
`kern/include/bdr_ring.h`, which this file mirrors; a test compiles the header and compares every
constant.

Nothing here loops over slots in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bdr.common.ring.layout import (
    CAPACITY_MAX,
    CAPACITY_MIN,
    COUNT_MASK,
    COUNT_SHIFT,
    FUA_SHIFT,
    GAP_NONE,
    HEADER_BYTES,
    LAST_SHIFT,
    OP_MASK,
    OP_SHIFT,
    PAYLOAD_BYTES,
    PHASE_SHIFT,
    REGION_SECTORS_DEFAULT,
    REGION_SECTORS_MAX,
    REGION_SECTORS_MIN,
    SECTOR_BITS,
    SECTOR_BYTES,
    SECTOR_MASK,
    SLOT_BYTES,
    SLOT_SECTORS,
    WRITE_SLOTS_MAX,
    Mode,
    Op,
)

__all__ = [
    "SECTOR_BYTES",
    "PAYLOAD_BYTES",
    "HEADER_BYTES",
    "SLOT_BYTES",
    "SLOT_SECTORS",
    "WRITE_SLOTS_MAX",
    "CAPACITY_MIN",
    "CAPACITY_MAX",
    "SECTOR_BITS",
    "SECTOR_MASK",
    "COUNT_SHIFT",
    "COUNT_MASK",
    "OP_SHIFT",
    "OP_MASK",
    "FUA_SHIFT",
    "LAST_SHIFT",
    "PHASE_SHIFT",
    "REGION_SECTORS_DEFAULT",
    "REGION_SECTORS_MIN",
    "REGION_SECTORS_MAX",
    "GAP_NONE",
    "Op",
    "Mode",
    "Headers",
    "Columns",
    "phase",
    "published_count",
    "slots_at",
    "decode",
    "encode",
    "stamp",
]

_U64 = np.uint64

Headers = NDArray[np.uint64]
"""Slot headers, little-endian, one a slot."""


def phase(slot: int, capacity: int) -> int:
    """The phase in the header of a published slot."""
    return (slot // capacity & 1) ^ 1


def published_count(headers: Headers, *, cursor: int, limit: int) -> int:
    """How many whole writes' slots are published from `cursor` on, at most `limit`.

    Args:
        headers: the ring's header array, shape (capacity,).
        cursor: number of the first slot.
        limit: most slots to return; at least `WRITE_SLOTS_MAX`, or the count may be 0 although a
            longer write is published.

    Returns:
        A number of slots that ends with the last slot of a write.
    """
    capacity = len(headers)
    index = cursor % capacity
    lap_phase = phase(cursor, capacity)
    if int(headers[index]) >> PHASE_SHIFT != lap_phase:
        return 0
    limit = min(limit, capacity)
    first = headers[index : index + limit]
    count = _leading(first, lap_phase)
    if count == len(first) and count < limit:
        count += _leading(headers[: limit - count], lap_phase ^ 1)
    # Truncate to whole writes: the limit may cut one, and headers, which are stored last to first,
    # may be read in another order.
    return _whole(slots_at(headers, first=cursor, count=count))


def _leading(headers: Headers, wanted: int) -> int:
    """Length of the prefix whose phase is `wanted`."""
    other = (headers >> PHASE_SHIFT) != wanted
    at = int(other.argmax())
    return at if other[at] else len(headers)


def _whole(headers: Headers) -> int:
    """Length of the longest prefix that ends with the last slot of a write."""
    last = (headers[::-1] >> LAST_SHIFT) & 1
    at = int(last.argmax())
    return len(headers) - at if last[at] else 0


def slots_at(array: Headers, *, first: int, count: int) -> Headers:
    """The entries of slots [first, first + count), copied only where they wrap."""
    capacity = len(array)
    index = first % capacity
    if index + count <= capacity:
        return array[index : index + count]
    return np.concatenate((array[index:], array[: index + count - capacity]))


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields of a run of headers, one array each, all of shape (slots,)."""

    op: NDArray[np.uint64]
    sector: NDArray[np.uint64]
    sectors: NDArray[np.uint64]
    """1 to 8: how much of the payload a WRITE uses."""
    fua: NDArray[np.bool_]
    last: NDArray[np.bool_]


def decode(headers: Headers) -> Columns:
    """Splits headers into their fields."""
    return Columns(
        op=(headers >> _U64(OP_SHIFT)) & _U64(OP_MASK),
        sector=headers & _U64(SECTOR_MASK),
        sectors=((headers >> _U64(COUNT_SHIFT)) & _U64(COUNT_MASK)) + _U64(1),
        fua=((headers >> FUA_SHIFT) & 1).astype(np.bool_),
        last=((headers >> LAST_SHIFT) & 1).astype(np.bool_),
    )


def encode(
    *,
    op: Op | NDArray[np.uint64],
    sector: NDArray[np.uint64],
    sectors: NDArray[np.uint64] | int = SLOT_SECTORS,
    fua: bool = False,
    last: NDArray[np.bool_] | bool = True,
) -> Headers:
    """Headers with phase 0; `stamp` sets the phase of their lap."""
    count = (np.asarray(sectors, np.uint64) - 1) & COUNT_MASK
    return np.asarray(
        (np.asarray(sector, np.uint64) & SECTOR_MASK)
        | (count << COUNT_SHIFT)
        | (np.asarray(op, np.uint64) << OP_SHIFT)
        | (np.uint64(fua) << FUA_SHIFT)
        | (np.asarray(last, np.uint64) << LAST_SHIFT),
        dtype=np.uint64,
    )


def stamp(headers: Headers, *, first: int, capacity: int) -> Headers:
    """The same headers as they look when published from slot `first` on."""
    laps = np.arange(first, first + len(headers), dtype=np.uint64) // _U64(capacity)
    phases = (laps & _U64(1)) ^ _U64(1)
    return (headers & _U64((1 << PHASE_SHIFT) - 1)) | (phases << _U64(PHASE_SHIFT))
