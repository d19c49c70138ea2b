# SPDX-License-Identifier: GPL-2.0-only
"""An applier's store with a journal on real files, without its sockets; driven by tests."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bdr.common.errors import DeviceError, StateError
from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.extents import Extents, plan
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition
from bdr.services.cli.main import main as bdr
from bdr.services.target.journal_store import JournalStore
from bdr.services.target.opening import open_store
from bdr.services.target.store import StoreWorker
from deploy.command import wait_for

MIB = 1 << 20
SIZE = 16 * MIB
TARGET_BYTES = 64 * MIB
STREAM = bytes(range(16))
DEADLINE_S = 30.0


class GatedDevice(TargetDevice):
    """A target that can be held, or made to fail."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: DeviceError | None = None

    def apply(self, extents: Extents, payload: Buffer) -> None:
        self.gate.wait(DEADLINE_S)
        if self.failure:
            raise self.failure
        super().apply(extents, payload)


class Host:
    """The files of a target, and an applier's store on them, without its sockets."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.target = directory / "target"
        self.state = directory / "state"
        self.journal = directory / "state.journal"
        with self.target.open("wb") as file:
            file.truncate(TARGET_BYTES)
        self.expected = bytearray(TARGET_BYTES)
        self.record = ReplicaRecord("v", TARGET_BYTES // 512)
        self.jobs = 0
        self.known: dict[str, Any] = {}
        """What else the record has once there was a source."""

    def open(self, *, journal: str | None = None, size: int | None = SIZE) -> StoreWorker:
        """Opens everything; what the replica's record is stands in `record` then."""
        self.device = GatedDevice(str(self.target))
        self.record_file = RecordFile(str(self.state))
        try:
            store, self.record = open_store(
                journal=journal,
                journal_size=size,
                device=self.device,
                record_file=self.record_file,
                volume="v",
            )
        except BaseException:
            self.device.close()
            self.record_file.close()
            raise
        self.store = store
        self.jobs = 0
        return StoreWorker(store)

    def session(self) -> Job:
        """The first job of a source."""
        return self._job(
            replace(
                self.record,
                stream=STREAM,
                epoch=self.record.epoch + 1,
                condition=Condition.CONSISTENT,
                clean=False,
                **self.known,
            )
        )

    def write(self, offset: int, data: bytes) -> Job:
        """A batch of whole blocks."""
        slots = len(data) // 4096
        self.expected[offset : offset + len(data)] = data
        sectors = np.arange(slots, dtype=np.uint64) * 8 + offset // 512
        headers = encode(op=layout.Op.WRITE, sector=sectors).tobytes()
        return self._job(
            replace(self.record, slot=self.record.slot + slots), headers=headers, payload=data
        )

    def _job(self, record: ReplicaRecord, *, headers: bytes = b"", payload: bytes = b"") -> Job:
        self.jobs += 1
        self.record = record
        extents = plan(headers, payload, device_sectors=TARGET_BYTES // 512)
        return Job(self.jobs, extents, headers, payload, record)

    def crash(self, worker: StoreWorker) -> None:
        """Drops everything as kill -9 does: nothing more is applied, nothing closed."""
        store = self.store
        assert isinstance(store, JournalStore)
        wait_for(lambda: durable(worker) == self.jobs, what="the last job", timeout_s=DEADLINE_S)
        store._error = StateError("killed")
        self.device.failure = DeviceError("killed")
        self.device.gate.set()
        worker.close()

    def is_applied(self) -> bool:
        return self.target.read_bytes() == self.expected


@pytest.fixture
def host(directory: Path) -> Host:
    """On tmpfs, removed after the test."""
    return Host(directory)


def durable(worker: StoreWorker) -> int:
    worker.drain_wakeup()
    return worker.durable


def failed(worker: StoreWorker) -> bool:
    worker.drain_wakeup()
    return worker.error is not None


def wait_durable(worker: StoreWorker, job: int) -> None:
    wait_for(lambda: durable(worker) >= job, what="durability", timeout_s=DEADLINE_S)


def inspect(path: Path) -> Result:
    return CliRunner().invoke(bdr, ["journal", str(path)])


def with_writes(host: Host, *, close: bool = True) -> None:
    """Leaves a journal behind, closed or as a crash does."""
    worker = host.open()
    worker.put(host.session())
    wait_durable(worker, 1)  # so that the second entry bears witness of the first
    worker.put(host.write(0, os.urandom(65536)))
    if close:
        worker.close()
        assert worker.error is None
    else:
        host.crash(worker)


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
