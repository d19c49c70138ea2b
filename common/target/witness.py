# SPDX-License-Identifier: GPL-2.0-only
"""Digests of some sectors of a replica's device, by which it is known again. No I/O here.

A name shows neither a blank file in the replica's place nor a disk that went back to a
snapshot. So the target keeps digests of two kinds of sectors, as they are once every job so
far is applied:

* **recent** ones, of the last jobs: a disk, or a state file, of another moment differs there;
* **fixed** places, read once when the replica becomes CONSISTENT for the first time, which
  hold data all over the device: on another disk most of them differ.

Both follow every job. The unit is a sector, since a job writes whole ones: nothing is ever
read to keep a digest. It is saved with the record, of the same moment; `witness_check` says
what follows from it when an applier starts. A change of role, or another device, drops it.

Encoded: u8 whether the fixed places were read, u8 zero, u16 count of fixed places, u16 count
of recent ones, u16 zero; then for each, oldest first, u64 sector and u64 xxh3-64 of its 512
bytes. Little-endian. Empty: none.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import xxhash

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.target.extents import Extents
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition

RECENT_MAX = 64
FIXED_MAX = 24
EXTENTS_MAX = 4
"""So many of a job's extents are remembered, its last ones."""
SPAN_SECTORS = 8
"""One sector of so many at the end of an extent is: the first, since a block often ends with
zeros."""
SPAN_SAMPLES = 1
BLOCK_SECTORS = 8
"""Of what is read at a candidate for a fixed place: its first sector with data is taken."""
CANDIDATES = 128
FEW_EXTENTS = 16
"""So many are not worth arrays."""
WITNESS_BYTES_MAX = 1992
"""Of an encoded one."""

_HEAD = struct.Struct("<BxHHxx")
_ENTRY = struct.Struct("<QQ")
_ZEROS = bytes(SECTOR_BYTES)
_GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, lie evenly however many there are."""


def digest_of(sector: Buffer) -> int:
    """Of a sector's 512 bytes."""
    return xxhash.xxh3_64_intdigest(sector)


ZEROS = digest_of(_ZEROS)


class Device(Protocol):
    """What jobs are applied to."""

    def apply(self, extents: Extents, payload: Buffer) -> None:
        """Applies the extents in order; not durable yet."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer with what is applied; raises DeviceError if it cannot be read."""
        ...


class Witness:
    """See the module's text. Attributes are read-only for others.

    Attributes:
        fixed, recent: sector -> digest; the oldest of `recent` first. None is in both.
        is_taken: the fixed places were read.
    """

    def __init__(self) -> None:
        self.fixed: dict[int, int] = {}
        self.recent: dict[int, int] = {}
        self.is_taken = False

    @property
    def sectors(self) -> list[int]:
        """All that are kept, ascending."""
        return sorted((*self.fixed, *self.recent))

    def apply(self, extents: Extents, payload: Buffer) -> None:
        """Follows a job that is applied to the device."""
        if not len(extents):
            return
        samples = _samples(extents)
        newest: dict[int, int] = {}
        kept = {*self.fixed, *self.recent, *samples}
        for sector, content in written(sorted(kept), extents, payload, newest_first=True):
            if sector not in newest:
                newest[sector] = digest_of(content)
        for sector, digest in newest.items():
            if sector in self.fixed:
                self.fixed[sector] = digest
            else:
                self.recent.pop(sector, None)
                self.recent[sector] = digest
        self._forget()

    def _forget(self) -> None:
        """The oldest are dropped, or fill the fixed places of a device that was empty at first."""
        while len(self.recent) > RECENT_MAX:
            sector = next(iter(self.recent))
            digest = self.recent.pop(sector)
            if self.is_taken and digest != ZEROS and len(self.fixed) < FIXED_MAX:
                self.fixed[sector] = digest

    def take(self, device: Device, *, device_sectors: int) -> None:
        """Reads the fixed places, which hold data; what cannot be read is left out."""
        self.is_taken = True
        buffer = memoryview(bytearray(BLOCK_SECTORS * SECTOR_BYTES))
        for first in _candidates(device_sectors):
            if len(self.fixed) >= FIXED_MAX:
                return
            sectors = min(BLOCK_SECTORS, device_sectors - first)
            block = buffer[: sectors * SECTOR_BYTES]
            try:
                device.read_into(block, first * SECTOR_BYTES)
            except DeviceError:
                continue
            for at in range(sectors):
                content = block[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES]
                if content != _ZEROS:
                    if first + at not in self.recent:
                        self.fixed[first + at] = digest_of(content)
                    break

    def encode(self) -> bytes:
        """At most `WITNESS_BYTES_MAX` long; empty where nothing is kept."""
        entries = (*self.fixed.items(), *self.recent.items())
        if not entries and not self.is_taken:
            return b""
        head = _HEAD.pack(self.is_taken, len(self.fixed), len(self.recent))
        return head + b"".join(_ENTRY.pack(*entry) for entry in entries)

    @classmethod
    def decode(cls, data: bytes) -> Witness | None:
        """The inverse of `encode`; None where it is none."""
        made = cls()
        if not data:
            return made
        if len(data) < _HEAD.size:
            return None
        is_taken, fixed, recent = _HEAD.unpack_from(data)
        if is_taken > 1 or len(data) != _HEAD.size + (fixed + recent) * _ENTRY.size:
            return None
        entries = list(_ENTRY.iter_unpack(data[_HEAD.size :]))
        made.is_taken = bool(is_taken)
        made.fixed, made.recent = dict(entries[:fixed]), dict(entries[fixed:])
        is_disjoint = not made.fixed.keys() & made.recent.keys()
        return made if is_disjoint and made.encode() == data else None


