# SPDX-License-Identifier: GPL-2.0-only
"""Stores, which make a replica's jobs durable, and their worker thread.

The applier's loop must answer its source while a disk is slow, so disk I/O is done by one worker
thread. Jobs are queued; the number of the last durable job is returned with a descriptor that polls
readable.

Group commit needs no timer: the worker writes all jobs that were queued during the last sync, then
syncs once. A single write is synced immediately; under load each sync covers many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from bdr.common.errors import BdrError, InternalError
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Witness, apply_job
from bdr.common.wire.condition import Condition
from bdr.services.runtime.workers import Tasks, Workers

GROUP_BYTES_MAX = 16 << 20
"""Most bytes between two syncs."""


class Store(Protocol):
    """Makes jobs durable. Called by the worker thread only, except `attach` and `close`."""

    def attach(self, on_failure: Callable[[BdrError], None]) -> None:
        """Called first. `on_failure` is called, by any thread, if work fails that was deferred
        beyond `sync`."""
        ...

    def write(self, job: Job) -> None:
        """Takes one job; jobs come in order."""
        ...

    def sync(self, record: ReplicaRecord) -> None:
        """Makes every job so far durable, and `record` with them."""
        ...

    def wait_applied(self) -> None:
        """Waits until every durable job is applied to the device; thread-safe.

        Raises:
            BdrError: the store failed before.
        """
        ...

    def close(self) -> None:
        """Closes the files."""
        ...


class DirectStore:
    """Without a journal: apply, sync the device, then the record.

    After a crash the device may hold any subset of the unsynced writes beyond the record's slot;
    the replica is then CATCHING_UP until its source has sent them again.

    Args:
        witness: of the device as it is.
    """

    def __init__(
        self, device: TargetDevice, record_file: RecordFile, witness: Witness | None = None
    ) -> None:
        self._device = device
        self._record_file = record_file
        self._witness = witness or Witness()
        self._saved: ReplicaRecord | None = None

    def attach(self, on_failure: Callable[[BdrError], None]) -> None:
        pass  # nothing is deferred

    def write(self, job: Job) -> None:
        apply_job(self._device, self._witness, job.extents, job.payload, job.record)
        # Writes after a marker may be newer than the slots before it: after a crash the device must
        # not have them while the record has the previous condition, or is of another source.
        if self._saved is None or _what_it_is(job.record) != _what_it_is(self._saved):
            self.sync(job.record)

    def sync(self, record: ReplicaRecord) -> None:
        self._device.sync()
        self._record_file.save(record, self._witness.encode())
        self._saved = record

    def wait_applied(self) -> None:
        pass  # durable jobs are applied

    def close(self) -> None:
        self._device.close()
        self._record_file.close()


def _what_it_is(record: ReplicaRecord) -> tuple[bytes, bytes, Condition]:
    """Whose replica it is, and in which condition."""
    return record.source, record.stream, record.condition


class StoreWorker:
    """Runs a store in a thread of its own.

    Attributes:
        durable: the last durable job's number; read it after `drain_wakeup`.
        error: what ended the worker, or None; read it after `drain_wakeup`.
    """

    def __init__(self, store: Store) -> None:
        self.durable = 0
        self.error: BdrError | None = None
        self._store = store
        self._workers = Workers(self._run, threads=1, name="store")
        store.attach(self._workers.deliver)

    def fileno(self) -> int:
        """Polls readable when `durable` or `error` will change."""
        return self._workers.fileno()

    def drain_wakeup(self) -> None:
        """Updates `durable` and `error`; makes `fileno` unreadable until the next change."""
        try:
            for durable in self._workers.results():
                self.durable = durable
        except BdrError as error:
            self.error = self.error or error
        except Exception as error:
            self.error = self.error or InternalError(f"the store's worker failed: {error!r}")

    def put(self, job: Job) -> None:
        """Queues a job; never blocks."""
        self._workers.put(job)

    def wait_applied(self) -> None:
        """Waits until every durable job is applied to the device; thread-safe."""
        self._store.wait_applied()

    def close(self) -> None:
        """Finishes queued jobs, then ends the thread and closes the store."""
        self._workers.finish()
        self._store.close()
        self.drain_wakeup()
        self._workers.close()

    def _run(self, jobs: Tasks[Job]) -> Iterator[int]:
        for job in jobs:
            last = self._write_group(job, jobs)
            self._store.sync(last.record)
            yield last.number

    def _write_group(self, job: Job, jobs: Tasks[Job]) -> Job:
        """Writes this job and queued ones; returns the last."""
        group_bytes = 0
        while True:
            self._store.write(job)
            # Bounds jobs without payload too.
            group_bytes += max(len(job.payload), PAYLOAD_BYTES)
            if group_bytes >= GROUP_BYTES_MAX:
                return job
            following = jobs.next_queued()
            if following is None:
                return job
            job = following
