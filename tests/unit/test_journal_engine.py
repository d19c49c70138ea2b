# SPDX-License-Identifier: GPL-2.0-only
"""The engine's steps, stopped or failing at one place each: the device holds a prefix."""

from __future__ import annotations

from random import Random

import pytest

from bdr.common.errors import DeviceError, InternalError, StateError
from bdr.common.journal import engine as journal_engine
from bdr.common.journal import torn_tail
from bdr.common.journal.entry_reader import Found
from bdr.common.journal.layout import BLOCK_BYTES
from tests.unit.journal_rig import Target


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that jobs are read back, and groups synced, within a short life."""
    monkeypatch.setattr(journal_engine, "KEPT_BYTES_MAX", 6 * BLOCK_BYTES)
    monkeypatch.setattr(journal_engine, "UNSYNCED_BYTES_MAX", 14 * BLOCK_BYTES)
    monkeypatch.setattr(torn_tail, "WITNESS_BYTES", 28 * BLOCK_BYTES)


def test_kill_between_append_and_commit_keeps_or_loses_whole_jobs() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    target.engine.append(target.jobs.write([8], b"b"))
    found = target.restart()
    assert found.jobs == 2  # kill -9: what was written is there, and is made durable first
    assert target.content == bytes(target.jobs.content)


def test_power_cut_between_append_and_commit_loses_what_was_not_acknowledged() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    acknowledged = target.jobs.record
    target.engine.append(target.jobs.write([8], b"b"))
    target.cut_power()
    found = target.restart()
    assert (found.jobs, found.record) == (1, acknowledged)
    assert target.content == bytes(target.jobs.content)


def test_kill_between_commit_and_apply_applies_at_start() -> None:
    target = Target()
    target.add(target.jobs.write([0, 8, 16], b"a"))
    assert not any(target.content)
    target.restart()
    assert target.content == bytes(target.jobs.content)


@pytest.mark.parametrize("seed", range(8))
def test_power_cut_between_apply_and_checkpoint_applies_again(seed: int) -> None:
    target = Target()
    for at in range(6):
        target.add(target.jobs.write([0, at * 8], b"%d" % at))
    target.apply_all()
    target.cut_power(Random(seed))  # the device keeps any mixture
    assert target.restart().jobs == 6
    assert target.content == bytes(target.jobs.content)


def test_power_cut_between_device_sync_and_superblock_applies_again() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    target.apply_all()
    target.device.sync()
    target.cut_power()
    assert target.restart().jobs == 1
    assert target.content == bytes(target.jobs.content)


@pytest.mark.parametrize("sectors", range(9))
def test_power_cut_within_the_superblocks_write_leaves_the_other_copy(sectors: int) -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    target.apply_all()
    before = target.engine.superblock
    whole = bytes(target.journal.disk.content)
    target.engine.checkpoint()
    torn = bytearray(target.journal.disk.content)
    at = target.engine.superblock.offset
    torn[at + sectors * 512 : at + BLOCK_BYTES] = whole[at + sectors * 512 : at + BLOCK_BYTES]
    target.journal.disk.content = torn
    found = target.recover()
    assert found.superblock in (before, target.engine.superblock)
    assert target.restart().record == target.jobs.record
    assert target.content == bytes(target.jobs.content)


def test_checkpoint_is_durable_when_it_returns() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    target.apply_all()
    target.engine.checkpoint()
    target.cut_power()
    found = target.recover()
    assert (found.jobs, found.superblock) == (0, target.engine.superblock)
    assert target.content == bytes(target.jobs.content)


def test_device_failing_within_apply_loses_nothing() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"), target.jobs.write([8], b"b"))
    target.device.disk.fails_write = "EIO"
    with pytest.raises(DeviceError):
        target.engine.apply_next()
    assert target.restart().jobs == 2
    assert target.content == bytes(target.jobs.content)


@pytest.mark.parametrize("seed", range(8))
def test_device_failing_its_sync_loses_nothing(seed: int) -> None:
    target = Target()
    for at in range(6):
        target.add(target.jobs.write([0, at * 8], b"%d" % at))
    target.apply_all()
    before = target.engine.superblock
    target.device.disk.fails_sync = "EIO"
    with pytest.raises(DeviceError):
        target.engine.checkpoint()
    assert target.engine.superblock == before
    target.cut_power(Random(seed))
    target.restart()
    assert target.content == bytes(target.jobs.content)


def test_journal_failing_within_append_keeps_what_was_acknowledged() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    acknowledged = target.jobs.record
    target.journal.disk.fails_write = "ENOSPC"
    with pytest.raises(StateError):
        target.engine.append(target.jobs.write([8, 16], b"b"))
    found = target.restart()
    assert (found.record, found.ended_by) == (acknowledged, Found.TORN_BODY)
    assert target.content == bytes(target.jobs.content)


@pytest.mark.parametrize("seed", range(8))
def test_journal_failing_its_sync_keeps_what_was_acknowledged(seed: int) -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    acknowledged = target.jobs.record
    target.engine.append(target.jobs.write([8], b"b"))
    later = target.jobs.record
    target.journal.disk.fails_sync = "EIO"
    with pytest.raises(StateError):
        target.engine.commit()
    target.cut_power(Random(seed))  # or what `JournalFile.settle` sees
    assert target.restart().record in (acknowledged, later)
    assert target.content == bytes(target.jobs.content)


def test_full_journal_takes_no_more_until_both_copies_have_moved() -> None:
    target = Target(blocks=8)
    while target.engine.fits(1):
        target.add(target.jobs.write([0], b"x"))
    with pytest.raises(InternalError):
        target.engine.append(target.jobs.write([0], b"x"))
    target.apply_all()
    assert not target.engine.fits(1)
    target.engine.checkpoint()
    assert not target.engine.fits(1)
    assert target.engine.can_free
    target.engine.checkpoint()
    assert target.engine.fits(1)
    assert not target.engine.can_free


def test_close_with_unapplied_jobs_is_a_bug() -> None:
    target = Target()
    target.add(target.jobs.write([0], b"a"))
    with pytest.raises(InternalError):
        target.engine.close()


@pytest.mark.usefixtures("small_limits")
def test_backlog_beyond_memory_is_read_back_from_the_journal() -> None:
    target = Target(blocks=40)
    for at in range(15):
        target.add(target.jobs.write([at * 8], b"%d" % at))
    assert sum(end.position - at.position for at, end, _ in target.engine._kept) <= 6 * BLOCK_BYTES
    target.apply_all()
    assert target.content == bytes(target.jobs.content)


@pytest.mark.usefixtures("small_limits")
def test_jobs_that_were_applied_make_room_in_memory_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(blocks=40)
    monkeypatch.setattr(target.journal, "read", None)  # none is read back
    for at in range(15):
        target.add(target.jobs.write([at * 8], b"%d" % at))
        target.apply_all()
    assert target.content == bytes(target.jobs.content)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("block", [pytest.param(30, id="header"), pytest.param(31, id="payload")])
def test_backlog_that_does_not_read_back_stops_the_applying(block: int) -> None:
    target = Target(blocks=40)
    for at in range(15):
        target.add(target.jobs.write([at * 8], b"%d" % at))
    target.journal.disk.content[block * BLOCK_BYTES] ^= 1
    with pytest.raises(StateError, match="wanted the entry that was written there"):
        target.apply_all()


@pytest.mark.usefixtures("small_limits")
def test_group_is_synced_before_a_witness_could_stand_too_far_away() -> None:
    target = Target(blocks=40)
    for at in range(12):
        target.engine.append(target.jobs.write([at * 8], b"x"))
        assert target.engine._unsynced_bytes <= 14 * BLOCK_BYTES
    assert target.engine.unapplied_bytes