def apply_job(
    device: Device, witness: Witness, extents: Extents, payload: Buffer, record: ReplicaRecord
) -> None:
    """Applies a job to the device, and has the witness follow.

    Args:
        record: the replica's after it.

    Raises:
        DeviceError: the device failed; go no further.
    """
    device.apply(extents, payload)
    witness.apply(extents, payload)
    if record.condition is Condition.CONSISTENT and not witness.is_taken:
        witness.take(device, device_sectors=record.device_sectors)


def written(
    sectors: list[int], extents: Extents, payload: Buffer, *, newest_first: bool = False
) -> Iterator[tuple[int, Buffer]]:
    """What a job writes to some of these sectors, and what: each time one is written.

    Args:
        sectors: ascending.
        newest_first: in reverse.
    """
    touching = _touching(sectors, extents)
    view = memoryview(payload)
    for at in reversed(touching) if newest_first else touching:
        offset, length = extents.offset[at], extents.length[at]
        low = bisect_left(sectors, offset // SECTOR_BYTES)
        high = bisect_left(sectors, (offset + length) // SECTOR_BYTES, low)
        is_write = extents.op[at] == Op.WRITE
        to_source = extents.source[at] - offset
        for sector in sectors[low:high]:
            begin = sector * SECTOR_BYTES + to_source
            yield sector, view[begin : begin + SECTOR_BYTES] if is_write else _ZEROS


def _touching(sectors: list[int], extents: Extents) -> Sequence[int]:
    """Which of a job's extents may write one of these sectors."""
    if len(extents) <= FEW_EXTENTS:
        return range(len(extents))
    kept = np.array(sectors, np.int64) * SECTOR_BYTES
    start = np.array(extents.offset, np.int64)
    low = np.searchsorted(kept, start)
    high = np.searchsorted(kept, start + np.array(extents.length, np.int64))
    found: list[int] = np.flatnonzero(high > low).tolist()
    return found


def _samples(extents: Extents) -> list[int]:
    """Which sectors of a job are remembered."""
    found: list[int] = []
    last = slice(-EXTENTS_MAX, None)
    for offset, length in zip(extents.offset[last], extents.length[last], strict=True):
        begin, end = offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES
        found += range(max(begin, end - SPAN_SECTORS), end)[:SPAN_SAMPLES]
    return found


def _candidates(device_sectors: int) -> Iterable[int]:
    """Where to look for fixed places: the first sectors of blocks.

    Labels and superblocks are in the first blocks, at 64 KiB, and at the end.
    """
    blocks = -(-device_sectors // BLOCK_SECTORS)
    places = [0, 1, 16, blocks - 1]
    places += [int(at * _GOLDEN_RATIO % 1 * blocks) for at in range(1, CANDIDATES)]
    return [at * BLOCK_SECTORS for at in dict.fromkeys(places) if at < blocks]
