# SPDX-License-Identifier: GPL-2.0-only
"""The journal's steps, and the order in which they make anything durable.

No threads and no clock here, and I/O only through `Disk` and `Device`: a service runs
these steps from two threads, a test or a simulator one by one, on a disk that tears.

What is written when:

1. `append` writes an entry behind the last one. It is nothing yet.
2. `commit` syncs the journal. Only now may the jobs be acknowledged, and only now may
   they be applied: a power cut before could take the entry back, but not the write.
3. `apply_next` applies one committed job to the device, from memory while
   `KEPT_BYTES_MAX` last, else read back from the journal.
4. `checkpoint` syncs the device, then writes the superblock in front of which all is
   on the device, then syncs the journal. The space of what is applied becomes free when
   both copies of the superblock have moved beyond it, so each alone is enough to recover.

`open_run` comes first: it makes durable what recovery found before applying it (bytes
that a killed process left in the page cache may still be lost), applies it, syncs the
device, and begins a new run in both copies.

Two threads: `append` and `commit` belong to one, `apply_next` and `checkpoint` to the
other. Each attribute is written by one of them alone, and only grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from bdr.common.errors import InternalError
from bdr.common.journal import format as journal_format
from bdr.common.journal.format import COPIES, UNSYNCED_BYTES_MAX, Cursor, Superblock
from bdr.common.journal.recovery import (
    VERDICTS,
    JournalRefusedError,
    Recovery,
    Verdict,
    read_step,
    replay,
)
from bdr.common.ring.layout import HEADER_BYTES
from bdr.common.target.extents import Extents
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.codec import Buffer

KEPT_BYTES_MAX = 32 << 20
"""Most log kept in memory for the device."""


class Disk(Protocol):
    """Where the journal lives."""

    @property
    def path(self) -> str:
        """For messages."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end."""
        ...

    def write(self, offset: int, pieces: list[Buffer]) -> None:
        """Writes the pieces one behind the other; not durable before `sync`."""
        ...

    def sync(self) -> None:
        """Makes every write so far durable."""
        ...


class Device(Protocol):
    """What the journal's jobs are applied to."""

    def apply(self, extents: Extents, payload: Buffer) -> None:
        """Not durable before `sync`."""
        ...

    def sync(self) -> None:
        """Makes everything applied durable."""
        ...


def create(disk: Disk, *, journal_id: bytes, log_bytes: int, record: ReplicaRecord) -> Superblock:
    """Writes a new journal, closed and empty; returns its superblock."""
    start = Cursor(0, 1)
    blank = Superblock(
        generation=0,
        journal=journal_id,
        log_bytes=log_bytes,
        run=0,
        checkpoint=start,
        durable=start.sequence,
        is_closed=True,
        record=record,
    )
    return begin_run(disk, blank, at=start, record=record, is_closed=True)


def open_run(
    disk: Disk,
    device: Device,
    recovery: Recovery,
    *,
    log_bytes: int | None = None,
    on_replayed: Callable[[], None] = lambda: None,
) -> Superblock:
    """Applies what recovery found, and begins a new run behind it; returns its superblock.

    Args:
        disk: synced since the last process wrote to it, and read from the disk again.
        log_bytes: a new size of the log; nothing is in it when it changes.
        on_replayed: called when all is on the device and the superblocks are about to
            be written.

    Raises:
        JournalRefusedError: the disk gives other bytes than recovery saw.
    """
    for entry in replay(disk.read, recovery):
        device.apply(entry.extents, entry.payload)
    device.sync()
    on_replayed()
    return begin_run(
        disk, recovery.superblock, at=recovery.end, record=recovery.record, log_bytes=log_bytes
    )


def begin_run(
    disk: Disk,
    superblock: Superblock,
    *,
    at: Cursor,
    record: ReplicaRecord,
    log_bytes: int | None = None,
    is_closed: bool = False,
) -> Superblock:
    """Begins a run at `at` with `record`, which the device holds durably.

    A closed run takes no entries; it only says what the record is.
    """
    return _write_both(
        disk,
        replace(
            superblock,
            run=superblock.run + 1,
            log_bytes=log_bytes or superblock.log_bytes,
            checkpoint=at,
            durable=at.sequence,
            is_closed=is_closed,
            record=replace(record, clean=True),
        ),
    )


def _write_both(disk: Disk, superblock: Superblock) -> Superblock:
    """Writes the superblock into both copies, the older one first."""
    for _ in range(COPIES):
        superblock = replace(superblock, generation=superblock.generation + 1)
        disk.write(superblock.offset, [journal_format.encode_superblock(superblock)])
        disk.sync()
    return superblock


