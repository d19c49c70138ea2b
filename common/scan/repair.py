# SPDX-License-Identifier: GPL-2.0-only
"""The resync batch that repairs differences found by a scan.

It has the format of any batch. Blocks of zeros become WRITE_ZEROES, adjacent ones merged; sectors
that a live batch has covered meanwhile are excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, SLOT_SECTORS, Op
from bdr.common.ring.slots import Headers, encode
from bdr.common.scan.digests import BLOCK_SECTORS
from bdr.common.scan.plan import Flags
from bdr.common.wire.batch import BATCH_SLOTS_MAX
from bdr.common.wire.codec import Buffer

BATCH_BLOCKS_MAX = 256
"""These always fit a batch: at worst every other sector of each is excluded."""

assert BATCH_BLOCKS_MAX * SLOT_SECTORS // 2 <= BATCH_SLOTS_MAX


@dataclass(frozen=True, slots=True)
class Repair:
    """A differing chunk."""

    sector: int
    data: Buffer
    """The source's content."""
    blocks: Flags
    """Blocks to be sent."""
    excluded: Flags | None = None
    """Sectors that must not be sent; None: none."""


def group_blocks(
    chosen: Sequence[tuple[int, Flags]], limit: int = BATCH_BLOCKS_MAX
) -> list[list[tuple[int, Flags]]]:
    """Splits chunks and their chosen blocks into groups of at most `limit` blocks.

    A chunk may be split between two groups, so all but the last group are full.
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
    """A block that is sent partially, since live batches cover the rest or the device ends."""
    at, stop = block * BLOCK_SECTORS, min((block + 1) * BLOCK_SECTORS, sectors)
    left_out = repair.excluded
    while at < stop:
        end = at
        while end < stop and (left_out is None or not left_out[end]):
            end += 1
        if end > at:
            first = np.array([repair.sector + at], np.uint64)
            headers.append(encode(op=Op.WRITE, sector=first, sectors=end - at))
            chunk = bytes(memoryview(repair.data)[at * SECTOR_BYTES : end * SECTOR_BYTES])
            payloads.append(chunk.ljust(PAYLOAD_BYTES, b"\0"))
        at = end + 1
