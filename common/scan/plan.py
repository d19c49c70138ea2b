# SPDX-License-Identifier: GPL-2.0-only
"""Ranges that a scan compares. No I/O, no clock here.

A scan works on **chunks**: runs of dirty regions, cut at every `CHUNK_SECTORS`, so a
chunk lies within one aligned MiB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK_SECTORS = 2048
"""1 MiB."""

Flags = NDArray[np.bool_]
Chunk = tuple[int, int]
"""First sector, number of sectors."""


def plan_chunks(
    dirty: Flags, *, first_region: int, region_sectors: int, device_sectors: int
) -> list[Chunk]:
    """The chunks that cover the dirty regions, in order.

    Args:
        dirty: one flag per region, from `first_region` on.
        first_region: its number.
        region_sectors: a power of two.
        device_sectors: the last region may be shorter.
    """
    padded = np.concatenate(([False], dirty, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    chunks: list[Chunk] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        sector = (first_region + begin) * region_sectors
        stop = min((first_region + end) * region_sectors, device_sectors)
        while sector < stop:
            cut = min(stop, (sector // CHUNK_SECTORS + 1) * CHUNK_SECTORS)
            chunks.append((sector, cut - sector))
            sector = cut
    return chunks


def joined(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks in ascending order; adjacent and overlapping ones are one, empty ones none."""
    found: list[Chunk] = []
    for sector, sectors in sorted(chunks):
        if found and sector <= sum(found[-1]):
            first = found[-1][0]
            found[-1] = first, max(sum(found[-1]), sector + sectors) - first
        elif sectors:
            found.append((sector, sectors))
    return found


def unpack_bits(bits: bytes, count: int) -> Flags:
    """The first `count` bits of a bitmap, as flags."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").astype(
        np.bool_
    )


def pack_bits(flags: Flags) -> bytes:
    """The inverse of `unpack_bits`."""
    return np.packbits(flags, bitorder="little").tobytes()
