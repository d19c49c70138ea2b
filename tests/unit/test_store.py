# SPDX-License-Identifier: GPL-2.0-only
"""The store without a journal: in which order things become durable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bdr.common.target.extents import NO_EXTENTS, Extents
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.condition import Condition
from bdr.services.target.store import DirectStore

RECORD = ReplicaRecord(volume="v", device_sectors=8)


class FakeDisks:
    """Device and state file in one, which write down what happens."""

    def __init__(self) -> None:
        self.story: list[str] = []

    def apply(self, extents: Extents, payload: bytes) -> None:
        del extents
        self.story.append(f"apply {payload.decode()}")

    def sync(self) -> None:
        self.story.append("sync")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        del buffer, offset

    def save(self, record: ReplicaRecord, witness: bytes) -> None:
        del witness
        self.story.append(f"save {record.condition.name}")


def job(payload: bytes, condition: Condition, **changes: bytes) -> Job:
    record = replace(RECORD, condition=condition, **changes)  # type: ignore[arg-type]
    return Job(1, NO_EXTENTS, b"", payload, record)


def test_condition_is_durable_before_what_follows_its_mark_is_applied() -> None:
    """Else a crash leaves what is newer on the device, and says that it is a prefix."""
    disks: Any = FakeDisks()
    store = DirectStore(disks, disks)
    store.write(job(b"live 1", Condition.CATCHING_UP))
    disks.story.clear()
    for payload in (b"live 2", b"live 3"):
        store.write(job(payload, Condition.CATCHING_UP))
    store.write(job(b"", Condition.INCONSISTENT))
    store.write(job(b"resync", Condition.INCONSISTENT))
    store.sync(replace(RECORD, condition=Condition.INCONSISTENT))
    assert disks.story == [
        "apply live 2",
        "apply live 3",
        "apply ",
        "sync",
        "save INCONSISTENT",
        "apply resync",
        "sync",
        "save INCONSISTENT",
    ]


@pytest.mark.parametrize(
    "change", [{"source": b"another-source.."}, {"stream": b"another-stream.."}]
)
def test_first_batch_of_another_source_or_stream_is_durable_before_what_follows_it(
    change: dict[str, bytes],
) -> None:
    """Else a crash leaves its writes on the device, and the record of the one before."""
    disks: Any = FakeDisks()
    store = DirectStore(disks, disks)
    store.write(job(b"live 1", Condition.UNVERIFIED))
    disks.story.clear()
    store.write(job(b"", Condition.UNVERIFIED, **change))
    store.write(job(b"live 2", Condition.UNVERIFIED, **change))
    assert disks.story == ["apply ", "sync", "save UNVERIFIED", "apply live 2"]
