# SPDX-License-Identifier: GPL-2.0-only
"""Threads beside a loop: nothing queued is lost, and no failure goes unseen."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bdr.common.errors import DeviceError, InternalError, StateError
from bdr.common.target.extents import NO_EXTENTS
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.control import Checksums
from bdr.common.wire.reasons import DigestsRefused
from bdr.services.runtime.workers import Tasks, Workers
from bdr.services.target.checksummer import Checksummer
from bdr.services.target.store import GROUP_BYTES_MAX, StoreWorker

DEADLINE_S = 30.0
RECORD = ReplicaRecord(volume="v", device_sectors=8)


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], DEADLINE_S)[0], "no wakeup"


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def doubled(numbers: Tasks[int]) -> Iterator[int]:
    for number in numbers:
        yield number * 2


@pytest.mark.parametrize("threads", [1, 3])
def test_every_task_has_its_result_and_every_thread_ends(threads: int) -> None:
    before = threading.active_count()
    workers = Workers(doubled, threads=threads, name="test")
    for number in range(100):
        workers.put(number)
    workers.finish()
    assert sorted(workers.results()) == list(range(0, 200, 2))
    workers.close()
    assert threading.active_count() == before


def test_descriptor_is_readable_from_a_result_until_it_is_taken() -> None:
    workers = Workers(doubled, threads=1, name="test")
    assert not is_readable(workers.fileno())
    workers.put(4)
    wait_readable(workers.fileno())
    assert list(workers.results()) == [8]
    assert not is_readable(workers.fileno())
    workers.close()


def test_closed_workers_leave_no_descriptor() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    Workers(doubled, threads=2, name="test").close()
    assert set(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize("error", [DeviceError("broken"), ZeroDivisionError("a bug")])
def test_what_a_thread_raises_is_raised_behind_the_results_before_it(error: Exception) -> None:
    def failing(numbers: Tasks[int]) -> Iterator[int]:
        for number in numbers:
            if number == 3:
                raise error
            yield number

    workers = Workers(failing, threads=1, name="test")
    for number in (1, 2, 3):
        workers.put(number)
    workers.finish()
    results = workers.results()
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(type(error)) as caught:
        next(results)
    assert caught.value is error
    workers.close()


def test_discarded_tasks_are_not_done() -> None:
    gate = threading.Event()

    def held(numbers: Tasks[int]) -> Iterator[int]:
        for number in numbers:
            yield number  # the first one's wakeup says that it was taken
            gate.wait(DEADLINE_S)

    workers = Workers(held, threads=1, name="test")
    for number in range(5):
        workers.put(number)
    wait_readable(workers.fileno())
    workers.discard()
    gate.set()
    workers.finish()
    assert list(workers.results()) == [0]
    workers.close()


def test_queued_tasks_are_taken_without_waiting_and_the_end_stays() -> None:
    tasks: Tasks[int] = Tasks()
    tasks.put(1)
    tasks.put(2)
    tasks.end()
    assert [tasks.next_queued(), tasks.next_queued(), tasks.next_queued()] == [1, 2, None]
    assert list(tasks) == []


class Store:
    """Writes down what happens; a sync can be held, anything can fail."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.syncing = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def attach(self, on_failure: Any) -> None:
        self.on_failure = on_failure

    def write(self, job: Job) -> None:
        if self.failure:
            raise self.failure
        self.story.append(f"write {job.number}")

    def sync(self, record: ReplicaRecord) -> None:
        self.story.append(f"sync {record.slot}")
        self.syncing.set()
        self.gate.wait(DEADLINE_S)

    def wait_applied(self) -> None:
        if self.failure:
            raise self.failure

    def close(self) -> None:
        self.story.append("close")


def job(number: int, payload: bytes = b"") -> Job:
    return Job(number, NO_EXTENTS, b"", payload, replace(RECORD, slot=number))


@pytest.fixture
def store() -> Store:
    return Store()


def test_jobs_that_queue_up_during_a_sync_share_the_next(store: Store) -> None:
    worker = StoreWorker(store)
    store.gate.clear()
    worker.put(job(1))
    assert store.syncing.wait(DEADLINE_S)
    for number in (2, 3, 4):
        worker.put(job(number))
    store.gate.set()
    worker.close()
    assert worker.durable == 4
    assert worker.error is None
    assert store.story == ["write 1", "sync 1", "write 2", "write 3", "write 4", "sync 4", "close"]


def test_a_group_is_synced_at_its_size_though_more_is_queued(store: Store) -> None:
    worker = StoreWorker(store)
    store.gate.clear()
    worker.put(job(1))
    assert store.syncing.wait(DEADLINE_S)
    half = bytes(GROUP_BYTES_MAX // 2)
    for number in (2, 3, 4):
        worker.put(job(number, half))
    store.gate.set()
    worker.close()
    assert store.story[2:] == ["write 2", "write 3", "sync 3", "write 4", "sync 4", "close"]


def test_a_failure_of_the_store_ends_its_worker(store: Store) -> None:
    worker = StoreWorker(store)
    store.failure = StateError("full")
    worker.put(job(1))
    wait_readable(worker.fileno())
    worker.drain_wakeup()
    assert worker.error is store.failure
    assert worker.durable == 0
    worker.close()


def test_a_bug_in_the_store_is_an_error_too(store: Store) -> None:
    worker = StoreWorker(store)
    store.failure = ZeroDivisionError()
    worker.put(job(1))
    wait_readable(worker.fileno())
    worker.drain_wakeup()
    assert isinstance(worker.error, InternalError)
    worker.close()


def test_a_failure_outside_the_worker_is_seen_though_nothing_comes(store: Store) -> None:
    worker = StoreWorker(store)
    store.on_failure(DeviceError("EIO"))
    wait_readable(worker.fileno())
    worker.drain_wakeup()
    assert isinstance(worker.error, DeviceError)
    worker.close()


def test_a_failure_while_the_store_closes_is_seen(store: Store) -> None:
    worker = StoreWorker(store)
    store.close = lambda: store.on_failure(DeviceError("EIO"))  # type: ignore[method-assign]
    worker.close()
    assert isinstance(worker.error, DeviceError)


class Device:
    """A target of 8 sectors that can fail."""

    sectors = 8

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        del buffer, offset
        if self.failure:
            raise self.failure


QUESTION = Checksums(7, 1, 0, [(0, 8)])


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def checksummer(device: Any, store: Store) -> Iterator[Checksummer]:
    worker = StoreWorker(store)
    made = Checksummer(device, worker)
    yield made
    made.close()
    worker.close()


def test_a_request_is_answered_with_digests(checksummer: Checksummer) -> None:
    checksummer.put(b"peer", QUESTION)
    wait_readable(checksummer.fileno())
    ((peer, answer),) = checksummer.answers()
    assert (peer, answer.request, answer.refused) == (b"peer", 7, DigestsRefused.NONE)
    assert answer.digests


def test_a_device_that_cannot_be_read_is_an_answer(
    checksummer: Checksummer, device: Device
) -> None:
    device.failure = DeviceError("EIO")
    checksummer.put(b"peer", QUESTION)
    wait_readable(checksummer.fileno())
    ((_, answer),) = checksummer.answers()
    assert (answer.digests, answer.refused) == (b"", DigestsRefused.UNREADABLE)


def test_a_bug_in_a_checksum_does_not_go_unseen(checksummer: Checksummer, device: Device) -> None:
    device.failure = ZeroDivisionError()
    checksummer.put(b"peer", QUESTION)
    wait_readable(checksummer.fileno())
    with pytest.raises(ZeroDivisionError):
        checksummer.answers()
