# SPDX-License-Identifier: GPL-2.0-only
"""The journal's store on real files, with its threads: acknowledge first, apply behind."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bdr.common.errors import DeviceError, StateDiskError
from bdr.common.wire.condition import Condition
from bdr.services.target.journal_store import JournalStore
from deploy.command import wait_for
from tests.pipeline.journal_host import (
    DEADLINE_S,
    MIB,
    SIZE,
    Host,
    durable,
    failed,
    host,
    inspect,
    wait_durable,
)

__all__ = ["host"]  # a fixture


# Acknowledge first, apply behind.


def test_jobs_are_durable_before_a_slow_device_has_them(host: Host) -> None:
    worker = host.open()
    host.device.gate.clear()
    worker.put(host.session())
    for at in range(64):
        worker.put(host.write(at * 65536, os.urandom(65536)))
    wait_durable(worker, host.jobs)
    assert not any(host.target.read_bytes())
    store = host.store
    assert isinstance(store, JournalStore)
    used, size = store.fill
    assert 64 * 65536 < used < size < SIZE
    host.device.gate.set()
    worker.close()
    assert host.is_applied()


def test_full_journal_holds_writes_back_until_the_device_has_caught_up(host: Host) -> None:
    worker = host.open()
    host.device.gate.clear()
    worker.put(host.session())
    for at in range(60):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    store = host.store
    assert isinstance(store, JournalStore)
    wait_for(lambda: store._is_room_wanted, what="a full journal", timeout_s=DEADLINE_S)
    assert durable(worker) <= 16  # jobs of 1 MiB in a journal of 16
    host.device.gate.set()
    wait_durable(worker, host.jobs)
    worker.close()
    assert worker.error is None
    assert host.is_applied()


def test_idle_journal_is_checkpointed_by_itself(host: Host) -> None:
    worker = host.open()
    worker.put(host.session())
    worker.put(host.write(0, os.urandom(MIB)))
    store = host.store
    assert isinstance(store, JournalStore)
    wait_for(lambda: store._engine.superblock.record.slot == 256, what="a checkpoint", timeout_s=10)
    worker.close()


def test_lone_write_is_durable_at_once(host: Host) -> None:
    worker = host.open()
    worker.put(host.session())
    wait_durable(worker, 1)
    took_s = []
    for at in range(200):
        job = host.write(at * 4096, os.urandom(4096))
        began_s = time.perf_counter()
        worker.put(job)
        while durable(worker) < job.number:
            time.sleep(0.0001)
        took_s.append(time.perf_counter() - began_s)
    worker.close()
    assert sorted(took_s)[len(took_s) // 2] < 0.010


# Crashes and failures.


def test_killed_applier_brings_its_device_up_to_the_journal(host: Host) -> None:
    worker = host.open()
    host.device.gate.clear()
    worker.put(host.session())
    for at in range(40):
        worker.put(host.write(at % 7 * 65536, os.urandom(65536)))
    wanted = host.record
    host.crash(worker)
    assert not host.is_applied()
    assert inspect(host.journal).exit_code == 0
    assert "41 jobs of 640 slots" in inspect(host.journal).output
    worker = host.open()
    assert host.is_applied()
    assert host.record == replace(wanted, clean=True, journal=host.record.journal)
    assert host.record.at_start().condition is Condition.CONSISTENT
    worker.close()


def test_failing_device_ends_the_worker_though_nothing_more_comes(host: Host) -> None:
    worker = host.open()
    host.device.gate.clear()
    worker.put(host.session())
    worker.put(host.write(0, os.urandom(65536)))
    wait_durable(worker, 2)
    host.device.failure = DeviceError("target: EIO")
    host.device.gate.set()
    wait_for(lambda: failed(worker), what="the error", timeout_s=DEADLINE_S)
    assert isinstance(worker.error, DeviceError)
    worker.close()
    worker = host.open()
    assert host.record.slot == 16
    assert host.is_applied()
    worker.close()


def test_settling_waits_for_the_device_and_says_when_it_failed(host: Host) -> None:
    worker = host.open()
    worker.put(host.session())
    worker.put(host.write(0, os.urandom(MIB)))
    wait_durable(worker, 2)
    worker.wait_applied()
    assert host.is_applied()
    host.device.gate.clear()
    worker.put(host.write(0, os.urandom(MIB)))
    wait_durable(worker, 3)
    host.device.failure = DeviceError("target: EIO")
    threading.Timer(0.05, host.device.gate.set).start()
    with pytest.raises(DeviceError):
        worker.wait_applied()
    worker.close()


def test_failing_device_ends_a_writer_that_waits_for_room(host: Host) -> None:
    worker = host.open()
    host.device.gate.clear()
    worker.put(host.session())
    for at in range(30):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    store = host.store
    assert isinstance(store, JournalStore)
    wait_for(lambda: store._is_room_wanted, what="a full journal", timeout_s=DEADLINE_S)
    host.device.failure = DeviceError("target: EIO")
    host.device.gate.set()
    wait_for(lambda: failed(worker), what="the error", timeout_s=DEADLINE_S)
    worker.close()
    acknowledged = worker.durable
    worker = host.open()
    assert host.record.slot >= (acknowledged - 1) * 256
    worker.close()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG, as on a disk that is full or broken there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failing_journal_ends_the_worker_and_keeps_what_was_acknowledged(host: Host) -> None:
    worker = host.open()
    worker.put(host.session())
    first = os.urandom(MIB)
    worker.put(host.write(0, first))
    wait_durable(worker, 2)
    with file_size_limit(4 * MIB):
        for _ in range(8):
            worker.put(host.write(0, os.urandom(MIB)))
        wait_for(lambda: failed(worker), what="the error", timeout_s=DEADLINE_S)
    assert isinstance(worker.error, StateDiskError)
    assert "nothing acknowledged is lost" in str(worker.error)
    worker.close()
    acknowledged = worker.durable
    worker = host.open()
    assert host.record.slot >= (acknowledged - 1) * 256
    worker.close()


def test_no_room_for_the_journal_is_said_and_leaves_nothing_behind(
    host: Host, directory: Path
) -> None:
    small = directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "bdr-test", small], check=True)
    try:
        path = small / "journal"
        with pytest.raises(StateDiskError, match="No space left on device; free space"):
            host.open(journal=str(path), size=32 * MIB)
        assert path.stat().st_size == 0
        host.open(journal=str(path)).close()
        with pytest.raises(StateDiskError, match="No space left on device"):
            host.open(journal=str(path), size=32 * MIB)
        host.open(journal=str(path)).close()  # as it was before
    finally:
        subprocess.run(["umount", small], check=True)


# Time and memory.


def test_512_mib_of_journal_are_applied_within_5_s_of_cpu(host: Host, directory: Path) -> None:
    worker = host.open(size=640 * MIB)
    host.device.gate.clear()
    worker.put(host.session())
    block = os.urandom(MIB)
    for at in range(512):
        worker.put(host.write(at % 64 * MIB, block[at:] + block[:at]))
    host.crash(worker)
    # Of this process: what else the machine does is no matter.
    began_s = time.process_time()
    worker = host.open(size=None)
    took_s = time.process_time() - began_s
    worker.close()
    assert host.is_applied()
    assert took_s < 5
