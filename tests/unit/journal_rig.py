# SPDX-License-Identifier: GPL-2.0-only
"""A journal on a disk in memory that can lose, tear and fail, stepped by tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest

from bdr.common.errors import DeviceError, StateError
from bdr.common.journal import entry as entry_format
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.entry import EntryHeader
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import BLOCK_BYTES, LOG_OFFSET
from bdr.common.journal.recovery import Recovery, recover
from bdr.common.journal.run import begin_run, create, open_run
from bdr.common.journal.superblock import Superblock
from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.ring.slots import encode
from bdr.common.target.extents import Extents, plan
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import AcceptedBatch
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition
from tests.simulation.disk import Disk, DiskFailedError

VOLUME = "vol"
STREAM = bytes(range(16))
JOURNAL_ID = bytes(range(100, 116))
DEVICE_SECTORS = 1024
JOBS_BEFORE = 3
RECORD = ReplicaRecord(
    volume=VOLUME,
    device_sectors=DEVICE_SECTORS,
    stream=STREAM,
    slot=7,
    epoch=3,
    condition=Condition.CONSISTENT,
)


@dataclass
class MemoryJournal:
    """A journal's disk, over the simulator's."""

    disk: Disk
    path: str = "journal"

    def read(self, offset: int, length: int) -> bytes:
        return self.disk.read(offset, length)

    def write(self, offset: int, pieces: list[Buffer]) -> None:
        try:
            self.disk.write(offset, b"".join(pieces))
        except DiskFailedError as error:
            raise StateError(str(error)) from error

    def sync(self) -> None:
        try:
            self.disk.sync()
        except DiskFailedError as error:
            raise StateError(str(error)) from error


@dataclass
class MemoryDevice:
    """A target, over the simulator's disk."""

    disk: Disk

    def apply(self, extents: Extents, payload: Buffer) -> None:
        try:
            for op, offset, length, source in zip(
                extents.op, extents.offset, extents.length, extents.source, strict=True
            ):
                data = payload[source : source + length] if op == Op.WRITE else bytes(length)
                self.disk.write(offset, data)
        except DiskFailedError as error:
            raise DeviceError(str(error)) from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.disk.read(offset, len(buffer))

    def sync(self) -> None:
        try:
            self.disk.sync()
        except DiskFailedError as error:
            raise DeviceError(str(error)) from error


