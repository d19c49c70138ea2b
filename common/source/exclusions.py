# SPDX-License-Identifier: GPL-2.0-only
"""Sectors of leased chunks that live batches have covered. No I/O here.

Costs a few numpy operations per batch, none per write, and nothing without open leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bdr.common.ring.layout import PAYLOAD_BYTES, SLOT_SECTORS, Op
from bdr.common.ring.slots import Headers, decode
from bdr.common.scan.plan import Chunk, Flags, pack_bits
from bdr.common.wire.codec import Buffer


@dataclass(frozen=True, slots=True)
class Covered:
    """The sectors that a live batch covers."""

    sector: NDArray[np.uint64]
    sectors: NDArray[np.uint64]
    """1 to 8 of each."""
    ranges: list[Chunk]
    """Discards and zeroes, of any length."""

    @classmethod
    def of(cls, headers: Headers, payload: Buffer) -> Covered:
        """From a batch; of its payload only the lengths of discards and zeroes are read."""
        columns = decode(headers)
        # A NOP covers nothing: a failed write has marked its regions, and the sector of a failed
        # flush has no meaning.
        is_short = columns.op == Op.WRITE
        view = memoryview(payload)
        ranges = []
        for slot in np.flatnonzero(
            (columns.op == Op.DISCARD) | (columns.op == Op.WRITE_ZEROES)
        ).tolist():
            length = view[slot * PAYLOAD_BYTES : slot * PAYLOAD_BYTES + 8]
            ranges.append((int(columns.sector[slot]), int.from_bytes(length, "little")))
        return cls(columns.sector[is_short], columns.sectors[is_short], ranges)


class Exclusions:
    """For chunks that do not overlap, in ascending order.

    Attributes:
        flags: one per sector, chunk after chunk.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        table = np.array(chunks, np.uint64).reshape(-1, 2)
        self._begin = table[:, 0]
        self._end = table[:, 0] + table[:, 1]
        ends = np.cumsum(table[:, 1], dtype=np.uint64)
        self._offset = ends - table[:, 1]
        self.flags: Flags = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)

    def bits(self) -> bytes:
        """The flags as packed bits for a message; empty if none is set."""
        return pack_bits(self.flags) if self.flags.any() else b""

    def exclude(self, covered: Covered) -> None:
        """Sets the flags of the sectors that a batch covers."""
        for sector, sectors in covered.ranges:
            self.exclude_range(sector, sectors)
        is_near = (covered.sector < self._end[-1]) & (
            covered.sector + covered.sectors > self._begin[0]
        )
        if not is_near.any():
            return
        numbers = np.arange(SLOT_SECTORS, dtype=np.uint64)
        every = covered.sector[is_near][:, None] + numbers
        every = every[numbers < covered.sectors[is_near][:, None]]
        at = np.searchsorted(self._begin, every, side="right") - 1
        hit = (at >= 0) & (every < self._end[np.maximum(at, 0)])
        at = at[hit]
        self.flags[(every[hit] - self._begin[at] + self._offset[at]).astype(np.int64)] = True

    def exclude_range(self, sector: int, sectors: int) -> None:
        """Sets the flags of a range of any length."""
        end = np.uint64(min(sector + sectors, (1 << 63) - 1))
        first = np.maximum(self._begin, np.uint64(sector))
        last = np.minimum(self._end, end)
        for i in np.flatnonzero(first < last).tolist():
            begin = int(first[i] - self._begin[i] + self._offset[i])
            self.flags[begin : begin + int(last[i] - first[i])] = True
