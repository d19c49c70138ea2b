# SPDX-License-Identifier: GPL-2.0-only
"""The target's disks, and what a store keeps on them.

A `Disk` stands in place of each file, and the applier's clock in place of threads.
The store without a journal is the real one; of the one with a journal format, engine
and recovery are.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any, Protocol
from unittest import mock

from bdr.common.copies import FILE_BYTES, place_of
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.layout import LOG_OFFSET
from bdr.common.journal.recovery import Recovery, recover
from bdr.common.journal.replay import replay
from bdr.common.journal.run import open_run
from bdr.common.journal.superblock_choice import BLANK_BYTES
from bdr.common.ring.layout import HEADER_BYTES, SECTOR_BYTES, Op
from bdr.common.target import record as format_
from bdr.common.target.extents import Extents
from bdr.common.target.job import Job
from bdr.common.target.record import NO_JOURNAL, NO_SOURCE, ReplicaRecord, demoted
from bdr.common.target.witness import Witness
from bdr.common.wire.codec import Buffer
from bdr.services.target import journal_store, store
from bdr.services.target.recognition import recognised
from tests.simulation.disk import Disk

VOLUME = "volume"
TARGET = b"the-target's-id."
CHECKPOINTS_A_LAP = 8


class Watcher(Protocol):
    """Sees what reaches the device."""

    def on_device(self, extents: Extents, payload: Buffer) -> None:
        """A job is about to."""
        ...

    def on_applied(self, record: ReplicaRecord) -> None:
        """It has; `record` is the job's."""
        ...

    def on_record_written(self) -> None:
        """A copy of the record is written, and not synced yet."""
        ...


class Nobody:
    """Watches nothing."""

    def on_device(self, extents: Extents, payload: Buffer) -> None:
        pass

    def on_applied(self, record: ReplicaRecord) -> None:
        pass

    def on_record_written(self) -> None:
        pass


NOBODY = Nobody()


class Store(Protocol):
    """Where the applier's jobs go."""

    device: Disk
    watcher: Watcher

    @property
    def durable_position(self) -> int:
        """How far what was written is durable."""
        ...

    @property
    def applied_position(self) -> int:
        """How far it is on the device."""
        ...

    def disks(self) -> dict[str, Disk]:
        """All disks by name, for faults."""
        ...

    def put(self, name: str, disk: Disk) -> None:
        """Another disk is in the place of this one, while no applier runs."""
        ...

    def kept(self) -> tuple[Witness, set[int]] | None:
        """By what the device is recognised when an applier starts now, and the sectors that
        the journal writes then; None: by nothing."""
        ...

    def recover(self) -> ReplicaRecord:
        """What a starting applier does first."""
        ...

    def fits(self, job: Job) -> bool:
        """Whether `write` has room; if not, steps make some."""
        ...

    def write(self, job: Job) -> None:
        """Takes one job; jobs come in order."""
        ...

    def sync(self, record: ReplicaRecord) -> None:
        """Makes every job so far durable, and `record` with them."""
        ...

    def step(self) -> bool:
        """Work behind the acknowledgements; False when there is none."""
        ...

    def close(self) -> None:
        """A clean end; every job was synced."""
        ...

    def after_power_cut(self, rng: Random | None, watcher: Watcher = NOBODY) -> Store:
        """The same store on what a power cut leaves of its disks."""
        ...

    def demote(self, adopts: bytes = NO_SOURCE) -> None:
        """As `bdr demote`, while no applier runs; or as `bdr adopt` of another device."""
        ...


class Device:
    """As `TargetDevice`."""

    def __init__(self, disk: Disk, watcher: Watcher) -> None:
        self._disk = disk
        self._watcher = watcher

    def apply(self, extents: Extents, payload: Buffer) -> None:
        self._watcher.on_device(extents, payload)
        for op, offset, length, source in zip(
            extents.op, extents.offset, extents.length, extents.source, strict=True
        ):
            if op == Op.WRITE:
                self._disk.write(offset, payload[source : source + length])
            else:
                self._disk.write(offset, bytes(length))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._disk.read(offset, len(buffer))

    def sync(self) -> None:
        self._disk.sync()


