# SPDX-License-Identifier: GPL-2.0-only
"""Recovery's decision tables: each case by its name, and nothing applied when refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.errors import StateError
from bdr.common.journal import format as journal_format
from bdr.common.journal import recovery as journal_recovery
from bdr.common.journal.engine import begin_run, open_run
from bdr.common.journal.format import (
    BLOCK_BYTES,
    COPIES,
    HEADER_ENTRY_BYTES,
    LOG_OFFSET,
    Copy,
    Cursor,
    EntryHeader,
    Superblock,
)
from bdr.common.journal.recovery import (
    VERDICTS,
    Found,
    JournalRefusedError,
    Truth,
    Verdict,
    choose,
    recover,
    truth,
)
from bdr.common.ring.layout import Op
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord
from bdr.common.wire.condition import Condition
from tests.unit.journal_rig import DEVICE_SECTORS, JOURNAL_ID, RECORD, Target

JOBS_BEFORE = 3


def with_jobs(count: int = JOBS_BEFORE) -> Target:
    """A target with so many committed jobs of one slot, none applied, one group each."""
    target = Target()
    for at in range(count):
        target.add(target.jobs.write([at * 8], b"job %d" % at))
    return target


def header_at(target: Target, index: int) -> tuple[int, EntryHeader]:
    """Offset and header of the entry with this index, each of one slot."""
    offset = LOG_OFFSET + index * journal_format.entry_bytes(1)
    header = journal_format.decode_entry_header(target.journal.read(offset, BLOCK_BYTES))
    assert header is not None
    return offset, header


def put(target: Target, offset: int, data: bytes) -> None:
    """Changes the disk behind everyone's back."""
    target.journal.disk.content[offset : offset + len(data)] = data


def forge(target: Target, index: int, **changes: object) -> None:
    """Writes an entry anew with other fields, under checksums that fit."""
    offset, header = header_at(target, index)
    meta = bytearray(target.journal.read(offset, BLOCK_BYTES))
    payload = target.journal.read(offset + BLOCK_BYTES, 4096)
    journal_format._seal(meta, payload, replace(header, **changes))  # type: ignore[arg-type]
    put(target, offset, bytes(meta))


def refused(target: Target, **arguments: object) -> str:
    """The message of the refusal; checks that nothing was written or applied."""
    before = target.content, bytes(target.journal.disk.content)
    with pytest.raises(JournalRefusedError) as caught:
        target.recover(**arguments)  # type: ignore[arg-type]
    assert (target.content, bytes(target.journal.disk.content)) == before
    assert caught.value.exit_code == StateError.exit_code
    message = str(caught.value)
    assert "found" in message
    assert "wanted" in message
    return message


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


