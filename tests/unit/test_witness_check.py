# SPDX-License-Identifier: GPL-2.0-only
"""What a device turns out to be, by what was kept of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.target.verdict import Verdict, kinship
from bdr.common.target.witness import Witness, digest_of
from bdr.common.target.witness_check import (
    Evidence,
    Finding,
    Outcome,
    Versions,
    contents,
    of_another_moment,
)
from bdr.common.wire.condition import Condition
from tests.support.target_rig import HELLO
from tests.unit.test_witness import RECORD, MemoryDevice, job

FITS, NO_DATA, TORN, DIFFERS, UNREADABLE = Finding
SAME, OTHER_MOMENT, OTHER_DISK = Outcome


@pytest.mark.parametrize(
    ("fixed", "recent", "outcome"),
    [
        ([], [], SAME),
        ([FITS], [FITS], SAME),
        ([FITS, NO_DATA, TORN], [NO_DATA, TORN], SAME),
        ([], [DIFFERS], OTHER_MOMENT),
        ([FITS], [FITS, DIFFERS], OTHER_MOMENT),
        ([FITS], [DIFFERS] * 9, OTHER_MOMENT),
        # Of a disk that went back some fixed places were written since.
        ([FITS, DIFFERS], [], OTHER_MOMENT),
        ([FITS, DIFFERS], [DIFFERS], OTHER_MOMENT),
        ([DIFFERS], [], OTHER_DISK),
        ([DIFFERS], [FITS], OTHER_DISK),
        ([FITS, DIFFERS, DIFFERS], [FITS], OTHER_DISK),
        # Zeros are on every blank device, and torn sectors are none of either.
        ([DIFFERS, NO_DATA, NO_DATA], [FITS], OTHER_DISK),
        ([DIFFERS, TORN, TORN], [FITS], OTHER_DISK),
        # What cannot be read is unknown: neither the same nor another disk.
        ([UNREADABLE], [], OTHER_MOMENT),
        ([FITS], [UNREADABLE], OTHER_MOMENT),
        ([UNREADABLE] * 9, [FITS], OTHER_MOMENT),
    ],
)
def test_outcome(fixed: list[Finding], recent: list[Finding], outcome: Outcome) -> None:
    assert Evidence(tuple(fixed), tuple(recent)).outcome is outcome


def test_outcome_of_every_evidence_follows_three_rules() -> None:
    for fixed in itertools.product(Finding, repeat=3):
        for recent in itertools.product(Finding, repeat=2):
            outcome = Evidence(fixed, recent).outcome
            assert (outcome is OTHER_DISK) == (fixed.count(DIFFERS) > fixed.count(FITS))
            if outcome is SAME:
                assert not {DIFFERS, UNREADABLE} & {*fixed, *recent}


def findings(device: MemoryDevice, versions: Versions) -> tuple[Finding, ...]:
    evidence = versions.evidence(contents(device, versions.witness))
    return evidence.fixed + evidence.recent


def kept(device: MemoryDevice, *, fixed: int = 5, recent: int = 9) -> Witness:
    witness = Witness()
    witness.fixed[fixed] = device.digest(fixed)
    witness.recent[recent] = device.digest(recent)
    return witness


def put(device: MemoryDevice, sector: int, data: bytes) -> None:
    device.content[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = data


def test_sector_is_the_checkpoints_or_that_of_any_entry_behind_it() -> None:
    device = MemoryDevice()
    device.apply(*job((Op.WRITE, 0, 16)))
    versions = Versions(kept(device))
    first, second = job((Op.WRITE, 4, 8)), job((Op.DISCARD, 9, 1), (Op.WRITE, 5, 1))
    assert findings(device, versions) == (FITS, FITS)
    device.apply(*first)
    assert findings(device, versions) == (DIFFERS, DIFFERS)
    versions.add(*first)
    assert findings(device, versions) == (FITS, FITS)
    device.apply(*second)
    versions.add(*second)
    assert findings(device, versions) == (FITS, NO_DATA)


def test_torn_sector_begins_as_what_was_being_written() -> None:
    device = MemoryDevice()
    device.apply(*job((Op.WRITE, 0, 16)))
    versions = Versions(kept(device))
    extents, payload = job((Op.WRITE, 5, 1))
    versions.add(extents, payload)
    old = bytes(device.content[5 * SECTOR_BYTES : 6 * SECTOR_BYTES])
    for torn in (1, 100, 511):
        put(device, 5, payload[:torn] + old[torn:])
        assert findings(device, versions)[0] is TORN
    put(device, 5, bytes([payload[0] ^ 1]) + payload[1:512])
    assert findings(device, versions)[0] is DIFFERS


def test_unreadable_sector_is_unknown() -> None:
    device = MemoryDevice()
    versions = Versions(kept(device))
    device.unreadable = {9}
    assert findings(device, versions) == (NO_DATA, UNREADABLE)


def test_blank_device_under_data_is_another_one_and_blank_under_blank_is_not() -> None:
    device = MemoryDevice()
    device.apply(*job((Op.WRITE, 0, 16)))
    versions = Versions(kept(device))
    assert versions.evidence(contents(MemoryDevice(), versions.witness)).outcome is OTHER_DISK
    versions = Versions(kept(MemoryDevice()))
    assert versions.evidence(contents(MemoryDevice(), versions.witness)).outcome is SAME


def test_record_of_another_moment_has_everything_compared_by_its_own_source() -> None:
    record = replace(
        RECORD,
        volume=HELLO.volume,
        source=HELLO.source,
        generation=HELLO.generations[0],
        stream=HELLO.stream,
        slot=HELLO.head,
        changes=HELLO.counted,
        condition=Condition.CONSISTENT,
    )
    assert kinship(HELLO, record, is_blank=False).verdict is Verdict.RESUME
    found = of_another_moment(record)
    assert kinship(HELLO, found, is_blank=False).verdict is Verdict.COMPARE
    assert found.condition is Condition.UNKNOWN
    # A source that went back is still recognised, and another one refused.
    reverted = replace(HELLO, generations=(b"another.",))
    assert kinship(reverted, found, is_blank=False).verdict is Verdict.TWO_HISTORIES
    other = replace(HELLO, source=b"another-source..")
    assert kinship(other, found, is_blank=False).verdict is Verdict.UNRELATED


def test_digest_is_the_same_of_any_buffer() -> None:
    data = bytes(range(256)) * 2
    assert digest_of(data) == digest_of(memoryview(data))
