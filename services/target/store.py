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

from bdr.common.errors import BdrError, InternalError
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.job import Apply
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.control import Condition

GROUP_BYTES_MAX = 16 << 20
"""A sync comes at the latest after so much."""


class Store(Protocol):
    """Where jobs go. Called by the worker thread alone, but for `attach` and `close`."""

    def attach(self, on_failure: Callable[[BdrError], None]) -> None:
        """Comes first. `on_failure` is to be called, by any thread, when work fails that
        was left for later than `sync`."""
        ...

    def write(self, job: Apply) -> None:
        """Takes one job; jobs come in order."""
        ...

    def sync(self, record: ReplicaRecord) -> None:
        """Makes every job so far durable, and `record` with them."""
        ...

    def settle(self) -> None:
        """Waits until every job that `sync` has made durable is on the device; any thread.

        Raises:
            BdrError: it will not be.
        """
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
        self._device = device
        self._record_file = record_file
        self._condition: Condition | None = None
        """As of the record that was saved last."""

    def attach(self, on_failure: Callable[[BdrError], None]) -> None:
        pass  # nothing is left for later

    def write(self, job: Apply) -> None:
        self._device.apply(job.extents, job.payload)
        # What follows a mark may be newer than the slots in front of it: no crash may find
        # that on the device, and the word of before in the record.
        if job.record.condition is not self._condition:
            self.sync(job.record)

    def sync(self, record: ReplicaRecord) -> None:
        self._device.sync()
        self._record_file.save(record)
        self._condition = record.condition

    def settle(self) -> None:
        pass  # durable is applied

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
        store.attach(self._fail)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Polls readable when `durable` or `error` has changed."""
        return self._wakeup

    def drain_wakeup(self) -> None:
        """Makes `fileno` unreadable until the next change."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)

    def put(self, job: Apply) -> None:
        """Queues a job behind all earlier ones; never blocks."""
        self._jobs.put(job)

    def settle(self) -> None:
        """Waits until every durable job is on the device; any thread may."""
        self._store.settle()

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
            # Also those without payload come to an end.
            group_bytes += max(len(job.payload), PAYLOAD_BYTES)
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
