# SPDX-License-Identifier: GPL-2.0-only
"""Runs of a journal: replayed, resized, closed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import BLOCK_BYTES, COPIES, LOG_OFFSET
from bdr.common.journal.replay import replay
from bdr.common.journal.run import begin_run, create, open_run
from bdr.common.journal.superblock_choice import choose
from tests.simulation.disk import Disk, PowerLostError
from tests.unit.journal_rig import JOURNAL_ID, RECORD, MemoryJournal, header_at, put, with_jobs


def test_closed_journal_is_empty_and_has_the_record() -> None:
    target = with_jobs()
    target.apply_all()
    record = target.engine.close()
    found = target.recover()
    assert found.superblock.is_closed
    assert (found.jobs, found.record, record) == (0, target.jobs.record, target.jobs.record)


@pytest.mark.parametrize("damaged", range(COPIES))
def test_closed_journal_is_closed_by_either_copy_alone(damaged: int) -> None:
    target = with_jobs()
    target.apply_all()
    target.engine.close()
    put(target, damaged * BLOCK_BYTES, bytes(BLOCK_BYTES))
    found = target.recover()
    assert found.superblock.is_closed
    assert (found.jobs, found.record) == (0, target.jobs.record)


def test_created_journal_is_closed_and_empty() -> None:
    journal = MemoryJournal(Disk(LOG_OFFSET + 8 * BLOCK_BYTES))
    created = create(
        journal, journal_id=JOURNAL_ID, log_bytes=8 * BLOCK_BYTES, record=replace(RECORD, slot=99)
    )
    superblock, _ = choose(journal.read, where="j")
    assert superblock == created
    assert (superblock.is_closed, superblock.record.slot) == (True, 99)


@pytest.mark.parametrize("accesses", range(2 * COPIES))
@pytest.mark.parametrize("seed", range(16))
def test_power_cut_while_a_run_begins_leaves_an_intact_copy(accesses: int, seed: int) -> None:
    target = with_jobs()
    found = target.recover()
    target.journal.disk.fuse = accesses
    with pytest.raises(PowerLostError):
        open_run(target.journal, target.device, found)
    target.cut_power(Random(seed))
    assert target.restart().record == found.record
    assert target.content == bytes(target.jobs.content)


def test_size_may_change_while_the_log_is_empty() -> None:
    target = with_jobs()
    found = target.recover()
    for entry in replay(target.journal.read, found):
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


def test_body_that_differs_at_replay_is_refused() -> None:
    target = with_jobs()
    found = target.recover()
    offset, _ = header_at(target, 2)
    put(target, offset + BLOCK_BYTES, bytes(512))
    with pytest.raises(JournalRefusedError):
        open_run(target.journal, target.device, found)


def test_read_that_differs_at_replay_is_refused() -> None:
    target = with_jobs()
    found = target.recover()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    with pytest.raises(JournalRefusedError, match="that was there before"):
        open_run(target.journal, target.device, found)
