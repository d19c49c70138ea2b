# SPDX-License-Identifier: GPL-2.0-only
"""Which dirty regions are out for repair, and which chunks of them are left.

A region is **out** from the moment that its chunks are planned until it is cleared or given
back, so that no look at the bitmap hands it out twice. A region that is longer than a chunk
is cleared with the last of its chunks. One that the source cannot read keeps its bit, and is
tried again after a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from bdr.common.capture.api import Bitmap, CaptureInfo
from bdr.common.scan.plan import CHUNK_SECTORS, Chunk, joined, plan_chunks, unpack_bits

ReadBits = Callable[[Bitmap, int, int], bytes]
"""Bits of so many regions from one on, as `Capture.read_bitmap` gives them."""

WINDOW_REGIONS = 8 * 65536
"""Regions that are looked at in one go."""


class Regions:
    """See the module's text.

    Args:
        read_bits: gives the capture's bitmaps.
        unreadable_s: an unreadable region is tried again after so long.
    """

    def __init__(self, *, info: CaptureInfo, read_bits: ReadBits, unreadable_s: float) -> None:
        self._info = info
        self._read_bits = read_bits
        self._unreadable_s = unreadable_s
        self._taken = np.zeros(info.regions, np.bool_)
        self._planned: deque[Chunk] = deque()
        self._next_region = 0
        self._is_exhausted = False
        """Whether a look at the whole bitmap has found nothing to hand out; until something is
        given back. What is marked anew comes with `forget`."""
        self._partial: dict[int, dict[int, int]] = {}
        """Of regions that are longer than a chunk: the chunks that are repaired."""
        self._unreadable: dict[int, tuple[float, list[Chunk]]] = {}
        """Region, to when it is tried again, and what of it could not be read."""

    @property
    def unreadable(self) -> list[Chunk]:
        """Ranges that the source could not read."""
        return sorted({chunk for _, chunks in self._unreadable.values() for chunk in chunks})

    @property
    def unreadable_count(self) -> int:
        """Regions that have some."""
        return len(self._unreadable)

    def of(self, chunk: Chunk) -> range:
        """The regions in which a chunk lies."""
        size = self._info.region_sectors
        return range(chunk[0] // size, (chunk[0] + chunk[1] - 1) // size + 1)

    def forget(self) -> None:
        """Nothing is out any more, and regions may have been marked anew."""
        self._planned.clear()
        self._partial.clear()
        self._unreadable.clear()
        self._taken[:] = False
        self._is_exhausted = False
        self._next_region = 0

    def take(self, *, chunks_max: int, sectors_max: int) -> list[Chunk]:
        """Chunks of dirty regions, which are out from now on; none if none are left."""
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
        """A later look at the bitmap finds them again."""
        self._is_exhausted = False
        for chunk in chunks:
            for region in self.of(chunk):
                self._taken[region] = False
                self._partial.pop(region, None)

    def judge(
        self,
        chunks: Sequence[Chunk],
        *,
        again: Sequence[Chunk],
        unreadable: Sequence[Chunk],
        now_at: float,
    ) -> list[Chunk]:
        """What of compared chunks may be cleared once their repairs are durable.

        Args:
            again: not judged; given back.
            unreadable: what the source cannot read; kept out until it is tried again.
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
                    self.give_back([(begin, end - begin)])
                else:
                    done.append((begin, end - begin))
        return done if size > CHUNK_SECTORS else joined(done)

    def repaired(self, chunk: Chunk) -> range:
        """A chunk's repair is durable; returns the regions that are to be cleared."""
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
        """Gives back what could not be read, where its time is over."""
        for region, (retry_at, _) in list(self._unreadable.items()):
            if now_at >= retry_at:
                del self._unreadable[region]
                self._is_exhausted = False
                self._taken[region] = False
                self._partial.pop(region, None)

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

    def _plan(self) -> None:
        """Looks for the next part of the bitmap that has work."""
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
