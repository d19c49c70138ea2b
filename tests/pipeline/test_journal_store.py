# SPDX-License-Identifier: GPL-2.0-only
"""The journal's store on real files, with its threads; and `bdr journal` on what it leaves."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bdr.common.errors import DeviceError, StateError, UsageError
from bdr.common.journal import format as journal_format
from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.extents import Extents, plan
from bdr.common.target.job import Job
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition
from bdr.services.cli.main import main as bdr
from bdr.services.target.journal_store import JournalStore, open_journal
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
    assert isinstance(worker.error, StateError)
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
        with pytest.raises(StateError, match="No space left on device; make room"):
            host.open(journal=str(path), size=32 * MIB)
        assert path.stat().st_size == 0
        host.open(journal=str(path)).close()
        with pytest.raises(StateError, match="No space left on device"):
            host.open(journal=str(path), size=32 * MIB)
        host.open(journal=str(path)).close()  # as it was before
    finally:
        subprocess.run(["umount", small], check=True)


# Which journal, and whose.


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


def test_clean_stop_allows_to_go_on_without_a_journal_and_back(host: Host) -> None:
    with_writes(host)
    assert "it was closed" in inspect(host.journal).output
    worker = host.open(journal="none")
    assert host.record.slot == 16
    assert host.record.journal == NO_JOURNAL
    assert host.record.at_start().condition is Condition.CONSISTENT
    worker.put(host.session())
    worker.put(host.write(4096, os.urandom(65536)))
    worker.put(host._job(replace(host.record, clean=True)))
    worker.close()
    worker = host.open()
    # The journal of before is not replayed over what came since.
    assert host.record.slot == 32
    assert host.is_applied()
    worker.close()


def test_killed_applier_does_not_start_without_its_journal(host: Host) -> None:
    with_writes(host, close=False)
    with pytest.raises(StateError, match="start the applier once with that journal"):
        host.open(journal="none")


def test_unclean_stop_without_journal_is_no_prefix_for_the_journal_either(host: Host) -> None:
    worker = host.open(journal="none")
    worker.put(host.session())
    worker.put(host.write(0, os.urandom(65536)))
    worker.close()
    worker = host.open()
    assert host.record.condition is Condition.CATCHING_UP
    worker.close()
    worker = host.open()
    assert host.record.condition is Condition.CATCHING_UP
    worker.close()


@pytest.mark.parametrize("how", ["deleted", "other", "zeroed", "damaged", "truncated"])
def test_journal_in_use_that_is_not_there_is_refused(host: Host, how: str) -> None:
    with_writes(host, close=False)
    if how == "deleted":
        host.journal.unlink()
    elif how == "zeroed":
        host.journal.write_bytes(bytes(SIZE))
    elif how == "damaged":
        damage(host.journal, 100)
        damage(host.journal, 4096 + 100)
    elif how == "truncated":
        os.truncate(host.journal, SIZE - 4096)
    else:
        with_writes(other := Host(host.directory.joinpath("other")), close=False)
        other.journal.rename(host.journal)
    content = host.target.read_bytes()
    with pytest.raises(StateError, match="delete the journal and the state file"):
        host.open()
    assert host.target.read_bytes() == content


def test_journal_of_a_lost_state_file_is_refused(host: Host) -> None:
    with_writes(host, close=False)
    host.state.unlink()
    with pytest.raises(StateError, match="in use, by another state file"):
        host.open()
    host.journal.unlink()
    host.open().close()


def test_closed_journal_of_a_deleted_state_file_begins_anew(host: Host) -> None:
    with_writes(host)
    host.state.unlink()
    worker = host.open()
    assert host.record.condition is Condition.INCONSISTENT
    assert host.record.slot == 0
    worker.close()


def test_bytes_that_are_no_journal_are_never_overwritten(host: Host) -> None:
    host.journal.write_bytes(b"precious" * 4096)
    with pytest.raises(StateError, match="no journal"):
        host.open()
    assert host.journal.read_bytes() == b"precious" * 4096


def test_file_system_that_begins_with_zeros_is_no_blank_journal(host: Host) -> None:
    """btrfs has its first superblock at 64 KiB, and leaves what is before to others."""
    with host.journal.open("wb") as file:
        file.truncate(3 * SIZE)
        file.seek(65536 + 64)
        file.write(b"_BHRfS_M")
    with pytest.raises(StateError, match="no journal"):
        host.open()
    assert host.journal.stat().st_size == 3 * SIZE


def test_blank_file_that_is_bigger_than_the_journal_stays_so(host: Host) -> None:
    with host.journal.open("wb") as file:
        file.truncate(3 * SIZE)
    for _ in range(2):
        host.open().close()
        assert host.journal.stat().st_size == 3 * SIZE


@pytest.mark.parametrize("what", ["target", "state"])
def test_target_or_state_named_as_journal_is_refused(host: Host, what: str) -> None:
    with pytest.raises(StateError, match="named as target or state file too"):
        host.open(journal=str(host.directory / what))


def test_journal_locked_by_another_applier_is_refused(host: Host, directory: Path) -> None:
    worker = host.open()
    other = Host(directory / "other")
    with pytest.raises(StateError, match="locked by another applier"):
        other.open(journal=str(host.journal))
    assert inspect(host.journal).exit_code == 75
    worker.close()


def test_journal_too_small_is_refused(host: Host) -> None:
    with pytest.raises(UsageError, match="--journal-size"):
        host.open(size=SIZE - 1)


@pytest.mark.parametrize("size", [SIZE, 24 * MIB, 40 * MIB])
@pytest.mark.parametrize("close", [True, False])
def test_journal_changes_its_size_between_runs(host: Host, size: int, close: bool) -> None:
    worker = host.open(size=24 * MIB)
    worker.put(host.session())
    for at in range(30):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    if close:
        worker.close()
    else:
        host.crash(worker)
    worker = host.open(size=size)
    assert host.journal.stat().st_size == size
    for at in range(50):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    host.crash(worker)
    worker = host.open(size=None)
    assert host.journal.stat().st_size == size
    worker.close()
    assert host.is_applied()


def test_journal_on_a_block_device(host: Host) -> None:
    backing = host.directory / "backing"
    with backing.open("wb") as file:
        file.truncate(20 * MIB)
    found = subprocess.run(
        ["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True
    )
    device = found.stdout.strip()
    try:
        worker = host.open(journal=device, size=None)
        worker.put(host.session())
        for at in range(50):
            worker.put(host.write(at * MIB, os.urandom(MIB)))
        host.crash(worker)
        worker = host.open(journal=device, size=None)
        assert host.is_applied()
        store = host.store
        assert isinstance(store, JournalStore)
        assert store._engine.superblock.log_bytes == journal_format.log_bytes_of(20 * MIB)
        worker.close()
        with pytest.raises(StateError, match="name a bigger one"):
            host.open(journal=device, size=32 * MIB)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


# Time and memory.


def test_512_mib_of_journal_are_applied_within_5_s(host: Host, directory: Path) -> None:
    worker = host.open(size=640 * MIB)
    host.device.gate.clear()
    worker.put(host.session())
    block = os.urandom(MIB)
    for at in range(512):
        worker.put(host.write(at % 64 * MIB, block[at:] + block[:at]))
    host.crash(worker)
    began_s = time.monotonic()
    worker = host.open(size=None)
    took_s = time.monotonic() - began_s
    worker.close()
    assert host.is_applied()
    assert took_s < 5


# The tool.


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def test_tool_tells_what_a_journal_holds(host: Host) -> None:
    with_writes(host, close=False)
    before = host.journal.read_bytes()
    result = inspect(host.journal)
    assert result.exit_code == 0
    for said in ("volume      v,", "2 jobs of 16 slots", "sound       yes", "start the applier"):
        assert said in result.output
    assert host.journal.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: damage(path, 4096 + 60), "copy 1 damaged"),
        (lambda path: None, "copy 0 intact, copy 1 intact"),
    ],
)
def test_tool_finds_sound_what_recovers(
    host: Host, spoil: Callable[[Path], None], said: str
) -> None:
    with_writes(host, close=False)
    spoil(host.journal)
    result = inspect(host.journal)
    assert result.exit_code == 0
    assert said in result.output


def spoil_both(path: Path) -> None:
    damage(path, 60)
    damage(path, 4096 + 60)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_both, "copy 0 damaged and copy 1 damaged"),
        (lambda path: damage(path, 8192 + 50), "acknowledged as durable once"),
        (lambda path: os.truncate(path, SIZE - 512), "it was truncated"),
        (lambda path: path.write_bytes(b"x" * SIZE), "no journal"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_tool_finds_unsound_what_is_refused(
    host: Host, spoil: Callable[[Path], None], said: str
) -> None:
    with_writes(host, close=False)
    spoil(host.journal)
    result = inspect(host.journal)
    assert result.exit_code == 72
    assert "sound       no" in result.output
    assert said in result.output


def test_tool_takes_a_blank_journal_for_sound(host: Host) -> None:
    host.journal.write_bytes(bytes(SIZE))
    result = inspect(host.journal)
    assert (result.exit_code, "blank" in result.output) == (0, True)


def test_store_opens_only_what_exists(host: Host) -> None:
    with pytest.raises(StateError, match="existing, writable directory"):
        open_journal(
            path=str(host.directory / "missing" / "journal"),
            size_bytes=None,
            device=TargetDevice(str(host.target)),
            record_file=RecordFile(str(host.state)),
            volume="v",
        )
