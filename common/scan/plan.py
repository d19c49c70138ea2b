# SPDX-License-Identifier: GPL-2.0-only
"""What a scan compares and what it sends, as plain functions. No I/O, no clock here.

A scan works on **pieces**: runs of dirty regions, cut at every `PIECE_SECTORS`, so a
piece lies within one aligned MiB. Two digests of a piece that are equal end it; else
it is compared by blocks of 4 KiB, and the blocks that differ become a resync batch of
the same form as any batch: a block of zeros as WRITE_ZEROES, neighbours as one;
sectors that a live batch has covered meanwhile are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, SLOT_SECTORS, Op
from bdr.common.ring.slots import Headers, encode
from bdr.common.wire.control import BATCH_SLOTS_MAX, DIGEST_BYTES, Buffer

PIECE_SECTORS = 2048
"""1 MiB."""
BLOCK_SECTORS = SLOT_SECTORS
BATCH_BLOCKS_MAX = 256
"""So many blocks fit a batch whatever is left out: at most every other sector of each."""

Flags = NDArray[np.bool_]
Piece = tuple[int, int]
"""First sector, number of sectors."""

assert BATCH_BLOCKS_MAX * SLOT_SECTORS // 2 <= BATCH_SLOTS_MAX


# Planning.


def plan_pieces(
    dirty: Flags, *, first_region: int, region_sectors: int, device_sectors: int
) -> list[Piece]:
    """The pieces that cover the dirty regions, in order.

    Args:
        dirty: one flag a region, from `first_region` on.
        first_region: its number.
        region_sectors: a power of two.
        device_sectors: the last region may be shorter.
    """
    padded = np.concatenate(([False], dirty, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    pieces: list[Piece] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        sector = (first_region + begin) * region_sectors
        stop = min((first_region + end) * region_sectors, device_sectors)
        while sector < stop:
            cut = min(stop, (sector // PIECE_SECTORS + 1) * PIECE_SECTORS)
            pieces.append((sector, cut - sector))
            sector = cut
    return pieces


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours as one, in ascending order."""
    found: list[Piece] = []
    for sector, sectors in sorted(pieces):
        if found and sum(found[-1]) == sector:
            found[-1] = (found[-1][0], found[-1][1] + sectors)
        else:
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


# Comparing.


def digest(data: Buffer) -> bytes:
    """Of a whole piece."""
    return xxhash.xxh3_128_digest(data)


def block_digests(data: Buffer, block_bytes: int = PAYLOAD_BYTES) -> bytes:
    """Of each block, one after the other; the last block may be shorter."""
    take = xxhash.xxh3_128_digest
    view = memoryview(data)
    return b"".join(take(view[at : at + block_bytes]) for at in range(0, len(view), block_bytes))


