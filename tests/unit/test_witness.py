# SPDX-License-Identifier: GPL-2.0-only
"""The witness of a device: what is kept, and that it follows every job."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.target.extents import NO_EXTENTS, Extents
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import (
    FIXED_MAX,
    RECENT_MAX,
    WITNESS_BYTES_MAX,
    ZEROS,
    Witness,
    apply_job,
    digest_of,
)
from bdr.common.wire.condition import Condition

SECTORS = 4096
RECORD = ReplicaRecord(volume="v", device_sectors=SECTORS, condition=Condition.CATCHING_UP)
CONSISTENT = ReplicaRecord(volume="v", device_sectors=SECTORS, condition=Condition.CONSISTENT)


class MemoryDevice:
    """In memory; some sectors may be unreadable."""

    def __init__(self, content: bytes | bytearray = bytes(SECTORS * SECTOR_BYTES)) -> None:
        self.content = bytearray(content)
        self.unreadable: set[int] = set()
        self.reads = 0

    def apply(self, extents: Extents, payload: bytes | memoryview) -> None:
        for op, offset, length, source in zip(
            extents.op, extents.offset, extents.length, extents.source, strict=True
        ):
            data = payload[source : source + length] if op == Op.WRITE else bytes(length)
            self.content[offset : offset + length] = data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.reads += 1
        first = offset // SECTOR_BYTES
        if self.unreadable & {*range(first, first + len(buffer) // SECTOR_BYTES)}:
            raise DeviceError("EIO")
        buffer[:] = self.content[offset : offset + len(buffer)]

    def digest(self, sector: int) -> int:
        return digest_of(bytes(self.content[sector * SECTOR_BYTES :][:SECTOR_BYTES]))


def job(*operations: tuple[Op, int, int], rng: Random | None = None) -> tuple[Extents, bytes]:
    """(operation, first sector, sectors) each, with random payload."""
    rng = rng or Random(str(operations))
    payload = b""
    extents = Extents([], [], [], [])
    for op, sector, sectors in operations:
        extents.op.append(op)
        extents.offset.append(sector * SECTOR_BYTES)
        extents.length.append(sectors * SECTOR_BYTES)
        extents.source.append(len(payload))
        payload += rng.randbytes(sectors * SECTOR_BYTES) if op == Op.WRITE else bytes(4096)
    return extents, payload


def is_true(witness: Witness, device: MemoryDevice) -> bool:
    """Whether every digest is that of what the device holds."""
    kept = {**witness.fixed, **witness.recent}
    return all(device.digest(sector) == digest for sector, digest in kept.items())


OPERATIONS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from((Op.WRITE, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)),
            st.integers(0, 255),
            st.integers(1, 24),
        ),
        min_size=1,
        max_size=12,
    ),
    max_size=30,
)


@given(jobs=OPERATIONS, seed=st.integers(0, 99))
def test_every_digest_is_that_of_the_device_after_any_jobs(
    jobs: list[list[tuple[Op, int, int]]], seed: int
) -> None:
    rng = Random(seed)
    device, witness = MemoryDevice(rng.randbytes(64 << 10) * 32), Witness()
    for at, operations in enumerate(jobs):
        record = CONSISTENT if at == len(jobs) // 2 else RECORD
        apply_job(device, witness, *job(*operations, rng=rng), record)
        assert is_true(witness, device)
        assert len(witness.recent) <= RECENT_MAX
        assert len(witness.fixed) <= FIXED_MAX
        last = operations[-1]
        assert witness.sectors, last
    decoded = Witness.decode(witness.encode())
    assert decoded is not None
    assert (decoded.fixed, list(decoded.recent.items()), decoded.is_taken) == (
        witness.fixed,
        list(witness.recent.items()),
        witness.is_taken,
    )


def test_each_job_leaves_a_trace_until_many_later_ones() -> None:
    device, witness = MemoryDevice(), Witness()
    for at in range(RECENT_MAX):
        apply_job(device, witness, *job((Op.WRITE, at * 16, 16)), RECORD)
        assert any(at * 16 <= sector < at * 16 + 16 for sector in witness.recent)
    apply_job(device, witness, *job((Op.WRITE, RECENT_MAX * 16, 16)), RECORD)
    assert len(witness.recent) == RECENT_MAX
    assert min(witness.recent) >= 16


def test_work_of_a_job_is_bounded() -> None:
    """However many extents it has, and however many of them write what is kept."""
    device, witness = MemoryDevice(), Witness()
    apply_job(device, witness, *job(*((Op.WRITE, at % 64, 8) for at in range(1024))), RECORD)
    assert len(witness.recent) <= 4


def test_fixed_places_are_read_once_when_it_becomes_consistent_and_hold_data() -> None:
    content = bytearray(SECTORS * SECTOR_BYTES)
    for sector in range(3, SECTORS, 100):
        content[sector * SECTOR_BYTES + 7] = 1
    device, witness = MemoryDevice(content), Witness()
    apply_job(device, witness, NO_EXTENTS, b"", RECORD)
    assert not device.reads
    apply_job(device, witness, NO_EXTENTS, b"", CONSISTENT)
    assert witness.is_taken
    assert len(witness.fixed) >= 4
    assert ZEROS not in witness.fixed.values()
    assert is_true(witness, device)
    reads = device.reads
    apply_job(device, witness, NO_EXTENTS, b"", CONSISTENT)
    assert device.reads == reads


def test_fixed_places_are_all_over_a_full_device() -> None:
    device, witness = MemoryDevice(Random(1).randbytes(SECTORS * SECTOR_BYTES)), Witness()
    apply_job(device, witness, NO_EXTENTS, b"", CONSISTENT)
    assert len(witness.fixed) == FIXED_MAX
    assert 0 in witness.fixed
    places = [*sorted(witness.fixed), SECTORS]
    assert max(after - before for before, after in pairwise(places)) < SECTORS // 8


def test_place_that_cannot_be_read_is_left_out() -> None:
    device, witness = MemoryDevice(Random(1).randbytes(SECTORS * SECTOR_BYTES)), Witness()
    device.unreadable = {0}
    apply_job(device, witness, NO_EXTENTS, b"", CONSISTENT)
    assert 0 not in witness.fixed
    assert len(witness.fixed) == FIXED_MAX


def test_what_is_written_to_an_empty_device_becomes_a_fixed_place() -> None:
    """Else a blank file would be like it."""
    device, witness = MemoryDevice(), Witness()
    apply_job(device, witness, NO_EXTENTS, b"", CONSISTENT)
    assert witness.fixed == {}
    for at in range(RECENT_MAX + 5):
        apply_job(device, witness, *job((Op.WRITE, at * 8, 8)), CONSISTENT)
    assert len(witness.fixed) == 5
    apply_job(device, witness, *job((Op.DISCARD, 0, SECTORS)), CONSISTENT)
    assert set(witness.fixed.values()) == {ZEROS}


def test_biggest_is_within_its_limit() -> None:
    witness = Witness()
    witness.fixed = dict.fromkeys(range(FIXED_MAX), 1)
    witness.recent = dict.fromkeys(range(FIXED_MAX, FIXED_MAX + RECENT_MAX), 1)
    assert len(witness.encode()) <= WITNESS_BYTES_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(8),
        bytes([2, 0, 0, 0, 0, 0, 0, 0]),
        bytes([1, 1, 0, 0, 0, 0, 0, 0]),
        bytes([1, 0, 1, 0, 0, 0, 0, 0]),
        bytes([0, 0, 2, 0, 0, 0, 0, 0]) + bytes(32),
        bytes([0, 0, 1, 0, 1, 0, 0, 0]) + bytes(32),
    ],
)
def test_other_bytes_are_no_witness(data: bytes) -> None:
    assert Witness.decode(data) is None
