# SPDX-License-Identifier: GPL-2.0-only
"""Recovery's decision table of the log: each case by its name, nothing applied when refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.journal.entry import HEADER_ENTRY_BYTES, Kind, entry_bytes
from bdr.common.journal.entry_reader import VERDICTS, Found, Verdict
from bdr.common.journal.layout import BLOCK_BYTES, LOG_OFFSET, Cursor
from bdr.common.journal.recovery import recover
from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.condition import Condition
from tests.unit.journal_rig import (
    DEVICE_SECTORS,
    RECORD,
    Target,
    forge,
    header_at,
    put,
    refused,
    with_jobs,
)

HEADER_SECTORS = HEADER_ENTRY_BYTES // SECTOR_BYTES

# What is taken.


def test_jobs_are_found_in_order_and_applied_again() -> None:
    target = with_jobs()
    found = target.restart()
    assert (found.jobs, found.slots, found.record) == (3, 3, target.jobs.record)
    assert found.ended_by is Found.NO_HEADER
    assert target.content == bytes(target.jobs.content)


def test_session_mark_zeroes_and_discard_are_found() -> None:
    target = Target()
    target.add(
        target.jobs.session(),
        target.jobs.write([0, 8], b"a"),
        target.jobs.write([0], b"", op=Op.DISCARD),
        target.jobs.mark(Condition.INCONSISTENT),
        target.jobs.write([8], b"", op=Op.WRITE_ZEROES),
    )
    found = target.restart()
    assert found.jobs == 5
    assert found.record == target.jobs.record
    assert (found.record.epoch, found.record.condition) == (4, Condition.INCONSISTENT)
    assert target.content == bytes(target.jobs.content)


def test_consistent_replica_is_still_consistent_after_a_crash() -> None:
    target = with_jobs()
    assert target.restart().record.at_start().condition is Condition.CONSISTENT


def test_empty_log_holds_the_checkpoints_record() -> None:
    found = Target().recover()
    assert (found.jobs, found.record, found.log_bytes_used) == (0, RECORD, 0)


def test_blank_journal_is_none() -> None:
    blank = bytes(1 << 20)
    found = recover(
        lambda offset, length: blank[offset : offset + length],
        where="j",
        size_bytes=len(blank),
        volume="vol",
        device_sectors=1,
    )
    assert found is None


def test_target_that_grew_is_taken() -> None:
    assert with_jobs().recover(device_sectors=DEVICE_SECTORS * 2).record.device_sectors == 2048


def test_log_full_to_the_brim_is_taken_whole() -> None:
    target = Target(blocks=8)
    for at in range(4):
        target.add(target.jobs.write([at * 8], b"x"))
    assert not target.engine.fits(0)
    found = target.restart()
    assert (found.jobs, found.ended_by) == (4, Found.LOG_FULL)
    assert target.content == bytes(target.jobs.content)


# Where the log ends.


def test_no_header_ends_the_log() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    found = target.recover()
    assert (found.jobs, found.ended_by) == (2, Found.NO_HEADER)


@pytest.mark.parametrize("sector", range(entry_bytes(1) // 512))
def test_torn_tail_is_cut_whichever_sector_is_lost(sector: int) -> None:
    target = with_jobs()
    offset, _ = header_at(target, 2)
    lost = offset + sector * 512
    if not any(target.journal.read(lost, 512)):
        put(target, lost, b"\xff" * 512)  # zeros that became something else
    else:
        put(target, lost, bytes(512))
    found = target.recover()
    assert found.jobs == 2
    assert found.ended_by is (Found.NO_HEADER if sector < HEADER_SECTORS else Found.TORN_BODY)


def test_entry_of_another_journal_ends_the_log() -> None:
    target = with_jobs()
    forge(target, 2, journal=bytes(range(16)))
    assert target.recover().ended_by is Found.OTHER_JOURNAL


def test_entry_of_an_older_lap_ends_the_log() -> None:
    target = Target(blocks=8)
    for at in range(6):
        target.add(target.jobs.write([at * 8], b"x"))
        target.apply_all()
        target.engine.checkpoint()
        target.engine.checkpoint()
    found = target.recover()
    assert (found.jobs, found.ended_by) == (0, Found.OLDER_LAP)


def test_entry_of_an_older_run_ends_the_log() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    put(target, offset, bytes(512))
    # The third entry stands intact behind the hole; no witness, so a torn tail is cut.
    forge(target, 2, durable=1)
    found = target.restart()
    assert found.jobs == 1
    # What is written in the lost one's place has its length and its sequence.
    target.add(target.jobs.write([800], b"other"))
    found = target.recover()
    assert (found.jobs, found.ended_by) == (1, Found.OLDER_RUN)
    assert found.record == target.jobs.record


# What is refused.


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (Found.NEWER, {"run": 99}),
        (Found.NEWER, {"cursor": Cursor(1 << 40, 99)}),
        (Found.MISPLACED, {"cursor": Cursor(2 * entry_bytes(1), 99)}),
        (Found.IMPOSSIBLE, {"blocks": 3}),
        (Found.IMPOSSIBLE, {"blocks": 0}),
        (Found.IMPOSSIBLE, {"slots": 0}),
        (Found.IMPOSSIBLE, {"slots": 1025, "blocks": 1028}),
        (Found.IMPOSSIBLE, {"slots": 1024, "blocks": 1027}),
        (Found.IMPOSSIBLE, {"kind": Kind.SKIP, "record": None}),
        (Found.DISCONTINUOUS, {"record_stream": bytes(16), "record_recent": ()}),
        (Found.DISCONTINUOUS, {"record_epoch": 4}),
        (Found.DISCONTINUOUS, {"record_slot": 11}),
    ],
)
def test_intact_entry_that_no_crash_leaves_is_refused(
    found: Found, changes: dict[str, object]
) -> None:
    target = with_jobs()
    forge(target, 2, **changes)
    assert found.value in refused(target)
    assert VERDICTS[found] is Verdict.REFUSE


def test_entry_outside_the_device_is_refused() -> None:
    target = with_jobs(1)
    job = target.jobs.write([0], b"x")
    headers = ((1 << 51) | (7 << 48) | DEVICE_SECTORS).to_bytes(8, "little")
    target.engine.append(replace(job, headers=headers))
    target.engine.commit()
    assert Found.OUTSIDE.value in refused(target)


def test_superblock_older_than_the_log_is_refused() -> None:
    target = Target(blocks=8)
    old = bytes(target.journal.read(0, LOG_OFFSET))
    for at in range(6):
        target.add(target.jobs.write([at * 8], b"x"))
        target.apply_all()
        target.engine.checkpoint()
        target.engine.checkpoint()
    put(target, 0, old)
    assert Found.NEWER.value in refused(target)


def test_other_volume_is_refused() -> None:
    assert "'vol'" in refused(with_jobs(), volume="other")


def test_smaller_target_is_refused() -> None:
    assert "1023" in refused(with_jobs(), device_sectors=1023)


def test_every_case_has_a_verdict() -> None:
    assert set(VERDICTS) == set(Found)


def test_verdict_of_every_case_is_used() -> None:
    assert set(VERDICTS.values()) == set(Verdict)


def test_truncation_at_every_512_bytes_is_refused() -> None:
    target = with_jobs()
    whole = target.journal.disk.content
    assert len(whole) == LOG_OFFSET + 32 * BLOCK_BYTES
    for length in range(512, len(whole), 512):
        target.journal.disk.content = whole[:length]
        refused(target)


def test_flipped_bits_of_an_acknowledged_entry_are_refused() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    whole = bytes(target.journal.disk.content)
    for bit in [*range(HEADER_ENTRY_BYTES * 8), *range(HEADER_ENTRY_BYTES * 8, 8192 * 8, 509)]:
        put(target, offset + bit // 8, bytes([whole[offset + bit // 8] ^ 1 << bit % 8]))
        refused(target)
        put(target, offset + bit // 8, whole[offset + bit // 8 : offset + bit // 8 + 1])


def test_record_of_an_entry_keeps_volume_and_size() -> None:
    target = with_jobs()
    record = target.recover().record
    assert isinstance(record, ReplicaRecord)
    assert (record.volume, record.device_sectors) == ("vol", DEVICE_SECTORS)
