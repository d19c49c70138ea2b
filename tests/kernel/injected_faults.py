# SPDX-License-Identifier: GPL-2.0-only
"""Allocations and requests that fail on purpose: `make test-kasan`.

Needs a kernel with fault injection, which distributions do not ship; hence the
name, which pytest collects only when it is asked for this file. What is checked:
an error is an error code and nothing else (no message of the kernel, no leak),
and a write is in the ring or marked, whatever fails on its way.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.dm import DmCapture
from bdr.common.errors import CaptureError
from tests.kernel.devices import Bdr, Direct, Loop, run, sectors_of
from tests.kernel.mirror import Mirror

DEBUG = Path("/sys/kernel/debug")
KMEMLEAK = DEBUG / "kmemleak"
ALLOCATORS = ("failslab", "fail_page_alloc")
FAULTS_MAX = 3000
"""Allocations of one system call; more means that a loop does not end."""

CREATE, REMOVE, SUSPEND, LOAD, CLEAR = 3, 4, 6, 9, 10
_SUSPEND_FLAG = 1 << 1
_HEAD = struct.Struct("<3I3IiIIIQ128s129s7x")
_SPEC = struct.Struct("<QQiI16s")


class Control:
    """Device-mapper's requests without dmsetup: one system call each."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/mapper/control", os.O_RDWR)

    def close(self) -> None:
        os.close(self._fd)

    def request(self, number: int, name: str, *, table: str = "", flags: int = 0) -> bytearray:
        """What `call` wants, so that nothing is left to be done between fault and call."""
        body = b""
        if table:
            start, length, kind, arguments = table.split(" ", 3)
            text = arguments.encode() + b"\0"
            text += bytes(-(_SPEC.size + len(text)) % 8)
            body = _SPEC.pack(int(start), int(length), 0, _SPEC.size + len(text), kind.encode())
            body += text
        head = _HEAD.pack(4, 0, 0, _HEAD.size + len(body), _HEAD.size, bool(table), 0, flags, 0, 0,
                          0, name.encode(), b"")  # fmt: skip
        code = 3 << 30 | _HEAD.size << 16 | 0xFD << 8 | number
        # Room for what the kernel answers; ioctl copies shorter buffers on its own stack.
        return bytearray(code.to_bytes(4, "little")) + bytearray(head + body).ljust(4096, b"\0")

    def call(self, request: bytearray) -> None:
        """Makes the call; OSError if the kernel refuses."""
        code = int.from_bytes(request[:4], "little")
        with memoryview(request)[4:] as body:
            fcntl.ioctl(self._fd, code, body, True)

    def do(self, number: int, name: str, *, table: str = "", flags: int = 0) -> None:
        """Builds and calls."""
        self.call(self.request(number, name, table=table, flags=flags))


@pytest.fixture
def control(module: None) -> Iterator[Control]:
    control = Control()
    try:
        yield control
    finally:
        control.close()


@pytest.fixture(autouse=True)
def faults() -> Iterator[None]:
    """Faults in every allocation that may fail, quietly; leaves none switched on."""
    for name in ALLOCATORS:
        settle(name, probability=0)
        (DEBUG / name / "ignore-gfp-wait").write_text("N")
    (DEBUG / "fail_page_alloc" / "min-order").write_text("0")
    settle("fail_make_request", probability=0)
    try:
        yield
    finally:
        for name in (*ALLOCATORS, "fail_make_request"):
            settle(name, probability=0)
        for name in ALLOCATORS:
            (DEBUG / name / "require-start").write_text("0")
            (DEBUG / name / "require-end").write_text(hex((1 << 64) - 1))


def only_below_the_module(name: str) -> None:
    """Faults only where the module is among the callers: what runs the test needs memory."""
    start = int(Path("/sys/module/bdr/sections/.text").read_text(), 16)
    size = next(
        int(line.split()[1])
        for line in Path("/proc/modules").read_text().splitlines()
        if line.startswith("bdr ")
    )
    (DEBUG / name / "stacktrace-depth").write_text("32")
    (DEBUG / name / "require-start").write_text(hex(start))
    (DEBUG / name / "require-end").write_text(hex(start + size))


def settle(name: str, *, probability: int, tasks: bool = False) -> None:
    """Sets how often a kind of fault happens, and whether only in chosen threads."""
    values = {"verbose": 0, "times": -1, "interval": 1, "space": 0, "probability": probability}
    (DEBUG / name / "task-filter").write_text("Y" if tasks else "N")
    for key, value in values.items():
        (DEBUG / name / key).write_text(str(value))


def nth(number: int, call: Callable[[], object]) -> tuple[bool, OSError | None]:
    """Lets this thread's `number`th allocation fail during `call`: (did one, its error)."""
    fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
    wanted = str(number).encode()
    error = None
    try:
        os.write(fd, wanted)
        try:
            call()
        except OSError as raised:
            error = raised
        left = int(os.pread(fd, 16, 0))
        os.write(fd, b"0")
    finally:
        os.close(fd)
    return left == 0, error