@pytest.mark.parametrize("sector", range(journal_format.entry_bytes(1) // 512))
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
    assert found.ended_by is (Found.TORN_BODY if sector else Found.NO_HEADER)


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


def test_hole_in_what_was_durable_is_refused() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    put(target, offset + BLOCK_BYTES + 100, b"rot")
    assert "acknowledged as durable once" in refused(target)


def test_hole_that_only_the_superblock_knows_of_is_refused() -> None:
    target = with_jobs()
    target.engine.apply_next()
    target.engine.checkpoint()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    assert "acknowledged as durable once" in refused(target)


def test_hole_whose_witness_stands_a_lap_further_is_refused() -> None:
    target = Target(blocks=12)
    for at in range(6):
        target.add(target.jobs.write([at * 8], b"x"))
    target.apply_all()
    target.engine.checkpoint()
    target.engine.checkpoint()
    for at in range(3):
        target.add(target.jobs.write([at * 8, 100 + at * 8], b"y"))
    put(target, LOG_OFFSET, bytes(512))
    assert "acknowledged as durable once" in refused(target)


def test_later_entries_of_the_same_group_are_no_witness() -> None:
    target = with_jobs()
    target.add(*(target.jobs.write([at * 8], b"group") for at in range(4)))
    offset, _ = header_at(target, 4)
    put(target, offset, bytes(512))
    found = target.recover()
    assert found.jobs == 4


def test_payload_that_looks_like_a_witness_is_none() -> None:
    target = with_jobs(2)
    _, header = header_at(target, 1)
    fake = bytearray(BLOCK_BYTES)
    journal_format._seal(fake, b"", replace(header, durable=99, cursor=Cursor(0, 99)))
    job = target.jobs.write([0], b"x")
    target.engine.append(replace(job, payload=bytes(fake)))
    target.engine.commit()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    assert target.recover().jobs == 2


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (Found.NEWER, {"run": 99}),
        (Found.NEWER, {"cursor": Cursor(1 << 40, 99)}),
        (Found.MISPLACED, {"cursor": Cursor(2 * journal_format.entry_bytes(1), 99)}),
        (Found.IMPOSSIBLE, {"blocks": 3}),
        (Found.IMPOSSIBLE, {"blocks": 0}),
        (Found.IMPOSSIBLE, {"slots": 0}),
        (Found.IMPOSSIBLE, {"slots": 1025, "blocks": 1028}),
        (Found.IMPOSSIBLE, {"slots": 1024, "blocks": 1027}),
        (Found.IMPOSSIBLE, {"kind": journal_format.Kind.SKIP}),
        (Found.DISCONTINUOUS, {"stream": bytes(16)}),
        (Found.DISCONTINUOUS, {"epoch": 4}),
        (Found.DISCONTINUOUS, {"slot": 11}),
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


# Superblock.


@pytest.mark.parametrize("damaged", range(COPIES))
@pytest.mark.parametrize("how", ["zeroed", "torn", "foreign"])
def test_either_copy_alone_recovers_everything_at_any_moment(damaged: int, how: str) -> None:
    target = Target(blocks=16)
    wrong = {
        "zeroed": bytes(4096),
        "torn": journal_format.SUPERBLOCK_MAGIC,
        "foreign": b"\xeb" * 4096,
    }
    for at in range(40):
        job = target.jobs.write([at % 100 * 8], b"%d" % at)
        while not target.engine.fits(1):
            target.apply_all()
            target.engine.checkpoint()
        target.add(job)
        if at % 3 == 0:
            target.engine.apply_next()
        if at % 5 == 0:
            target.engine.checkpoint()
        whole = bytes(target.journal.disk.content)
        put(target, damaged * BLOCK_BYTES, wrong[how])
        found = target.recover()
        assert found.record == target.jobs.record
        assert Copy.INTACT in found.copies
        put(target, 0, whole)


@pytest.mark.parametrize("damaged", range(COPIES))
def test_both_copies_are_intact_again_after_recovery(damaged: int) -> None:
    target = with_jobs()
    put(target, damaged * BLOCK_BYTES, b"\xff" * 100)
    found = target.restart()
    assert found.jobs == JOBS_BEFORE
    assert set(target.recover().copies) == {Copy.INTACT}


def test_both_copies_damaged_are_refused() -> None:
    target = with_jobs()
    put(target, 100, b"\xff")
    put(target, BLOCK_BYTES + 100, b"\xff")
    assert "copy 0 damaged and copy 1 damaged" in refused(target)


def test_damaged_and_blank_copies_are_refused() -> None:
    target = with_jobs()
    put(target, 100, b"\xff")
    put(target, BLOCK_BYTES, bytes(BLOCK_BYTES))
    assert "copy 0 damaged and copy 1 blank" in refused(target)


def test_foreign_bytes_are_refused() -> None:
    target = with_jobs()
    put(target, 0, b"#!/bin/sh\n" * 900)
    assert "no journal" in refused(target)


@pytest.mark.parametrize("copies", [(0,), (1,), (0, 1)])
def test_other_version_is_refused_even_beside_an_intact_copy(
    copies: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = with_jobs()
    superblock = target.recover().superblock
    monkeypatch.setattr(journal_format, "VERSION", 2)
    block = journal_format.encode_superblock(superblock)
    monkeypatch.setattr(journal_format, "VERSION", 1)
    for copy in copies:
        put(target, copy * BLOCK_BYTES, block)
    message = refused(target)
    assert "found format version 2; wanted version 1" in message


def test_truncation_at_every_512_bytes_is_refused() -> None:
    target = with_jobs()
    whole = target.journal.disk.content
    assert len(whole) == LOG_OFFSET + 32 * BLOCK_BYTES
    for length in range(512, len(whole), 512):
        target.journal.disk.content = whole[:length]
        refused(target)


def test_flipped_bits_of_the_superblock_never_change_what_is_found() -> None:
    target = with_jobs()
    wanted = target.recover()
    whole = bytes(target.journal.disk.content)
    for bit in range(0, 2 * BLOCK_BYTES * 8, 61):
        put(target, bit // 8, bytes([whole[bit // 8] ^ 1 << bit % 8]))
        found = target.recover()
        assert (found.record, found.end, found.jobs) == (wanted.record, wanted.end, wanted.jobs)
        put(target, bit // 8, whole[bit // 8 : bit // 8 + 1])


def test_flipped_bits_of_an_acknowledged_entry_are_refused() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    whole = bytes(target.journal.disk.content)
    for bit in [*range(HEADER_ENTRY_BYTES * 8), *range(HEADER_ENTRY_BYTES * 8, 8192 * 8, 509)]:
        put(target, offset + bit // 8, bytes([whole[offset + bit // 8] ^ 1 << bit % 8]))
        refused(target)
        put(target, offset + bit // 8, whole[offset + bit // 8 : offset + bit // 8 + 1])


def test_read_that_differs_at_replay_is_refused() -> None:
    target = with_jobs()
    found = target.recover()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    with pytest.raises(JournalRefusedError, match="that was there before"):
        open_run(target.journal, target.device, found)


# State file and journal.


def superblock_with(**changes: object) -> Superblock:
    return replace(Target().recover().superblock, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "superblock", "wanted"),
    [
        (NO_JOURNAL, None, Truth.STATE),
        (NO_JOURNAL, superblock_with(is_closed=True), Truth.STATE),
        (NO_JOURNAL, superblock_with(), Truth.UNCLAIMED),
        (JOURNAL_ID, None, Truth.MISSING),
        (JOURNAL_ID, superblock_with(), Truth.JOURNAL),
        (JOURNAL_ID, superblock_with(is_closed=True), Truth.JOURNAL),
        (JOURNAL_ID, superblock_with(journal=b"x" * 16), Truth.ANOTHER),
    ],
)
def test_truth_of_state_file_and_journal(
    owner: bytes, superblock: Superblock | None, wanted: Truth
) -> None:
    assert truth(owner, superblock) is wanted


def test_closed_journal_is_empty_and_has_the_record() -> None:
    target = with_jobs()
    target.apply_all()
    record = target.engine.close()
    found = target.recover()
    assert found.superblock.is_closed
    assert (found.jobs, found.record, record) == (0, target.jobs.record, target.jobs.record)


def test_size_may_change_while_the_log_is_empty() -> None:
    target = with_jobs()
    found = target.recover()
    for entry in journal_recovery.replay(target.journal.read, found):
        target.device.apply(entry.extents, entry.payload)
    bigger = 64 * BLOCK_BYTES
    target.journal.disk.content.extend(bytes(bigger))
    superblock = begin_run(
        target.journal, found.superblock, at=found.end, record=found.record, log_bytes=bigger
    )
    target.start(superblock)
    for at in range(25):
        target.add(target.jobs.write([at * 8], b"more"))
    assert target.recover().jobs == 25
    assert target.restart().record == target.jobs.record
    assert target.content == bytes(target.jobs.content)


def test_choose_takes_the_higher_generation() -> None:
    target = with_jobs()
    target.apply_all()
    for _ in range(3):
        target.engine.checkpoint()
        superblock, _ = choose(target.journal.read, where="j")
        assert superblock == target.engine.superblock


def test_record_of_an_entry_keeps_volume_and_size() -> None:
    target = with_jobs()
    record = target.recover().record
    assert isinstance(record, ReplicaRecord)
    assert (record.volume, record.device_sectors) == ("vol", DEVICE_SECTORS)
