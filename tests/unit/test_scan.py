# SPDX-License-Identifier: GPL-2.0-only
"""What a scan plans, compares and sends, against plain Python that does it sector by sector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Op
from bdr.common.ring.slots import encode
from bdr.common.scan.digests import block_digests, differing
from bdr.common.scan.plan import CHUNK_SECTORS, plan_chunks
from bdr.common.scan.repair import BATCH_BLOCKS_MAX, Repair, build_batch, group_blocks
from bdr.common.source.exclusions import Covered, Exclusions
from bdr.common.source.rate_limit import ScanRateLimit, ScanRateSettings
from bdr.common.target.extents import plan

FLAGS = st.lists(st.booleans(), min_size=1, max_size=80)


@given(FLAGS, st.sampled_from([8, 128, 2048, 8192]), st.integers(0, 3), st.integers(1, 100))
def test_pieces_cover_the_dirty_regions_and_nothing_else(
    dirty: list[bool], region_sectors: int, skipped: int, last_sectors: int
) -> None:
    first = skipped * 64
    device = (first + len(dirty) - 1) * region_sectors + min(last_sectors, region_sectors)
    chunks = plan_chunks(
        np.array(dirty), first_region=first, region_sectors=region_sectors, device_sectors=device
    )
    covered = [sector for begin, count in chunks for sector in range(begin, begin + count)]
    wanted = [
        sector
        for number, is_dirty in enumerate(dirty)
        if is_dirty
        for sector in range(
            (first + number) * region_sectors, min((first + number + 1) * region_sectors, device)
        )
    ]
    assert covered == wanted
    for begin, count in chunks:
        assert begin // CHUNK_SECTORS == (begin + count - 1) // CHUNK_SECTORS


@given(st.lists(st.tuples(st.integers(0, 50), FLAGS), max_size=8))
def test_groups_have_every_chosen_block_once_and_are_full(
    chosen: list[tuple[int, list[bool]]],
) -> None:
    chunks = [(index, np.array(flags)) for index, flags in enumerate(flags for _, flags in chosen)]
    groups = group_blocks(chunks, limit=7)
    found = [
        (index, block)
        for group in groups
        for index, flags in group
        for block in np.flatnonzero(flags).tolist()
    ]
    assert found == [(i, b) for i, flags in chunks for b in np.flatnonzero(flags).tolist()]
    sizes = [sum(int(flags.sum()) for _, flags in group) for group in groups]
    assert all(size == 7 for size in sizes[:-1])
    assert all(0 < size <= 7 for size in sizes)


@given(st.data())
def test_batch_makes_the_target_equal_where_it_may(data: st.DataObject) -> None:
    sectors = data.draw(st.integers(1, 80))
    sector = data.draw(st.integers(0, 5)) * 8
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    content = rng.integers(1, 256, sectors * SECTOR_BYTES, np.uint8)
    blocks = -(-sectors // 8)
    for block in range(blocks):
        if data.draw(st.booleans()):
            content[block * PAYLOAD_BYTES : (block + 1) * PAYLOAD_BYTES] = 0
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks)))
    excluded = None
    if data.draw(st.booleans()):
        excluded = np.array(data.draw(st.lists(st.booleans(), min_size=sectors, max_size=sectors)))
    repair = Repair(sector, content.tobytes(), chosen, excluded)
    headers, payload = build_batch([repair])
    assert len(payload) == len(headers) // 8 * PAYLOAD_BYTES
    extents = plan(headers, payload, device_sectors=sector + sectors)

    target = bytearray(b"\xff" * (sector + sectors) * SECTOR_BYTES)
    for op, at, length, source in zip(
        extents.op, extents.offset, extents.length, extents.source, strict=True
    ):
        is_write = op == Op.WRITE
        target[at : at + length] = payload[source : source + length] if is_write else bytes(length)
    for i in range(sectors):
        place = slice((sector + i) * SECTOR_BYTES, (sector + i + 1) * SECTOR_BYTES)
        is_sent = chosen[i // 8] and not (excluded is not None and excluded[i])
        wanted = content[i * SECTOR_BYTES : (i + 1) * SECTOR_BYTES].tobytes()
        assert target[place] == (wanted if is_sent else b"\xff" * SECTOR_BYTES)


def test_worst_case_fits_a_batch() -> None:
    """Every other sector of 256 blocks left out."""
    size = BATCH_BLOCKS_MAX * PAYLOAD_BYTES
    excluded = np.arange(size // SECTOR_BYTES) % 2 == 0
    repair = Repair(0, b"x" * size, np.ones(BATCH_BLOCKS_MAX, np.bool_), excluded)
    headers, _ = build_batch([repair])
    assert len(headers) // 8 == 1024


def test_zeros_go_as_one_slot() -> None:
    blocks = np.ones(256, np.bool_)
    headers, payload = build_batch([Repair(64, bytes(1 << 20), blocks)])
    extents = plan(headers, payload, device_sectors=1 << 20)
    assert (extents.op, extents.offset, extents.length) == ([Op.WRITE_ZEROES], [32768], [1 << 20])


def test_differing_blocks_are_found() -> None:
    one = bytearray(np.random.default_rng(1).bytes(10 * PAYLOAD_BYTES + 512))
    other = bytearray(one)
    other[3 * PAYLOAD_BYTES + 7] ^= 1
    other[-1] ^= 1
    differs = differing(block_digests(bytes(one)), block_digests(bytes(other)))
    assert np.flatnonzero(differs).tolist() == [3, 10]


# Exclusions.


@given(st.data())
def test_exclusions_are_what_a_loop_over_sectors_finds(data: st.DataObject) -> None:
    chunks, at = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        at += data.draw(st.integers(0, 20))
        count = data.draw(st.integers(1, 20))
        chunks.append((at, count))
        at += count
    slots = data.draw(
        st.lists(
            st.tuples(st.sampled_from(list(Op)), st.integers(0, 110), st.integers(1, 8)),
            min_size=1,
            max_size=20,
        )
    )
    headers = encode(
        op=np.array([op for op, _, _ in slots], np.uint64),
        sector=np.array([sector for _, sector, _ in slots], np.uint64),
        sectors=np.array([count for _, _, count in slots], np.uint64),
    )
    payload = b"".join((3 * n).to_bytes(8, "little").ljust(4096, b"\0") for _, _, n in slots)
    exclusions = Exclusions(chunks)
    exclusions.exclude(Covered.of(headers, payload))
    touched = set()
    for op, sector, count in slots:
        if op is Op.WRITE:
            touched |= set(range(sector, sector + count))
        elif op in (Op.DISCARD, Op.WRITE_ZEROES):
            touched |= set(range(sector, sector + 3 * count))
    every = [sector for begin, count in chunks for sector in range(begin, begin + count)]
    assert exclusions.flags.tolist() == [sector in touched for sector in every]


@pytest.mark.parametrize(
    ("sector", "sectors"),
    [
        pytest.param(0, 1, id="of a failed flush, whose header says sector 0"),
        pytest.param(8, 8, id="of a write that changed nothing, whose region is not marked"),
        pytest.param(16, 8, id="of a failed write, whose region is marked anew"),
    ],
)
def test_nop_excludes_nothing_from_a_repair(sector: int, sectors: int) -> None:
    """What it excluded would be brought by no live batch, and its region cleared."""
    header = encode(op=Op.NOP, sector=np.array([sector], np.uint64), sectors=sectors)
    exclusions = Exclusions([(0, 64)])
    exclusions.exclude(Covered.of(header, bytes(4096)))
    assert not exclusions.flags.any()


def test_range_to_the_end_of_all_numbers_is_cut() -> None:
    exclusions = Exclusions([(8, 8)])
    exclusions.exclude_range(12, (1 << 64) - 1)
    assert exclusions.flags.tolist() == [False] * 4 + [True] * 4


# The rate of a scan.


def taken_in(
    rate_limit: ScanRateLimit, seconds: float, *, behind: int = 0, size: int = 1 << 20
) -> int:
    total = 0
    for tick in range(int(seconds * 20)):
        while total < 1 << 40 and rate_limit.may_take(now_at=tick / 20, behind_slots=behind):
            rate_limit.take(size)
            total += size
            if rate_limit.rate(behind_slots=behind) is None:
                break
    return total


def test_rate_is_kept_over_time() -> None:
    rate_limit = ScanRateLimit(ScanRateSettings(rate=100 << 20))
    assert 0.9 < taken_in(rate_limit, 10) / (1000 << 20) < 1.1


def test_behind_it_falls_to_the_floor_and_not_below() -> None:
    rate_limit = ScanRateLimit(ScanRateSettings(rate=None, floor=16 << 20))
    assert 0.9 < taken_in(rate_limit, 10, behind=5000) / (160 << 20) < 1.2
    assert rate_limit.rate(behind_slots=0) is None
    assert ScanRateLimit(ScanRateSettings(rate=1 << 20)).rate(behind_slots=5000) == 1 << 20


def test_nothing_is_owed_after_a_time_without_limit() -> None:
    rate_limit = ScanRateLimit(ScanRateSettings(rate=None, floor=16 << 20))
    taken_in(rate_limit, 1)
    assert rate_limit.may_take(now_at=1.0, behind_slots=0)
    rate_limit.take(1 << 30)
    assert rate_limit.may_take(now_at=1.1, behind_slots=0)
    assert rate_limit.may_take(now_at=1.2, behind_slots=9999)