class RecordFile:
    """As `common.storage.record_file`."""

    def __init__(self, disk: Disk, watcher: Watcher = NOBODY) -> None:
        self._disk = disk
        self._watcher = watcher
        self._generation = 0
        self.witness = b""

    def load(self, device_sectors: int) -> ReplicaRecord:
        self._drop_page_cache()
        self._generation = 0  # this is another process
        kept = format_.COPIES.choose(self._disk.read(0, FILE_BYTES), where="simulated")
        self.witness = b""
        if kept is None:
            return ReplicaRecord(VOLUME, device_sectors, target=TARGET)
        self._generation = kept.generation
        values = dict(kept.values)
        self.witness = values.pop("witness")
        record = format_.of_values(values)
        assert record is not None
        return record

    def _drop_page_cache(self) -> None:
        self._disk.sync()
        self._disk.drop_cache()

    def save(self, record: ReplicaRecord, witness: bytes = b"") -> None:
        self._generation += 1
        values = {**format_.values_of(record), "witness": witness}
        copy = format_.COPIES.encode(values, self._generation)
        self._disk.write(place_of(self._generation), copy)
        self._watcher.on_record_written()
        self._disk.sync()


class DirectStore:
    """Without a journal: apply, sync the device, then the record."""

    def __init__(self, *, device: Disk, record_disk: Disk, watcher: Watcher) -> None:
        self.device = device
        self.watcher = watcher
        self._record_disk = record_disk
        self._record_file = RecordFile(record_disk, watcher)
        self._store: store.DirectStore

    @classmethod
    def blank(cls, *, device_sectors: int, log_bytes: int, watcher: Watcher) -> DirectStore:
        del log_bytes
        return cls(
            device=Disk(device_sectors * 512),
            record_disk=Disk(FILE_BYTES),
            watcher=watcher,
        )

    durable_position = applied_position = 0
    """What is durable is applied."""

    def disks(self) -> dict[str, Disk]:
        return {"device": self.device, "record": self._record_disk}

    def put(self, name: str, disk: Disk) -> None:
        if name == "device":
            self.device = disk
        else:
            self._record_disk = disk
            self._record_file = RecordFile(disk, self.watcher)

    def kept(self) -> tuple[Witness, set[int]] | None:
        return _kept_by(self._record_file, len(self.device.content) // SECTOR_BYTES)

    def recover(self) -> ReplicaRecord:
        self.device.settle()
        device: Any = Device(self.device, self.watcher)
        record_file: Any = self._record_file
        record = self._record_file.load(len(self.device.content) // 512)
        record, witness = recognised(device, record, self._record_file.witness)
        self._store = store.DirectStore(device, record_file, witness)
        return record

    def fits(self, job: Job) -> bool:
        del job
        return True

    def write(self, job: Job) -> None:
        self._store.write(job)
        self.watcher.on_applied(job.record)

    def sync(self, record: ReplicaRecord) -> None:
        self._store.sync(record)

    def step(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def demote(self, adopts: bytes = NO_SOURCE) -> None:
        self.device.settle()
        file = RecordFile(self._record_disk)
        record = file.load(len(self.device.content) // 512)
        file.save(replace(demoted(record, now_utc=1), adopts=adopts))

    def after_power_cut(self, rng: Random | None, watcher: Watcher = NOBODY) -> DirectStore:
        return DirectStore(
            device=self.device.after_power_cut(rng),
            record_disk=self._record_disk.after_power_cut(rng),
            watcher=watcher,
        )


def _kept_by(file: RecordFile, device_sectors: int) -> tuple[Witness, set[int]] | None:
    record = file.load(device_sectors)
    witness = Witness.decode(file.witness)
    assert witness is not None
    return (witness, set()) if record.clean else None


class JournalFile:
    """As `common.storage.journal_file`."""

    path = "simulated"
    is_block = False

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return len(self._disk.content)

    def allocate(self, size_bytes: int) -> None:
        pass

    def settle(self) -> None:
        self._disk.sync()
        self._disk.drop_cache()

    def read(self, offset: int, length: int) -> bytes:
        return self._disk.read(offset, length)

    def write(self, offset: int, pieces: list[Buffer]) -> None:
        self._disk.write(offset, b"".join(pieces))

    def sync(self) -> None:
        self._disk.sync()


class JournalStore:
    """With a journal: acknowledge when it is synced, apply and checkpoint in `step`."""

    def __init__(
        self, *, device: Disk, record_disk: Disk, log_disk: Disk, watcher: Watcher
    ) -> None:
        self.device = device
        self.watcher = watcher
        self._record_disk = record_disk
        self._log_disk = log_disk
        self._record_file = RecordFile(record_disk)
        self._is_room_wanted = False
        self._engine: JournalEngine

    @classmethod
    def blank(cls, *, device_sectors: int, log_bytes: int, watcher: Watcher) -> JournalStore:
        return cls(
            device=Disk(device_sectors * 512),
            record_disk=Disk(FILE_BYTES),
            log_disk=Disk(LOG_OFFSET + log_bytes),
            watcher=watcher,
        )

    @property
    def durable_position(self) -> int:
        return self._engine.durable_position

    @property
    def applied_position(self) -> int:
        return self._engine.applied_position

    def disks(self) -> dict[str, Disk]:
        return {"device": self.device, "record": self._record_disk, "log": self._log_disk}

    def put(self, name: str, disk: Disk) -> None:
        if name == "device":
            self.device = disk
        elif name == "log":
            self._log_disk = disk
        else:
            self._record_disk = disk
            self._record_file = RecordFile(disk)

    def kept(self) -> tuple[Witness, set[int]] | None:
        sectors = len(self.device.content) // SECTOR_BYTES
        if self._record_file.load(sectors).journal == NO_JOURNAL:
            return _kept_by(self._record_file, sectors)
        file = JournalFile(self._log_disk)
        found = self._found(file)
        assert found is not None
        return found.versions.witness, {
            sector
            for entry in replay(file.read, found)
            for offset, length in zip(entry.extents.offset, entry.extents.length, strict=True)
            for sector in range(offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES)
        }

    def _found(self, file: JournalFile) -> Recovery | None:
        return recover(
            file.read,
            where="simulated",
            size_bytes=file.size_bytes,
            volume=VOLUME,
            device_sectors=len(self.device.content) // SECTOR_BYTES,
        )

    def recover(self) -> ReplicaRecord:
        """As `services.target.journal_store.open_journal`."""
        self.device.settle()
        file: Any = JournalFile(self._log_disk)
        device: Any = Device(self.device, self.watcher)
        record_file: Any = self._record_file
        sectors = len(self.device.content) // 512
        remembered = self._record_file.load(sectors)
        file.settle()
        found = self._found(file)

        def replay(_file: Any, _device: Any, recovery: Any, log_bytes: int) -> Any:
            return open_run(file, device, recovery, log_bytes=log_bytes)

        # The real one also logs, and takes the time.
        with mock.patch.object(journal_store, "_replay", replay):
            size_bytes = None if found else file.size_bytes
            superblock, record = journal_store._open(
                file, found, remembered, size_bytes, device, record_file
            )
        self._engine = JournalEngine(
            disk=file, checkpoint_disk=file, device=device, superblock=superblock
        )
        return record

    def fits(self, job: Job) -> bool:
        self._is_room_wanted = not self._engine.fits(len(job.headers) // HEADER_BYTES)
        if self._is_room_wanted:
            self._engine.commit()
        return not self._is_room_wanted

    def write(self, job: Job) -> None:
        self._engine.append(job)

    def sync(self, record: ReplicaRecord) -> None:
        del record
        self._engine.commit()

    def step(self) -> bool:
        engine = self._engine
        if engine.uncheckpointed_bytes * CHECKPOINTS_A_LAP >= engine.superblock.log_bytes:
            engine.checkpoint()
        elif engine.unapplied_bytes:
            engine.apply_next()
            self.watcher.on_applied(engine._record)
        elif self._is_room_wanted and engine.can_free:
            engine.checkpoint()
        else:
            return False
        return True

    def close(self) -> None:
        while self.step():
            pass
        record = self._engine.close()
        witness = self._engine.superblock.witness
        self._record_file.save(replace(record, clean=True, journal=NO_JOURNAL), witness)

    def demote(self, adopts: bytes = NO_SOURCE) -> None:
        self.device.settle()
        self._log_disk.settle()
        record = self._record_file.load(len(self.device.content) // 512)
        self._log_disk.write(0, bytes(BLANK_BYTES))
        self._log_disk.sync()
        self._record_file.save(replace(demoted(record, now_utc=1), adopts=adopts))

    def after_power_cut(self, rng: Random | None, watcher: Watcher = NOBODY) -> JournalStore:
        return JournalStore(
            device=self.device.after_power_cut(rng),
            record_disk=self._record_disk.after_power_cut(rng),
            log_disk=self._log_disk.after_power_cut(rng),
            watcher=watcher,
        )
