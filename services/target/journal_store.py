# SPDX-License-Identifier: GPL-2.0-only
"""The store with a journal: jobs are durable when the journal is synced, and applied later.

Two threads around a `JournalEngine`. The `StoreWorker`'s thread appends and syncs; the one started
here applies and checkpoints. A slow device thus delays no acknowledgement until the journal is
full; then `write` blocks, and so does the source.

The state file has the journal's id while it is in use, and the record again after a clean stop. So
a wrong combination of the two is detected, and a journal can be added, removed or replaced after a
clean stop.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from bdr.common.errors import BdrError, InternalError, StateError, UsageError
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import LOG_OFFSET, log_bytes_of
from bdr.common.journal.ownership import Truth, truth
from bdr.common.journal.recovery import Recovery, recover
from bdr.common.journal.run import begin_run, create, open_run
from bdr.common.journal.superblock import Superblock
from bdr.common.ring.layout import HEADER_BYTES, JOURNAL_BYTES_MIN
from bdr.common.storage.journal_file import JournalFile
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.job import Job
from bdr.common.target.record import JOURNAL_ID_BYTES, NO_JOURNAL, ReplicaRecord
from bdr.common.target.witness_check import Outcome, of_another_moment
from bdr.services.runtime import log
from bdr.services.target.recognition import check, recognised

SIZE_BYTES_DEFAULT = 1 << 30
CHECKPOINTS_A_LAP = 8
IDLE_CHECKPOINT_S = 1.0
"""Idle time after which applied jobs are checkpointed."""


class JournalStore:
    """A `Store` with a journal, opened by `open_journal`."""

    def __init__(
        self,
        *,
        engine: JournalEngine,
        files: tuple[JournalFile, JournalFile],
        device: TargetDevice,
        record_file: RecordFile,
    ) -> None:
        self._engine = engine
        self._files = files
        self._device = device
        self._record_file = record_file
        self._checkpoint_bytes = engine.superblock.log_bytes // CHECKPOINTS_A_LAP
        self._error: BdrError | None = None
        self._on_failure: Callable[[BdrError], None] = lambda _: None
        self._changed = threading.Condition()
        self._is_room_wanted = False
        self._waiters = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def fill(self) -> tuple[int, int]:
        """Bytes of the log in use (approximate), and its size."""
        return self._engine.replayed_bytes, self._engine.superblock.log_bytes

    def attach(self, on_failure: Callable[[BdrError], None]) -> None:
        """See `Store`."""
        with self._changed:
            self._on_failure = on_failure
            if self._error:
                on_failure(self._error)

    def write(self, job: Job) -> None:
        """Appends; blocks while the journal is full."""
        try:
            slots = len(job.headers) // HEADER_BYTES
            if self._error is not None or not self._engine.fits(slots):
                self._wait_for_room(slots)
            self._engine.append(job)
        except BdrError as error:
            self._fail(error)
            raise

    def sync(self, record: ReplicaRecord) -> None:
        """Commits; the last entry already has `record`."""
        try:
            self._commit()
        except BdrError as error:
            self._fail(error)
            raise

    def wait_applied(self) -> None:
        """Waits for the apply thread.

        Raises:
            BdrError: the store failed, and durable jobs are not applied.
        """
        with self._changed:
            wanted = self._engine.durable_position
            self._waiters += 1
            while self._error is None and self._engine.applied_position < wanted:
                self._changed.wait()
            self._waiters -= 1
            if self._engine.applied_position < wanted and self._error is not None:
                raise self._error

    def close(self) -> None:
        """Applies all committed jobs, and saves the record to the state file.

        After a failure nothing is changed, and the next start recovers.
        """
        left_bytes = self._engine.unapplied_bytes
        if left_bytes and self._error is None:
            log.logger().info("emptying-journal", bytes=left_bytes)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        try:
            if self._error is None:
                record = self._engine.close()
                self._record_file.save(
                    replace(record, clean=True, journal=NO_JOURNAL), self._engine.superblock.witness
                )
        finally:
            for file in self._files:
                file.close()
            self._device.close()
            self._record_file.close()

    def _commit(self) -> None:
        self._engine.commit()
        self._notify()

    def _wait_for_room(self, slots: int) -> None:
        # Uncommitted jobs are not applied, and so would never free space.
        self._commit()
        with self._changed:
            self._is_room_wanted = True
            self._changed.notify_all()
            while self._error is None and not self._engine.fits(slots):
                self._changed.wait()
            self._is_room_wanted = False
            if self._error is not None:
                raise self._error

    def _fail(self, error: BdrError) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
                self._on_failure(error)
            self._changed.notify_all()

    # The apply thread.

    def _run(self) -> None:
        engine = self._engine
        try:
            while self._error is None:
                if engine.uncheckpointed_bytes >= self._checkpoint_bytes:
                    self._checkpoint()
                elif engine.unapplied_bytes:
                    engine.apply_next()
                    if self._waiters:
                        self._notify()
                elif not self._rest():
                    return
        except BdrError as error:
            self._fail(error)
        except Exception as error:
            # A bug must not end this thread unnoticed: writers would wait for it indefinitely.
            self._fail(InternalError(f"journal: {error!r} in the device's thread"))
            raise

    def _rest(self) -> bool:
        """Waits for work, and checkpoints when idle; returns False when the store is closing."""
        engine = self._engine
        with self._changed:
            if engine.unapplied_bytes:
                return True
            if self._is_closing:
                return False
            if not (self._is_room_wanted and engine.can_free):
                is_dirty = engine.uncheckpointed_bytes > 0
                is_idle = not self._changed.wait(IDLE_CHECKPOINT_S if is_dirty else None)
                if not is_idle:
                    return True
        self._checkpoint()
        return True

    def _checkpoint(self) -> None:
        self._engine.checkpoint()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def open_journal(
    *,
    path: str,
    size_bytes: int | None,
    device: TargetDevice,
    record_file: RecordFile,
    volume: str,
) -> tuple[JournalStore, ReplicaRecord]:
    """Opens or creates the journal, and applies its entries to the device.

    Args:
        size_bytes: of the journal; None: its present size, or 1 GiB for a new one.

    Returns:
        The store, and the replica's record: a prefix of the source, after any crash.

    Raises:
        StateError: the journal is damaged, or does not belong to this state file. Nothing was
            applied.
        StateDiskError: its disk failed or is full.
        DeviceError: the target failed while the journal was applied to it.
    """
    if size_bytes is not None and size_bytes < JOURNAL_BYTES_MIN:
        raise UsageError(f"--journal-size: found {size_bytes}, wanted at least {JOURNAL_BYTES_MIN}")
    remembered = record_file.load(
        volume=volume, device_sectors=device.sectors, device=device.identity
    )
    with contextlib.ExitStack() as on_failure:
        file = JournalFile(path)
        on_failure.callback(file.close)
        twin = file.twin()
        on_failure.callback(twin.close)
        file.drop_page_cache()
        found = recover(
            file.read,
            where=path,
            size_bytes=file.size_bytes,
            volume=volume,
            device_sectors=device.sectors,
        )
        superblock, record = _open(file, found, remembered, size_bytes, device, record_file)
        if found is not None and found.superblock.log_bytes > superblock.log_bytes:
            file.cut(LOG_OFFSET + superblock.log_bytes)
        on_failure.pop_all()
    engine = JournalEngine(disk=file, checkpoint_disk=twin, device=device, superblock=superblock)
    store = JournalStore(engine=engine, files=(file, twin), device=device, record_file=record_file)
    return store, record


def _open(
    file: JournalFile,
    found: Recovery | None,
    remembered: ReplicaRecord,
    size_bytes: int | None,
    device: TargetDevice,
    record_file: RecordFile,
) -> tuple[Superblock, ReplicaRecord]:
    _check_truth(file.path, found, remembered)
    log_bytes = _allocate(file, found, size_bytes)
    if remembered.journal == NO_JOURNAL:
        was, kept = recognised(device, remembered, record_file.witness)
        record, witness = replace(was.at_start(), clean=True), kept.encode()
        # Three steps, so that after a crash both files have this record: a closed journal with the
        # record, the state file with the journal's id, a run of the journal.
        if found is None:
            journal_id = secrets.token_bytes(JOURNAL_ID_BYTES)
            closed = create(
                file, journal_id=journal_id, log_bytes=log_bytes, record=record, witness=witness
            )
        else:
            closed = begin_run(
                file,
                found.superblock,
                at=found.end,
                record=record,
                witness=witness,
                log_bytes=log_bytes,
                is_closed=True,
            )
        record = replace(record, journal=closed.journal)
        record_file.save(replace(record, clean=False), witness)
        superblock = begin_run(file, closed, at=closed.checkpoint, record=record, witness=witness)
    else:
        assert found is not None
        record = replace(found.record, clean=True, journal=found.superblock.journal)
        if check(device, found.versions, record) is Outcome.SAME:
            superblock = _replay(file, device, found, log_bytes)
        else:
            # Not replayed: what the device holds may be newer.
            record = of_another_moment(record)
            superblock = begin_run(
                file, found.superblock, at=found.end, record=record, log_bytes=log_bytes
            )
    return superblock, record


def _replay(file: JournalFile, device: TargetDevice, found: Recovery, log_bytes: int) -> Superblock:
    began = time.monotonic()
    superblock = open_run(file, device, found, log_bytes=log_bytes)
    log.logger().info(
        "journal-replayed",
        jobs=found.jobs,
        slots=found.slots,
        bytes=found.log_bytes_used,
        seconds=round(time.monotonic() - began, 3),
        ended_by=found.ended_by.name,
        superblock=[copy.name for copy in found.copies],
    )
    return superblock


def _allocate(file: JournalFile, found: Recovery | None, size_bytes: int | None) -> int:
    """Allocates the space; returns the size of the log."""
    if found is not None and size_bytes is None:
        return found.superblock.log_bytes
    if size_bytes is None:
        size_bytes = SIZE_BYTES_DEFAULT
        if file.is_block:
            size_bytes = min(size_bytes, file.size_bytes)
    file.allocate(size_bytes)
    return log_bytes_of(size_bytes)


def _check_truth(path: str, found: Recovery | None, remembered: ReplicaRecord) -> None:
    superblock = found.superblock if found else None
    verdict = truth(remembered.journal, superblock)
    owner = remembered.journal.hex()
    if verdict is Truth.MISSING:
        raise JournalRefusedError(
            path, "no journal", f"journal {owner}, which has the replica's last writes"
        )
    if verdict is Truth.ANOTHER and superblock is not None:
        raise JournalRefusedError(
            path,
            f"journal {superblock.journal.hex()}",
            f"journal {owner}, which has the replica's last writes",
        )
    if verdict is Truth.UNCLAIMED and superblock is not None:
        raise JournalRefusedError(
            path,
            f"journal {superblock.journal.hex()} in use, by another state file",
            "a new one, or the one that the state file names",
        )


def check_no_journal(record: ReplicaRecord, *, state: str) -> None:
    """For an applier without a journal: checks that the state file has the newest record.

    Raises:
        StateError: a journal has it.
    """
    if record.journal != NO_JOURNAL:
        raise StateError(
            f"replica state {state}: found that journal {record.journal.hex()} has the replica's "
            "last writes, wanted none in use for --journal none; start the applier once with that "
            "journal and stop it, or give up the replica: `bdr demote --give-up`"
        )