def differing(one: Buffer, other: Buffer) -> Flags:
    """Which digests differ; both have the same number of them."""
    pairs = (np.frombuffer(side, "<u8").reshape(-1, DIGEST_BYTES // 8) for side in (one, other))
    mine, theirs = pairs
    return np.asarray((mine != theirs).any(axis=1))


def digests_wanted(pieces: Sequence[Piece], block_sectors: int) -> int:
    """How many digests a request for these pieces asks for."""
    if not block_sectors:
        return len(pieces)
    return sum(-(-sectors // block_sectors) for _, sectors in pieces)


# Sending.


@dataclass(frozen=True, slots=True)
class Repair:
    """What a scan knows of a piece that differs."""

    sector: int
    data: Buffer
    """The source's content."""
    blocks: Flags
    """Which blocks are to be sent."""
    excluded: Flags | None = None
    """Sectors that must not be sent; None for none."""


def group_blocks(
    chosen: Sequence[tuple[int, Flags]], limit: int = BATCH_BLOCKS_MAX
) -> list[list[tuple[int, Flags]]]:
    """Cuts pieces and their chosen blocks into groups of at most `limit` blocks.

    A piece may go to two groups, so all but the last group are full.
    """
    groups: list[list[tuple[int, Flags]]] = []
    room = 0
    for index, flags in chosen:
        places = np.flatnonzero(flags)
        while len(places):
            if not room:
                groups.append([])
                room = limit
            part = np.zeros_like(flags)
            part[places[:room]] = True
            groups[-1].append((index, part))
            taken = min(room, len(places))
            room -= taken
            places = places[taken:]
    return groups


def build_batch(repairs: Sequence[Repair]) -> tuple[bytes, bytes]:
    """Headers and payload of the resync batch that carries these repairs.

    The repairs have at most `BATCH_BLOCKS_MAX` blocks together.
    """
    headers: list[Headers] = []
    payloads: list[bytes] = []
    for repair in repairs:
        _add_repair(repair, headers, payloads)
    return b"".join(part.astype("<u8").tobytes() for part in headers), b"".join(payloads)


def _add_repair(repair: Repair, headers: list[Headers], payloads: list[bytes]) -> None:
    sectors = len(repair.data) // SECTOR_BYTES
    chosen = np.flatnonzero(repair.blocks)
    is_whole = (chosen + 1) * BLOCK_SECTORS <= sectors
    if repair.excluded is not None:
        blocks = -(-sectors // BLOCK_SECTORS)
        padded = np.zeros(blocks * BLOCK_SECTORS, np.bool_)
        padded[:sectors] = repair.excluded
        is_touched: Flags = np.asarray(padded.reshape(-1, BLOCK_SECTORS).any(axis=1))
        is_whole &= ~is_touched[chosen]
    whole = chosen[is_whole]
    end = sectors // BLOCK_SECTORS * PAYLOAD_BYTES
    content = np.frombuffer(memoryview(repair.data)[:end], "<u8").reshape(-1, PAYLOAD_BYTES // 8)
    is_zero = ~content[whole].any(axis=1) if len(whole) else np.zeros(0, np.bool_)

    written = whole[~is_zero]
    if len(written):
        first = written.astype(np.uint64) * np.uint64(BLOCK_SECTORS) + np.uint64(repair.sector)
        headers.append(encode(op=Op.WRITE, sector=first))
        payloads.append(content[written].tobytes())
    _add_zeroes(repair.sector, whole[is_zero], headers, payloads)
    for block in chosen[~is_whole].tolist():
        _add_part(repair, block, sectors, headers, payloads)


def _add_zeroes(
    sector: int, blocks: NDArray[np.int64], headers: list[Headers], payloads: list[bytes]
) -> None:
    """One slot for each run of blocks of zeros."""
    if not len(blocks):
        return
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    for run in np.split(blocks, breaks):
        at = np.array([sector + int(run[0]) * BLOCK_SECTORS], np.uint64)
        headers.append(encode(op=Op.WRITE_ZEROES, sector=at))
        length = len(run) * BLOCK_SECTORS
        payloads.append(length.to_bytes(8, "little").ljust(PAYLOAD_BYTES, b"\0"))


def _add_part(
    repair: Repair, block: int, sectors: int, headers: list[Headers], payloads: list[bytes]
) -> None:
    """A block that is sent in part, since a live batch has the rest or the device ends."""
    at, stop = block * BLOCK_SECTORS, min((block + 1) * BLOCK_SECTORS, sectors)
    left_out = repair.excluded
    while at < stop:
        end = at
        while end < stop and (left_out is None or not left_out[end]):
            end += 1
        if end > at:
            first = np.array([repair.sector + at], np.uint64)
            headers.append(encode(op=Op.WRITE, sector=first, sectors=end - at))
            piece = bytes(memoryview(repair.data)[at * SECTOR_BYTES : end * SECTOR_BYTES])
            payloads.append(piece.ljust(PAYLOAD_BYTES, b"\0"))
        at = end + 1


# Pace.


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """How fast a scan may go."""

    rate: float | None = None
    """Bytes of the device a second; None for as fast as it goes."""
    behind_slots: int = 4096
    """While so many slots wait to be dispatched, live replication comes first."""
    floor: float = 16 << 20
    """Bytes a second that a scan gets even then."""
    burst_s: float = 0.25
    """What was not used is kept for so long."""


class Pace:
    """A token bucket whose rate falls while live replication is behind."""

    def __init__(self, settings: PaceSettings) -> None:
        self.settings = settings
        self._tokens = 0.0
        self._at_s: float | None = None

    def rate(self, *, behind_slots: int) -> float | None:
        """Bytes a second now; None for no limit."""
        settings = self.settings
        if behind_slots <= settings.behind_slots:
            return settings.rate
        return settings.floor if settings.rate is None else min(settings.floor, settings.rate)

    def may_take(self, *, now_s: float, behind_slots: int) -> bool:
        """Whether some work may be taken now; then `take` must say how much it was."""
        rate = self.rate(behind_slots=behind_slots)
        passed_s = now_s - self._at_s if self._at_s is not None else 0.0
        self._at_s = now_s
        if rate is None:
            self._tokens = 0.0
            return True
        burst = rate * self.settings.burst_s
        self._tokens = min(burst, self._tokens + passed_s * rate)
        return self._tokens >= 0

    def take(self, size: int) -> None:
        """`size` bytes were taken; more than there were, the next wait is longer."""
        self._tokens -= size