def each_fault(call: Callable[[], object]) -> Iterator[OSError | None]:
    """Lets each allocation of `call` fail in turn; ends with a call without a fault."""
    for number in range(1, FAULTS_MAX):
        injected, error = nth(number, call)
        yield error
        if not injected:
            assert error is None, error
            return
    pytest.fail(f"more than {FAULTS_MAX} allocations")


def through(call: Callable[[], object]) -> None:
    """Makes of an error of the capture one of the system again."""
    try:
        call()
    except CaptureError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        # mmap, which goes past Python's own errors.
        if os.strerror(errno.ENOMEM) in str(error):
            raise OSError(errno.ENOMEM, str(error)) from None
        raise


def leaks_of_the_module() -> str:
    """What kmemleak knows of the module; twice, for what is freed only after a while."""
    if not KMEMLEAK.exists():
        return ""
    KMEMLEAK.write_text("scan")
    time.sleep(6)
    KMEMLEAK.write_text("scan")
    reports = KMEMLEAK.read_text().split("unreferenced object")
    return "".join(report for report in reports if "bdr_" in report)


def test_attach_fails_cleanly_at_every_allocation(loop: Loop, control: Control) -> None:
    bdr = Bdr("f0", loop.path, capacity=64)
    load = control.request(LOAD, bdr.name, table=bdr.table)
    refused = accepted = 0
    control.do(CREATE, bdr.name)
    try:
        for error in each_fault(lambda: control.call(load[:])):
            if error is not None:
                assert error.errno == errno.ENOMEM, error
                assert not Path(bdr.device).exists()
                refused += 1
                continue
            accepted += 1
            # Without memory for the name of a node the core takes the one in sysfs.
            stray = Path(f"/dev/bdr-{bdr.chardev}")
            assert Path(bdr.device).exists() or stray.exists()
            control.do(CLEAR, bdr.name)
            assert not Path(bdr.device).exists()
            stray.unlink(missing_ok=True)
        # And after all that the device works.
        control.call(load)
        control.do(SUSPEND, bdr.name)
        run("dmsetup", "mknodes", bdr.name)
        with Direct(bdr.path) as disk:
            disk.write(b"x" * 4096, 0)
        assert bdr.status().head == 1
    finally:
        control.do(REMOVE, bdr.name)
        run("dmsetup", "mknodes")
    print(f"attach: {refused} faults refused it, {accepted} did not")
    assert refused >= 20
    assert leaks_of_the_module() == ""


def test_reload_fails_cleanly_at_every_allocation_and_the_stream_goes_on(
    bdr: Bdr, control: Control, tmp_path: Path
) -> None:
    load = control.request(LOAD, bdr.name, table=bdr.line(sectors_of(bdr.path)))
    suspend = control.request(SUSPEND, bdr.name, flags=_SUSPEND_FLAG)
    resume = control.request(SUSPEND, bdr.name)
    counts = {"load": 0, "suspend": 0, "resume": 0}
    with Mirror(bdr, tmp_path / "replica") as mirror, Direct(bdr.path) as disk:
        stream = bdr.status().stream
        written = 0

        def write() -> None:
            nonlocal written
            disk.write(os.urandom(8192), written % 1000 * 8192)
            written += 1

        for error in each_fault(lambda: control.call(load[:])):
            counts["load"] += error is not None
            write()
        for error in each_fault(lambda: control.call(suspend[:])):
            counts["suspend"] += error is not None
            control.call(resume[:])
            write()
        for error in each_fault(lambda: control.call(resume[:])):
            counts["resume"] += error is not None
            control.call(resume[:])
            write()
            control.call(load[:])
            control.call(suspend[:])
        control.call(resume[:])
        write()
        mirror.drain()
        status = bdr.status()
        assert (status.stream, status.missed, status.failed) == (stream, 0, 0)
        assert status.head == 2 * written
        assert mirror.differing() == []
        assert not mirror.bits(Bitmap.RESYNC).any()
    print(f"reload: {counts} faults refused a verb, {written} writes between them")
    assert counts["load"] >= 5
    assert leaks_of_the_module() == ""


def test_remove_under_faults_removes_everything(loop: Loop, control: Control) -> None:
    for number in range(1, 60):
        bdr = Bdr("f0", loop.path, capacity=64)
        control.do(CREATE, bdr.name)
        control.do(LOAD, bdr.name, table=bdr.table)
        control.do(SUSPEND, bdr.name)
        remove = control.request(REMOVE, bdr.name)
        injected, error = nth(number, lambda remove=remove: control.call(remove[:]))  # type: ignore[misc]
        if error is not None:
            control.call(remove)
        if Path(bdr.device).exists():
            # The core forgets the node when it has no memory for its name: nothing is behind it.
            assert injected
            with pytest.raises(OSError, match="No such device"):
                os.close(os.open(bdr.device, os.O_RDONLY))
            Path(bdr.device).unlink()
        if not injected:
            break
    run("dmsetup", "mknodes")
    assert leaks_of_the_module() == ""


