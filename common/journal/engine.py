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

`common/journal/run.py` comes first: it replays what recovery found, and begins the run
that an engine writes.

Two threads: `append` and `commit` belong to one, `apply_next` and `checkpoint` to the
other. Each attribute is written by one of them alone, and only grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from bdr.common.errors import InternalError
from bdr.common.journal.disk import Device, Disk
from bdr.common.journal.entry import encode_entry, encode_skip, entry_bytes, skip_bytes
from bdr.common.journal.entry_reader import read_step
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import COPIES, UNSYNCED_BYTES_MAX, Cursor, offset_of
from bdr.common.journal.superblock import Superblock, encode_superblock
from bdr.common.ring.layout import HEADER_BYTES
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Witness, apply_job
from bdr.common.wire.codec import Buffer

KEPT_BYTES_MAX = 32 << 20
"""Most log kept in memory for the device."""


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
        self._witness = Witness.decode(superblock.witness) or Witness()
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
        skip = skip_bytes(self._head.position, slots, self._log_bytes)
        return self.used_bytes + skip + entry_bytes(slots) <= self._log_bytes

    def append(self, job: Job) -> None:
        """Writes a job's entry; it counts after `commit`.

        Raises:
            InternalError: it does not fit; ask `fits` first.
            StateDiskError: the journal's disk failed; append nothing more.
        """
        slots = len(job.headers) // HEADER_BYTES
        if not self.fits(slots):
            raise InternalError(f"journal: no room for {slots} slots at {self._head}")
        length = entry_bytes(slots)
        if self._unsynced_bytes + length > UNSYNCED_BYTES_MAX:
            self.commit()
        skip = skip_bytes(self._head.position, slots, self._log_bytes)
        if skip:
            marker = encode_skip(
                superblock=self._superblock,
                cursor=self._head,
                durable=self._durable.sequence,
                length=skip,
            )
            self._write([marker], skip)
        cursor = self._head
        meta = encode_entry(
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
            StateDiskError: the journal's disk failed; append nothing more.
        """
        self._disk.sync()
        self._durable = self._head
        self._unsynced_bytes = 0

    def _write(self, pieces: list[Buffer], length: int) -> None:
        head = self._head
        self._disk.write(offset_of(head.position, self._log_bytes), pieces)
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
            apply_job(self._device, self._witness, job.extents, job.payload, job.record)
            self._kept_bytes_out += end.position - at.position
            self._record = job.record
            self._applied = end
            return
        step = read_step(
            self._checkpoint_disk.read, superblock=self._superblock, at=at, before=self._record
        )
        if step.end is None:
            raise JournalRefusedError(
                self._checkpoint_disk.path,
                f"{step.found.value} at sequence {at.sequence}, position {at.position}",
                "the entry that was written there",
            )
        if step.entry is not None:
            entry = step.entry
            apply_job(self._device, self._witness, entry.extents, entry.payload, entry.record)
            self._record = entry.record
        self._applied = step.end

    def checkpoint(self, *, is_closed: bool = False) -> None:
        """Makes durable what was applied, and says so in one superblock.

        Raises:
            DeviceError, StateDiskError: device or journal failed; go no further.
        """
        applied, record = self._applied, self._record
        self._device.sync()
        before = self._superblock
        after = before.next(
            checkpoint=applied,
            durable=self._durable.sequence,
            record=replace(record, clean=True),
            witness=self._witness.encode(),
            is_closed=is_closed,
        )
        self._checkpoint_disk.write(after.offset, [encode_superblock(after)])
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
