# SPDX-License-Identifier: GPL-2.0-only
"""What makes a replica's jobs durable, and the thread that runs it.

The applier's loop must answer its source while a disk is slow, so disk work is
done by one worker thread. Jobs go in by a queue; what became durable comes back
by a number and a descriptor that polls readable.

Group commit needs no timer: the worker writes whatever has queued up while the
last sync ran, then syncs once. A lone write is synced at once; under load each
sync covers many.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from common.blockdev import TargetDevice
from common.errors import BdrError, InternalError
from common.record import ReplicaRecord
from common.recordfile import RecordFile
from common.replica import Apply

GROUP_BYTES_MAX = 16 << 20
"""A sync comes at the latest after so much."""


class Store(Protocol):
    """Where jobs go. Called by the worker thread alone, but for `attach` and `close`."""

    @property
    def applied(self) -> int:
        """The last job that the device holds, durably or not.

        What reads the device, and must see a job there, waits for this: with a journal
        a job is durable before the device has it.
        """
        ...

    def attach(
        self, *, on_failure: Callable[[BdrError], None], on_applied: Callable[[], None]
    ) -> None:
        """Comes first. Both are called by any thread, for work that was left for later
        than `sync`: one when it fails, the other when none of it is left."""
        ...

    def values(self) -> dict[str, int]:
        """Present values for the monitor; called by any thread."""
        ...

    def write(self, job: Apply) -> None:
        """Takes one job; jobs come in order."""
        ...

    def sync(self, record: ReplicaRecord) -> None:
        """Makes every job so far durable, and `record` with them."""
        ...

    def close(self) -> None:
        """Gives everything free."""
        ...


class DirectStore:
    """Without a journal: apply, sync the device, then the record.

    After a crash the device may hold unsynced writes beyond the record's slot, in
    any mixture; the replica is then CATCHING_UP until its source has sent them again.
    """

    def __init__(self, device: TargetDevice, record_file: RecordFile) -> None:
        self._applied = 0
        self._device = device
        self._record_file = record_file

    @property
    def applied(self) -> int:
        return self._applied

    def attach(
        self, *, on_failure: Callable[[BdrError], None], on_applied: Callable[[], None]
    ) -> None:
        pass  # nothing is left for later

    def values(self) -> dict[str, int]:
        return {}

    def write(self, job: Apply) -> None:
        self._device.apply(job.extents, job.payload)
        self._applied = job.job

    def sync(self, record: ReplicaRecord) -> None:
        self._device.sync()
        self._record_file.save(record)

    def close(self) -> None:
        self._device.close()
        self._record_file.close()


class StoreWorker:
    """Runs a store in a thread of its own.

    Attributes:
        durable: the last durable job's number; read it after `drain_wakeup`.
        error: what ended the worker, or None.
    """

    def __init__(self, store: Store) -> None:
        self.durable = 0
        self.error: BdrError | None = None
        self._store = store
        self._jobs: queue.SimpleQueue[Apply | None] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        store.attach(on_failure=self._fail, on_applied=self._wake)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def applied(self) -> int:
        """The last job that the device holds; at most a tick behind while jobs come."""
        return self._store.applied

    def values(self) -> dict[str, int]:
        """The store's values for the monitor."""
        return self._store.values()

    def fileno(self) -> int:
        """Polls readable when `durable` or `error` has changed, or all is applied."""
        return self._wakeup

    def drain_wakeup(self) -> None:
        """Makes `fileno` unreadable until the next change."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)

    def put(self, job: Apply) -> None:
        """Queues a job behind all earlier ones; never blocks."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finishes what is queued, then ends the thread and closes the store."""
        self._jobs.put(None)
        self._thread.join()
        self._store.close()
        os.close(self._wakeup)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                last = self._write_group(job)
                self._store.sync(last.record)
                self.durable = last.job
                self._wake()
        except BdrError as error:
            self._fail(error)
        except Exception as error:
            # A bug: an applier that goes on without its worker would look alive.
            self._fail(InternalError(f"the store's worker failed: {error!r}"))

    def _fail(self, error: BdrError) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    def _write_group(self, job: Apply) -> Apply:
        """Writes this job and those that wait behind it; returns the last."""
        group_bytes = 0
        while True:
            self._store.write(job)
            group_bytes += len(job.payload)
            if group_bytes >= GROUP_BYTES_MAX:
                return job
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                return job
            if following is None:
                self._jobs.put(None)
                return job
            job = following