def test_requests_of_the_control_device_fail_cleanly_at_every_allocation(
    bdr: Bdr, tmp_path: Path
) -> None:
    with Mirror(bdr, tmp_path / "replica") as mirror, Direct(bdr.path) as disk:
        capture = mirror.capture
        disk.write(b"x" * 4096, 0)
        mirror.drain()
        regions = sectors_of(bdr.path) // 128

        def calls() -> Iterator[Callable[[], object]]:
            yield capture.status
            yield lambda: capture.read_bitmap(Bitmap.ACTIVE, first=0, count=regions)
            yield lambda: capture.mark_bitmap(first=0, count=regions)
            yield lambda: capture.clear_bitmap(first=0, count=regions)
            yield capture.resume
            yield lambda: DmCapture(bdr.device, Role.OBSERVER).close()

        for call in calls():
            for error in each_fault(lambda call=call: through(call)):  # type: ignore[misc]
                assert error is None or error.errno == errno.ENOMEM, error
        status = bdr.status()
        assert (status.mode, status.head, status.tail) == ("STREAM", 1, 1)
        assert (status.active, status.resync) == (0, 0)
        fd = os.open(bdr.device, os.O_RDONLY)
        try:
            # Headers, and the payload twice.
            bytes_mapped = bdr.capacity * 8 + 2 * bdr.capacity * 4096
            for error in each_fault(
                lambda: mmap.mmap(fd, bytes_mapped, mmap.MAP_SHARED, mmap.PROT_READ).close()
            ):
                assert error is None or error.errno == errno.ENOMEM, error
        finally:
            os.close(fd)


@contextmanager
def writers(path: str, count: int, *, fail: bool) -> Iterator[list[int]]:
    """Threads that write until the block ends; how many of their writes failed."""
    stop = threading.Event()
    failures = [0] * count
    errors: list[BaseException] = []

    def write(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            with Direct(path) as disk, mmap.mmap(-1, 131072) as buffer:
                if fail:
                    Path("/proc/thread-self/make-it-fail").write_text("1")
                for _ in range(400):
                    if stop.is_set():
                        break
                    length = int(random.integers(1, 256)) * 512
                    buffer[:length] = random.bytes(length)
                    sector = int(random.integers(0, 131072 - 256))
                    try:
                        with memoryview(buffer)[:length] as view:
                            assert os.pwritev(disk.fd, [view], sector * 512) == length
                    except OSError as error:
                        if error.errno not in (errno.EIO, errno.ENOMEM, errno.EAGAIN):
                            raise
                        failures[number] += 1
        except BaseException as error:
            errors.append(error)
        finally:
            with suppress(OSError):
                Path("/proc/thread-self/make-it-fail").write_text("0")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield failures
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def test_writes_without_memory_are_captured_or_marked(loop: Loop, tmp_path: Path) -> None:
    """Half of the allocations for them fail: mempools carry the writes through.

    A small ring: a write across its end is what takes memory.
    """
    with (
        Bdr("t0", loop.path, capacity=40) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        for name in ALLOCATORS:
            only_below_the_module(name)
            settle(name, probability=50, tasks=True)
        with mirror.running(), writers(bdr.path, 3, fail=True) as failures:
            pass
        for name in ALLOCATORS:
            settle(name, probability=0)
        mirror.drain()
        status = bdr.status()
        print(f"{status.head} slots, {sum(failures)} writes refused, {status.failed} failed")
        assert status.head > 1000
        marked = mirror.bits(Bitmap.ACTIVE) | mirror.bits(Bitmap.RESYNC)
        assert set(mirror.differing()) <= set(np.flatnonzero(marked).tolist())
        mirror.resume()
        mirror.repair()
        assert mirror.differing() == []


@pytest.mark.parametrize("capacity", [8192, 64])
def test_requests_that_fail_at_submission_are_nops_and_marked(
    loop: Loop, tmp_path: Path, capacity: int
) -> None:
    """The device below refuses every tenth bio before it has returned from submission."""
    switch = Path("/sys/block") / Path(loop.path).name / "make-it-fail"
    with (
        Bdr("t0", loop.path, capacity=capacity) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        settle("fail_make_request", probability=10)
        switch.write_text("1")
        try:
            with mirror.running(), writers(bdr.path, 3, fail=False) as failures:
                pass
        finally:
            switch.write_text("0")
            settle("fail_make_request", probability=0)
        mirror.drain()
        status = bdr.status()
        print(f"{status.failed} failed, {status.missed} missed, {mirror.resumes} resumes")
        assert sum(failures) > 50
        assert status.unlogged == 0
        marked = mirror.bits(Bitmap.ACTIVE) | mirror.bits(Bitmap.RESYNC)
        assert set(mirror.differing()) <= set(np.flatnonzero(marked).tolist())
        mirror.resume()
        mirror.repair()
        assert mirror.differing() == []