@dataclass
class Jobs:
    """Makes jobs that continue a record, and remembers the device after each."""

    record: ReplicaRecord
    content: bytearray
    prefixes: dict[ReplicaRecord, bytes] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self._remember()

    def write(self, sectors: list[int], fill: bytes, *, op: Op = Op.WRITE) -> Job:
        """One slot of 4 KiB for each of the sectors."""
        payload = bytearray()
        for at, sector in enumerate(sectors):
            if op == Op.WRITE:
                data = (fill + bytes([at % 256])) * (4096 // (len(fill) + 1) + 1)
                payload += data[:4096]
                self.content[sector * 512 : sector * 512 + 4096] = data[:4096]
            else:
                payload += (8).to_bytes(8, "little").ljust(4096, b"\0")
                self.content[sector * 512 : sector * 512 + 4096] = bytes(4096)
        headers = encode(op=op, sector=np.array(sectors, np.uint64)).tobytes()
        first, count = self.record.slot, len(sectors)
        self.record = replace(
            self.record,
            slot=first + count,
            recent=(AcceptedBatch(self.record.epoch, 1, first, count, bytes(16)),),
        )
        return self._job(headers, bytes(payload))

    def session(self) -> Job:
        """A source greets: no slots, a new epoch."""
        self.record = replace(self.record, epoch=self.record.epoch + 1)
        return self._job(b"", b"")

    def mark(self, condition: Condition) -> Job:
        """No slots, another condition."""
        self.record = replace(self.record, condition=condition, changes=self.record.changes + 1)
        return self._job(b"", b"")

    def _job(self, headers: bytes, payload: bytes) -> Job:
        self.number += 1
        self._remember()
        extents = plan(headers, payload, device_sectors=DEVICE_SECTORS)
        return Job(self.number, extents, headers, payload, self.record)

    def _remember(self) -> None:
        self.prefixes[self.record] = bytes(self.content)


class Target:
    """Journal and device of one target, with the life cycle of an applier."""

    def __init__(self, *, blocks: int = 32) -> None:
        self.log_bytes = blocks * BLOCK_BYTES
        self.journal = MemoryJournal(Disk(LOG_OFFSET + self.log_bytes))
        self.device = MemoryDevice(Disk(DEVICE_SECTORS * SECTOR_BYTES))
        self.jobs = Jobs(RECORD, bytearray(DEVICE_SECTORS * SECTOR_BYTES))
        closed = create(
            self.journal, journal_id=JOURNAL_ID, log_bytes=self.log_bytes, record=RECORD
        )
        self.start(begin_run(self.journal, closed, at=closed.checkpoint, record=RECORD))

    def start(self, superblock: Superblock) -> None:
        """Runs an engine behind this superblock."""
        self.engine = JournalEngine(
            disk=self.journal,
            checkpoint_disk=self.journal,
            device=self.device,
            superblock=superblock,
        )

    def add(self, *jobs: Job) -> None:
        """Appends and commits."""
        for job in jobs:
            self.engine.append(job)
        self.engine.commit()

    def apply_all(self) -> None:
        """Applies what is committed."""
        while self.engine.unapplied_bytes:
            self.engine.apply_next()

    def recover(self, *, device_sectors: int = DEVICE_SECTORS, volume: str = VOLUME) -> Recovery:
        """What a starting applier finds; nothing is written."""
        found = recover(
            self.journal.read,
            where=self.journal.path,
            size_bytes=len(self.journal.disk.content),
            volume=volume,
            device_sectors=device_sectors,
        )
        assert found is not None
        return found

    def restart(self) -> Recovery:
        """Recovers and goes on, as after kill -9."""
        self.journal.sync()
        found = self.recover()
        self.start(open_run(self.journal, self.device, found))
        self.jobs.record = found.record
        self.jobs.content = bytearray(self.jobs.prefixes[found.record])
        return found

    def cut_power(self, rng: Random | None = None) -> None:
        """Leaves what is synced, and of the rest what `rng` says."""
        self.journal.disk = self.journal.disk.after_power_cut(rng)
        self.device.disk = self.device.disk.after_power_cut(rng)

    @property
    def content(self) -> bytes:
        """Of the device."""
        return bytes(self.device.disk.content)


def with_jobs(count: int = JOBS_BEFORE) -> Target:
    """A target with so many committed jobs of one slot, none applied, one group each."""
    target = Target()
    for at in range(count):
        target.add(target.jobs.write([at * 8], b"job %d" % at))
    return target


def header_at(target: Target, index: int) -> tuple[int, EntryHeader]:
    """Offset and header of the entry with this index, each of one slot."""
    offset = LOG_OFFSET + index * entry_format.entry_bytes(1)
    header = entry_format.decode_entry_header(target.journal.read(offset, BLOCK_BYTES))
    assert header is not None
    return offset, header


def put(target: Target, offset: int, data: bytes) -> None:
    """Changes the disk behind everyone's back."""
    target.journal.disk.content[offset : offset + len(data)] = data


def forge(target: Target, index: int, **changes: Any) -> None:
    """Writes an entry anew with other fields, under checksums that fit.

    Args:
        changes: fields of the header; those of its record are named `record_...`.
    """
    offset, header = header_at(target, index)
    of_record = {name: value for name, value in changes.items() if name.startswith("record_")}
    if of_record:
        assert header.record is not None
        fields = {name.removeprefix("record_"): value for name, value in of_record.items()}
        header = replace(header, record=replace(header.record, **fields))
    changes = {name: value for name, value in changes.items() if name not in of_record}
    meta = bytearray(target.journal.read(offset, BLOCK_BYTES))
    payload = target.journal.read(offset + BLOCK_BYTES, 4096)
    entry_format._seal(meta, payload, replace(header, **changes))
    put(target, offset, bytes(meta))


def refused(target: Target, **arguments: object) -> str:
    """The message of the refusal; checks that nothing was written or applied."""
    before = target.content, bytes(target.journal.disk.content)
    with pytest.raises(JournalRefusedError) as caught:
        target.recover(**arguments)  # type: ignore[arg-type]
    assert (target.content, bytes(target.journal.disk.content)) == before
    assert caught.value.exit_code == StateError.exit_code
    message = str(caught.value)
    assert "found" in message
    assert "wanted" in message
    return message
