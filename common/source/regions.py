# SPDX-License-Identifier: GPL-2.0-only
"""Dirty regions that are taken for repair, and their remaining chunks.

A region is **taken** from the planning of its chunks until it is cleared or given back, so that no
read of the bitmap takes it twice. A region longer than a chunk is cleared with the last of its
chunks. A region that is unreadable on the source keeps its bit, and is retried later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from bdr.common.capture.api import Bitmap, CaptureInfo
from bdr.common.scan.plan import CHUNK_SECTORS, Chunk, joined, plan_chunks, unpack_bits

ReadBits = Callable[[Bitmap, int, int], bytes]
"""Bits of a range of regions, as `Capture.read_bitmap` returns them."""

WINDOW_REGIONS = 8 * 65536
"""Regions that are read at a time."""


class Regions:
    """See the module's docstring.

    Args:
        read_bits: reads the capture's bitmaps.
        unreadable_s: an unreadable region is retried after this time.
    """

    def __init__(self, *, info: CaptureInfo, read_bits: ReadBits, unreadable_s: float) -> None:
        self._info = info
        self._read_bits = read_bits
        self._unreadable_s = unreadable_s
        self._taken = np.zeros(info.regions, np.bool_)
        self._planned: deque[Chunk] = deque()
        self._next_region = 0
        self._is_exhausted = False
        """Whether the whole bitmap has no region that is not taken; until one is given back. New
        marks imply `forget`."""
        self._partial: dict[int, dict[int, int]] = {}
        """For regions longer than a chunk: the repaired chunks."""
        self._unreadable: dict[int, tuple[float, list[Chunk]]] = {}
        """Region, to the time of its retry, and its unreadable chunks."""

    @property
    def unreadable(self) -> list[Chunk]:
        """Ranges that are unreadable on the source."""
        return sorted({chunk for _, chunks in self._unreadable.values() for chunk in chunks})

    @property
    def unreadable_count(self) -> int:
        """Regions with such ranges."""
        return len(self._unreadable)

    def of(self, chunk: Chunk) -> range:
        """The regions that a chunk overlaps."""
        size = self._info.region_sectors
        return range(chunk[0] // size, (chunk[0] + chunk[1] - 1) // size + 1)

    def forget(self) -> None:
        """Gives everything back; regions may have been marked anew."""
        self._planned.clear()
        self._partial.clear()
        self._unreadable.clear()
        self._taken[:] = False
        self._is_exhausted = False
        self._next_region = 0

    def take(self, *, chunks_max: int, sectors_max: int) -> list[Chunk]:
        """Takes chunks of dirty regions; empty if none are left."""
        if not self._planned:
            self._plan()
        chunks: list[Chunk] = []
        sectors = 0
        while (
            self._planned
            and len(chunks) < chunks_max
            and sectors + self._planned[0][1] <= sectors_max
        ):
            chunks.append(self._planned.popleft())
            sectors += chunks[-1][1]
        return chunks

    def give_back(self, chunks: Sequence[Chunk]) -> None:
        """Gives chunks back: a later read of the bitmap finds them again."""
        for chunk in chunks:
            for region in self.of(chunk):
                self._give_back(region)

    def judge(
        self,
        chunks: Sequence[Chunk],
        *,
        again: Sequence[Chunk],
        unreadable: Sequence[Chunk],
        now_at: float,
    ) -> list[Chunk]:
        """The parts of compared chunks that may be cleared once their repairs are durable.

        Args:
            again: not compared; given back.
            unreadable: unreadable on the source; stay taken until their retry.
        """
        size = self._info.region_sectors
        bad = {region for chunk in unreadable for region in self.of(chunk)}
        undone = {region for chunk in again for region in self.of(chunk)}
        done: list[Chunk] = []
        for sector, sectors in chunks:
            for region in self.of((sector, sectors)):
                begin, end = max(sector, region * size), min(sector + sectors, (region + 1) * size)
                if region in bad:
                    _, known = self._unreadable.get(region, (0.0, []))
                    its = [chunk for chunk in unreadable if region in self.of(chunk)]
                    self._unreadable[region] = (now_at + self._unreadable_s, known + its)
                elif region in undone:
                    self._give_back(region)
                else:
                    done.append((begin, end - begin))
        return done if size > CHUNK_SECTORS else joined(done)

    def repaired(self, chunk: Chunk) -> range:
        """A chunk's repair is durable; returns the regions to clear."""
        regions = self.of(chunk)
        size = self._info.region_sectors
        if size > CHUNK_SECTORS:
            region = regions[0]
            done = self._partial.setdefault(region, {})
            done[chunk[0]] = chunk[1]
            if sum(done.values()) < min(size, self._info.device_sectors - region * size):
                return range(0)
            del self._partial[region]
        self._taken[regions.start : regions.stop] = False
        return regions

    def retry_unreadable(self, now_at: float) -> None:
        """Gives back unreadable regions whose retry is due."""
        for region, (retry_at, _) in list(self._unreadable.items()):
            if now_at >= retry_at:
                del self._unreadable[region]
                self._give_back(region)

    def dirty_within(self, chunk: Chunk) -> list[int]:
        """Regions of a chunk that are marked in any bitmap."""
        regions = self.of(chunk)
        first = regions.start // 64 * 64
        count = min(-(-regions.stop // 64) * 64, self._info.regions) - first
        found: set[int] = set()
        for bitmap in Bitmap:
            bits = unpack_bits(self._read_bits(bitmap, first, count), count)
            found |= {first + at for at in np.flatnonzero(bits).tolist()}
        return sorted(found)

    def _give_back(self, region: int) -> None:
        self._is_exhausted = False
        self._taken[region] = False
        self._partial.pop(region, None)

    def _plan(self) -> None:
        """Plans chunks from the next part of the bitmap with dirty regions."""
        if self._is_exhausted:
            return
        regions = self._info.regions
        for _ in range(-(-regions // WINDOW_REGIONS) + 1):
            if self._planned:
                return
            first = self._next_region
            count = min(WINDOW_REGIONS, regions - first)
            dirty = unpack_bits(self._read_bits(Bitmap.RESYNC, first, count), count)
            dirty &= ~self._taken[first : first + count]
            self._taken[first : first + count] |= dirty
            self._planned.extend(
                plan_chunks(
                    dirty,
                    first_region=first,
                    region_sectors=self._info.region_sectors,
                    device_sectors=self._info.device_sectors,
                )
            )
            self._next_region = first + count if first + count < regions else 0
        self._is_exhausted = not self._planned
