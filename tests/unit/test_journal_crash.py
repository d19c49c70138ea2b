# SPDX-License-Identifier: GPL-2.0-only
"""The journal's steps under crashes: whatever happens when, the device holds a prefix.

A `Life` stops at random places: between any two accesses to a disk, within a
superblock's or an entry's write, within recovery itself, again and again; by kill -9
(what was written is seen) or by a power cut (of what is not synced, any sector may be
there or not). The planted bugs show that it would notice. `test_journal_engine.py` has
one test for each place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdr.common.errors import InternalError, StateError
from bdr.common.journal import engine as journal_engine
from bdr.common.journal import entry as entry_format
from bdr.common.journal import run as journal_run
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.layout import BLOCK_BYTES
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.condition import Condition
from tests.simulation.disk import Disk
from tests.unit.journal_rig import MemoryDevice, MemoryJournal, Target

LIVES = 12
STEPS = 40


class CrashError(Exception):
    """The process ends here."""


class Fuse:
    """Burns down with each access to a disk; then the process ends."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise CrashError


class FusedDisk(Disk):
    """Ends the process before an access, or within a write."""

    def __init__(self, disk: Disk, fuse: Fuse) -> None:
        super().__init__(0)
        self.content, self.synced, self.unsynced = disk.content, disk.synced, disk.unsynced
        self.shared_fuse = fuse

    def write(self, offset: int, data: bytes | memoryview) -> None:
        try:
            self.shared_fuse.burn()
        except CrashError:
            super().write(offset, data[: len(data) // 1024 * 512])
            raise
        super().write(offset, data)

    def sync(self) -> None:
        self.shared_fuse.burn()
        super().sync()


class Life:
    """A target that crashes and starts again, with a checker beside it."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.fuse = Fuse()
        self.target = Target(blocks=rng.randrange(12, 40))
        self._fuse_disks()
        self.order = [self.target.jobs.record]
        """Records in the order of their jobs, as far as the journal may still have them."""
        self.acknowledged = 0
        """Index of the last one that was acknowledged."""

    def run(self) -> None:
        for _ in range(LIVES):
            self.fuse.left = self.rng.choice((0, 3, 10, 30, 100))
            try:
                for _ in range(STEPS):
                    self.step()
            except CrashError:
                pass
            self.crash()

    def step(self) -> None:
        target, engine, rng = self.target, self.target.engine, self.rng
        kind = rng.random()
        if kind < 0.5:
            slots = rng.randrange(1, 4)
            if engine.fits(slots):
                self.append(slots)
        elif kind < 0.65:
            self.commit()
        elif kind < 0.85:
            if engine.unapplied_bytes:
                engine.apply_next()
        elif kind < 0.97:
            engine.checkpoint()
        elif not engine.unapplied_bytes and engine.used_bytes == engine.uncheckpointed_bytes:
            engine.close()
            self.crash()
        assert engine.used_bytes <= target.log_bytes

    def append(self, slots: int) -> None:
        target, rng = self.target, self.rng
        kind = rng.random()
        if kind < 0.1 and target.engine.fits(0):
            job = target.jobs.session()
        elif kind < 0.2 and target.engine.fits(0):
            job = target.jobs.mark(rng.choice(list(Condition)))
        else:
            sectors = [rng.randrange(12) * 8 for _ in range(slots)]
            job = target.jobs.write(sectors, rng.randbytes(6))
        self.order.append(job.record)
        target.engine.append(job)

    def commit(self) -> None:
        written = len(self.order) - 1
        self.target.engine.commit()
        self.acknowledged = written

    def crash(self) -> None:
        """The process ends, maybe with the machine; then it recovers, maybe not at once."""
        for attempt in range(3):
            self.fuse.left = None
            if self.rng.random() < 0.6:
                self.target.cut_power(self.rng)
            self._fuse_disks()
            self.fuse.left = self.rng.randrange(30) if attempt < 2 else None
            try:
                found = self.target.restart()
            except CrashError:
                continue
            break
        self.check(found.record)

    def check(self, record: ReplicaRecord) -> None:
        """The device is what it was after one job, and no acknowledged one is missing."""
        assert record in self.order[self.acknowledged :], "acknowledged jobs are lost"
        assert self.target.content == self.target.jobs.prefixes[record], "no prefix"
        self.order, self.acknowledged = [record], 0

    def _fuse_disks(self) -> None:
        target = self.target
        target.journal = MemoryJournal(FusedDisk(target.journal.disk, self.fuse))
        target.device = MemoryDevice(FusedDisk(target.device.disk, self.fuse))
        target.engine._disk, target.engine._device = target.journal, target.device


@given(st.randoms(use_true_random=True))
@settings(max_examples=80, deadline=None)
def test_any_crash_leaves_a_prefix_with_all_that_was_acknowledged(rng: Random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_engine, "KEPT_BYTES_MAX", rng.choice((0, 6, 100)) * BLOCK_BYTES)
        patch.setattr(journal_engine, "UNSYNCED_BYTES_MAX", 14 * BLOCK_BYTES)
        Life(rng).run()


# The checker bites.


def commit_without_sync(engine: JournalEngine) -> None:
    engine._durable = engine._head


def apply_before_commit(engine: JournalEngine, job: Job) -> None:
    _append(engine, job)
    engine._device.apply(job.extents, job.payload)


def checkpoint_without_device_sync(engine: JournalEngine, *, is_closed: bool = False) -> None:
    device = engine._device
    engine._device = MemoryDevice(Disk(0))
    _checkpoint(engine, is_closed=is_closed)
    engine._device = device


def room_for_all(engine: JournalEngine, slots: int) -> bool:
    return slots <= 3


def any_body(meta: object, payload: object) -> bytes:
    return bytes(16)


_append, _checkpoint = JournalEngine.append, JournalEngine.checkpoint


@pytest.mark.parametrize(
    ("where", "name", "bug"),
    [
        (JournalEngine, "commit", commit_without_sync),
        (JournalEngine, "append", apply_before_commit),
        (JournalEngine, "checkpoint", checkpoint_without_device_sync),
        (JournalEngine, "fits", room_for_all),
        (entry_format, "body_checksum", any_body),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_bug_is_noticed(
    where: object, name: str, bug: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, bug)
    for seed in range(60):
        try:
            Life(Random(seed)).run()
        except (AssertionError, StateError, InternalError):
            return
    pytest.fail("60 lives, and nothing noticed")


def test_trusting_entries_of_an_earlier_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_run = journal_run.begin_run

    def same_run(disk: object, superblock: object, **arguments: object) -> object:
        begun = begin_run(disk, superblock, **arguments)  # type: ignore[arg-type]
        return journal_run._write_both(
            disk,  # type: ignore[arg-type]
            replace(begun, run=1),
        )

    monkeypatch.setattr(journal_run, "begin_run", same_run)
    for seed in range(400):
        try:
            Life(Random(seed)).run()
        except (AssertionError, StateError):
            return
    pytest.fail("400 lives, and nothing noticed")


def test_applying_what_is_only_in_the_page_cache_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restart = Target.restart

    def without_settling(target: Target) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(target.journal, "sync", patch.undo)  # the first one only
            return restart(target)

    monkeypatch.setattr(Target, "restart", without_settling)
    for seed in range(400):
        try:
            Life(Random(seed)).run()
        except (AssertionError, StateError):
            return
    pytest.fail("400 lives, and nothing noticed")
