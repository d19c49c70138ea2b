# SPDX-License-Identifier: GPL-2.0-only
"""The target's disks, and what a store keeps on them.

A store mirrors one of `services/store.py`, with a `Disk` in place of each file.
"""

from __future__ import annotations

from random import Random
from typing import Protocol

from common import record as format_
from common.extents import Extents
from common.record import ReplicaRecord
from common.replica import Apply
from common.ring import Op
from tests.simulation.disk import Disk

VOLUME = "volume"


class Store(Protocol):
    """Where the applier's jobs go."""

    device: Disk
    survives_crashes: bool
    """Whether a recovered device is a prefix at once."""

    def disks(self) -> dict[str, Disk]:
        """All disks by name, for faults."""
        ...

    def recover(self) -> ReplicaRecord:
        """What a starting applier does first."""
        ...

    def write(self, job: Apply) -> None:
        """Takes one job; jobs come in order."""
        ...

    def sync(self, record: ReplicaRecord) -> None:
        """Makes every job so far durable, and `record` with them."""
        ...

    def after_power_cut(self, rng: Random | None) -> Store:
        """The same store on what a power cut leaves of its disks."""
        ...


def apply_extents(
    device: Disk, extents: Extents, payload: bytes | memoryview, *, count: int | None = None
) -> None:
    """As `TargetDevice.apply`: the first `count` extents, or all."""
    for op, offset, length, source in list(
        zip(extents.op, extents.offset, extents.length, extents.source, strict=True)
    )[:count]:
        if op == Op.WRITE:
            device.write(offset, payload[source : source + length])
        else:
            device.write(offset, bytes(length))


class DirectStore:
    """Without a journal: apply, sync the device, then the record."""

    survives_crashes = False

    def __init__(self, *, device: Disk, record_file: Disk) -> None:
        self.device = device
        self._record_file = record_file
        self._generation = 0

    @classmethod
    def blank(cls, device_sectors: int) -> DirectStore:
        return cls(device=Disk(device_sectors * 512), record_file=Disk(format_.RECORD_BYTES))

    def disks(self) -> dict[str, Disk]:
        return {"device": self.device, "record": self._record_file}

    def recover(self) -> ReplicaRecord:
        copies = [
            self._record_file.read(at * format_.COPY_BYTES, format_.COPY_BYTES)
            for at in range(format_.COPIES)
        ]
        found = format_.choose(copies, where="simulated")
        if found is None:
            return ReplicaRecord(volume=VOLUME, device_sectors=len(self.device.content) // 512)
        self._generation, record = found
        return record

    def write(self, job: Apply) -> None:
        apply_extents(self.device, job.extents, job.payload)

    def sync(self, record: ReplicaRecord) -> None:
        self.device.sync()
        self._generation += 1
        at = self._generation % format_.COPIES * format_.COPY_BYTES
        self._record_file.write(at, format_.encode_copy(record, self._generation))
        self._record_file.sync()

    def after_power_cut(self, rng: Random | None) -> DirectStore:
        return DirectStore(
            device=self.device.after_power_cut(rng),
            record_file=self._record_file.after_power_cut(rng),
        )