class JournalEngine:
    """One run of a journal.

    Args:
        disk: for the journal's side.
        checkpoint_disk: the same for the device's side, which syncs at the same time.
        superblock: what `open_run` or `begin_run` returned.
    """

    def __init__(
        self, *, disk: Disk, checkpoint_disk: Disk, device: Device, superblock: Superblock
    ) -> None:
        start = superblock.checkpoint
        self._disk = disk
        self._checkpoint_disk = checkpoint_disk
        self._device = device
        self._log_bytes = superblock.log_bytes
        # Written by the journal's thread.
        self._head = start
        self._durable = start
        self._unsynced_bytes = 0
        self._kept: deque[tuple[Cursor, Cursor, Job]] = deque()
        self._kept_bytes_in = 0
        # Written by the device's thread.
        self._superblock = superblock
        self._tail = start.position
        """Checkpoint of the older copy of the superblock: the log is free below it."""
        self._applied = start
        self._record = superblock.record
        self._kept_bytes_out = 0

    @property
    def superblock(self) -> Superblock:
        """The newest that is on disk."""
        return self._superblock

    @property
    def used_bytes(self) -> int:
        """Log that may not be overwritten."""
        return self._head.position - self._tail

    @property
    def replayed_bytes(self) -> int:
        """Log that would be applied again after a crash now."""
        return self._head.position - self._superblock.checkpoint.position

    @property
    def durable_position(self) -> int:
        """End of what is durable."""
        return self._durable.position

    @property
    def applied_position(self) -> int:
        """End of what is on the device."""
        return self._applied.position

    @property
    def unapplied_bytes(self) -> int:
        """Log that is durable and waits for the device."""
        return self._durable.position - self._applied.position

    @property
    def uncheckpointed_bytes(self) -> int:
        """Log that is applied, but not yet said to be."""
        return self._applied.position - self._superblock.checkpoint.position

    @property
    def can_free(self) -> bool:
        """Whether a checkpoint would free space."""
        return self._tail < self._applied.position

    # The journal's side.

    def fits(self, slots: int) -> bool:
        """Whether an entry of so many slots overwrites nothing that still counts."""
        skip = journal_format.skip_bytes(self._head.position, slots, self._log_bytes)
        return self.used_bytes + skip + journal_format.entry_bytes(slots) <= self._log_bytes

    def append(self, job: Job) -> None:
        """Writes a job's entry; it counts after `commit`.

        Raises:
            InternalError: it does not fit; ask `fits` first.
            StateError: the journal's disk failed; append nothing more.
        """
        slots = len(job.headers) // HEADER_BYTES
        if not self.fits(slots):
            raise InternalError(f"journal: no room for {slots} slots at {self._head}")
        length = journal_format.entry_bytes(slots)
        if self._unsynced_bytes + length > UNSYNCED_BYTES_MAX:
            self.commit()
        skip = journal_format.skip_bytes(self._head.position, slots, self._log_bytes)
        if skip:
            marker = journal_format.encode_skip(
                superblock=self._superblock,
                cursor=self._head,
                durable=self._durable.sequence,
                length=skip,
            )
            self._write([marker], skip)
        cursor = self._head
        meta = journal_format.encode_entry(
            superblock=self._superblock,
            cursor=cursor,
            durable=self._durable.sequence,
            record=job.record,
            headers=job.headers,
            payload=job.payload,
        )
        self._write([meta, job.payload] if slots else [meta], length)
        self._unsynced_bytes += length
        if self._kept_bytes_in - self._kept_bytes_out + length <= KEPT_BYTES_MAX:
            self._kept_bytes_in += length
            self._kept.append((cursor, self._head, job))

    def commit(self) -> None:
        """Makes every appended entry durable: acknowledge and apply them now.

        Raises:
            StateError: the journal's disk failed; append nothing more.
        """
        self._disk.sync()
        self._durable = self._head
        self._unsynced_bytes = 0

    def _write(self, pieces: list[Buffer], length: int) -> None:
        head = self._head
        self._disk.write(journal_format.offset_of(head.position, self._log_bytes), pieces)
        self._head = Cursor(head.position + length, head.sequence + 1)

    # The device's side.

    def apply_next(self) -> None:
        """Applies the next committed job; there must be one (`unapplied_bytes`).

        Raises:
            DeviceError: the device failed; apply nothing more.
            StateError: the journal does not give back what was written.
        """
        at = self._applied
        if self._kept and self._kept[0][0] == at:
            _, end, job = self._kept.popleft()
            self._device.apply(job.extents, job.payload)
            self._kept_bytes_out += end.position - at.position
            self._record = job.record
            self._applied = end
            return
        step = read_step(
            self._checkpoint_disk.read, superblock=self._superblock, at=at, before=self._record
        )
        if VERDICTS[step.found] is not Verdict.TAKE or step.header is None:
            raise JournalRefusedError(
                self._checkpoint_disk.path,
                f"{step.found.value} at sequence {at.sequence}, position {at.position}",
                "the entry that was written there",
            )
        if step.entry is not None:
            self._device.apply(step.entry.extents, step.entry.payload)
            self._record = step.entry.record
        self._applied = step.header.end

    def checkpoint(self, *, is_closed: bool = False) -> None:
        """Makes durable what was applied, and says so in one superblock.

        Raises:
            DeviceError, StateError: device or journal failed; go no further.
        """
        applied, record = self._applied, self._record
        self._device.sync()
        before = self._superblock
        after = before.next(
            checkpoint=applied,
            durable=self._durable.sequence,
            record=replace(record, clean=True),
            is_closed=is_closed,
        )
        self._checkpoint_disk.write(after.offset, [journal_format.encode_superblock(after)])
        self._checkpoint_disk.sync()
        self._superblock = after
        self._tail = before.checkpoint.position

    def close(self) -> ReplicaRecord:
        """Ends the run: both copies say that the log is empty; returns the last record.

        Everything committed must have been applied.
        """
        if self._head != self._applied:
            raise InternalError(f"journal: closed at {self._applied}, but {self._head} was written")
        for _ in range(COPIES):
            self.checkpoint(is_closed=True)
        return replace(self._record, clean=True)
