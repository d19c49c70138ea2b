# SPDX-License-Identifier: GPL-2.0-only
"""The control device survives abuse: a wrong argument gets an errno and changes nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.dm import DmCapture
from bdr.common.ring.layout import MARKS_INTERVAL_NS
from bdr.common.ring.slots import published_count
from tests.kernel.devices import TOOLS, Bdr, Direct, Loop, run, wait_for
from tests.kernel.mirror import Mirror

FUZZ_S = int(os.environ.get("BDR_FUZZ_S", "60"))
REGIONS = 1024
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]  # fmt: skip


@contextmanager
def three_published(lower: str, name: str) -> Iterator[Bdr]:
    """A target with 64 slots, of which 3 are published."""
    with Bdr(name, lower, capacity=64) as bdr:
        with Direct(bdr.path) as disk:
            for number in range(3):
                disk.write(bytes([65 + number]) * 4096, number * 4096)
        yield bdr


@pytest.fixture
def ring(loop: Loop) -> Iterator[Bdr]:
    with three_published(loop.path, "t0") as bdr:
        yield bdr


@pytest.fixture(scope="module")
def victim(module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bdr]:
    """The same for tests that are to change nothing."""
    with (
        Loop(tmp_path_factory.mktemp("victim") / "lower", megabytes=64) as loop,
        three_published(loop.path, "victim") as bdr,
    ):
        yield bdr


@pytest.fixture
def fd(victim: Bdr) -> Iterator[int]:
    descriptor = os.open(victim.device, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def refused(fd: int, code: int, argument: bytes | int) -> int:
    """The errno with which a request fails, 0 if it does not."""
    try:
        fcntl.ioctl(fd, code, argument)
    except OSError as error:
        return error.errno or -1
    return 0


HUGE = (1 << 64) - 1


def test_release_outside_the_ring_is_refused(ring: Bdr) -> None:
    fd = os.open(ring.device, os.O_RDWR)
    tail = 0
    for asked, cursor, wanted in (
        (4, 4, errno.ERANGE),
        (1 << 63, 1 << 63, errno.ERANGE),
        (HUGE, HUGE, errno.ERANGE),
        (2, 1, errno.ERANGE),
        (2, 4, errno.ERANGE),
        (2, HUGE, errno.ERANGE),
        (0, 0, 0),
        (2, 3, 0),
        (1, 3, errno.ERANGE),
        (3, 3, 0),
        (3, 3, 0),
        (4, 4, errno.ERANGE),
    ):
        assert refused(fd, abi.IOC_RELEASE, abi.RELEASE.pack(asked, cursor, 0, 0)) == wanted
        tail = tail if wanted else asked
        assert ring.status().tail == tail
    os.close(fd)


def test_counters_outlive_their_consumer_and_never_decrease(ring: Bdr) -> None:
    fd = os.open(ring.device, os.O_RDWR)
    for fields, wanted in (
        ((0, 0, 3, 5), 0),
        ((1, 1, 2, 5), errno.EINVAL),
        ((1, 1, 3, 4), errno.EINVAL),
        ((1, 1, 6, 5), errno.EINVAL),
        ((9, 9, 0, 0), errno.EINVAL),
        ((9, 9, 3, 5), errno.ERANGE),
        ((1, 1, HUGE, HUGE), 0),
        ((2, 2, 3, HUGE), errno.EINVAL),
    ):
        assert refused(fd, abi.IOC_RELEASE, abi.RELEASE.pack(*fields)) == wanted
    os.close(fd)
    capture = DmCapture(ring.device, Role.CONSUMER)
    status = capture.status()
    capture.close()
    assert (status.tail, status.acknowledged, status.counted) == (1, HUGE, HUGE)


@pytest.mark.parametrize(
    ("code", "fields", "wanted"),
    [
        (abi.IOC_BITMAP_READ, (0, 64, 2, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 64, 1, 1), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (1, 64, 1, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 63, 1, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (REGIONS, 64, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (0, REGIONS + 64, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, ((1 << 64) - 64, 64, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (64, (1 << 64) - 64, 1, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, abi.BITMAP_CHUNK_REGIONS + 64, 1, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (REGIONS, 0, 1, 0), 0),
        (abi.IOC_BITMAP_READ, (REGIONS + 64, 0, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (1 << 63, 0, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_CLEAR, (0, 1, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (0, 1, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (0, 1, 1, 7), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (REGIONS, 1, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_MARK, (1, REGIONS, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_MARK, ((1 << 64) - 1, 2, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_CLEAR, (1, (1 << 64) - 1, 1, 0), errno.ERANGE),
        (abi.IOC_BITMAP_MARK, (REGIONS, 0, 1, 0), 0),
    ],
)
def test_bitmap_range_out_of_bounds_is_refused(
    fd: int, victim: Bdr, code: int, fields: tuple[int, int, int, int], wanted: int
) -> None:
    assert refused(fd, code, abi.BITMAP.pack(*fields, 0)) == wanted
    assert victim.status().resync == 0


@pytest.mark.parametrize("address", [0, 1, 8, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_8000_0000, -8])
def test_bad_pointer_gets_efault_and_changes_nothing(fd: int, victim: Bdr, address: int) -> None:
    before = victim.status()
    for code in abi.REQUEST_NAMES:
        if code == abi.IOC_OPEN:
            continue
        wanted = errno.EFAULT
        assert -_raw_ioctl(fd, code, address) == wanted, abi.REQUEST_NAMES[code]
    request = abi.BITMAP.pack(0, 64, 1, 0, address & (1 << 64) - 1)
    assert refused(fd, abi.IOC_BITMAP_READ, request) == errno.EFAULT
    assert victim.status() == before


def _raw_ioctl(fd: int, code: int, address: int) -> int:
    """Python's own ioctl takes no 64-bit address."""
    result = _libc.ioctl(fd, ctypes.c_ulong(code), ctypes.c_void_p(address & (1 << 64) - 1))
    return -ctypes.get_errno() if result else 0


def test_unknown_requests_and_wrong_sizes_get_enotty(fd: int) -> None:
    buffer = bytes(1024)
    for number in range(7, 256):
        for direction in range(4):
            assert refused(fd, direction << 30 | 8 << 16 | 0xB7 << 8 | number, buffer)
    for code in abi.REQUEST_NAMES:
        for change in (1 << 16, 1 << 30, 1 << 8, 1 << 31):
            assert refused(fd, code ^ change, buffer) == errno.ENOTTY


def test_marks_say_when_slots_were_reserved(ring: Bdr) -> None:
    capture = DmCapture(ring.device, Role.OBSERVER)
    try:
        before = capture.status()
        assert before.clock_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        marks = capture.marks()
        assert marks[0][0] == 0
        last_ns = marks[-1][1]
        wait_for(lambda: capture.status().clock_ns >= last_ns + MARKS_INTERVAL_NS, "an interval")
        with Direct(ring.path) as disk:
            disk.write(b"D" * 4096, 0)
        after = capture.status()
        assert (after.marks, after.head) == (before.marks + 1, 4)
        slot, clock_ns = capture.marks()[-1]
        assert slot == 3
        assert last_ns + MARKS_INTERVAL_NS <= clock_ns <= after.clock_ns
    finally:
        capture.close()


@pytest.mark.parametrize("fields", [(1, 0), (0, 1), (4096, 0), (1 << 32, 0)])
def test_marks_request_with_more_than_a_buffer_is_refused(fd: int, fields: tuple[int, int]) -> None:
    count, reserved = fields[0] & 0xFFFFFFFF, fields[1] | fields[0] >> 32
    assert refused(fd, abi.IOC_MARKS_READ, abi.MARKS.pack(0, count, reserved)) == errno.EINVAL


def test_marks_into_a_bad_buffer_get_efault(fd: int) -> None:
    for address in (0, 8, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_8000_0000):
        request = abi.MARKS.pack(address, 0, 0)
        assert refused(fd, abi.IOC_MARKS_READ, request) == errno.EFAULT


def test_observer_may_look_and_not_touch(victim: Bdr) -> None:
    observer = os.open(victim.device, os.O_RDONLY)
    try:
        assert not refused(observer, abi.IOC_INFO, bytes(abi.INFO.size))
        assert not refused(observer, abi.IOC_STATUS, bytes(abi.STATUS.size))
        for code, size in (
            (abi.IOC_RELEASE, 32),
            (abi.IOC_RESUME, 8),
            (abi.IOC_BITMAP_CLEAR, 32),
            (abi.IOC_BITMAP_MARK, 32),
        ):
            assert refused(observer, code, bytes(size)) == errno.EPERM
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.read(observer, 1)
    finally:
        os.close(observer)


def test_open_takes_the_capability_not_only_the_mode(ring: Bdr) -> None:
    os.chmod(ring.device, 0o666)
    code = f"import os; os.setuid(65534); os.open({ring.device!r}, os.O_RDONLY)"
    said = run("sh", "-c", f'! python3 -S -c "{code}" 2>&1')
    assert "Operation not permitted" in said


SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
MAP_BYTES = 4096 + 2 * 64 * 4096


@pytest.mark.parametrize(
    ("size", "protection", "flags", "offset", "wanted"),
    [
        (MAP_BYTES, READ, SHARED, 0, 0),
        (MAP_BYTES, READ, PRIVATE, 0, 0),
        (MAP_BYTES, READ | WRITE, SHARED, 0, errno.EPERM),
        (MAP_BYTES, READ | WRITE, PRIVATE, 0, errno.EPERM),
        (MAP_BYTES, WRITE, SHARED, 0, errno.EPERM),
        (MAP_BYTES, READ | EXEC, SHARED, 0, errno.EPERM),
        (MAP_BYTES + 4096, READ, SHARED, 0, errno.EINVAL),
        (MAP_BYTES - 4096, READ, SHARED, 0, errno.EINVAL),
        (MAP_BYTES, READ, SHARED, 4096, errno.EINVAL),
        (4096, READ, SHARED, MAP_BYTES - 4096, errno.EINVAL),
        (1 << 40, READ, SHARED, 0, errno.EINVAL),
    ],
)
def test_mapping_only_whole_read_only_and_at_zero(
    fd: int, size: int, protection: int, flags: int, offset: int, wanted: int
) -> None:
    address = _libc.mmap(None, size, protection, flags, fd, offset)
    if wanted:
        assert address == ctypes.c_void_p(-1).value
        assert ctypes.get_errno() == wanted
        return
    assert ctypes.string_at(address + 4096, 1) == b"A"
    # Nor later: not by mprotect, mremap or the process's memory file.
    for unwanted in (READ | WRITE, READ | EXEC):
        assert _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), unwanted) == -1
        assert ctypes.get_errno() == errno.EACCES
    _libc.mremap.restype = ctypes.c_void_p
    grown = _libc.mremap(
        ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_size_t(size + 4096), 1
    )
    assert grown == ctypes.c_void_p(-1).value
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(address + 4096)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            memory.write(b"!")
    assert ctypes.string_at(address + 4096, 1) == b"A"
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def test_mapping_outlives_the_file_and_dontneed_brings_pages_back(ring: Bdr) -> None:
    capture = DmCapture(ring.device, Role.OBSERVER)
    assert bytes(capture.payload(1, 1)) == b"B" * 4096
    capture.drop_pages(0, 64)
    assert bytes(capture.payload(1, 1)) == b"B" * 4096
    # The second appearance of the payload is the same memory.
    assert bytes(capture.payload(63, 3))[4096:] == b"A" * 4096 + b"B" * 4096
    os.close(capture.fileno())
    assert bytes(capture.payload(2, 1)) == b"C" * 4096
    capture._ring.close()


def test_poll_is_readable_for_events_and_for_the_slot_at_the_cursor(ring: Bdr) -> None:
    capture = DmCapture(ring.device, Role.CONSUMER)
    poll = select.poll()
    poll.register(capture.fileno(), select.POLLIN)

    def readable() -> bool:
        return bool(poll.poll(0))

    try:
        assert published_count(capture.headers, cursor=0, limit=256) == 3
        capture.status()
        assert readable()
        capture.release(tail=0, cursor=3)
        assert not readable()
        capture.release(tail=0, cursor=2)
        assert readable()
        capture.release(tail=3, cursor=3)
        assert not readable()
        ring.message("overflow")
        assert readable()
        capture.status()
        assert not readable()
        capture.resume()
        assert readable()
        capture.status()
        assert not readable()
        with Direct(ring.path) as disk:
            disk.write(b"D" * 4096, 0)
        assert readable()
    finally:
        capture.close()


def test_new_consumer_begins_at_the_tail(ring: Bdr, tmp_path: Path) -> None:
    first = DmCapture(ring.device, Role.CONSUMER)
    first.release(tail=2, cursor=3)
    first.close()
    with Mirror(ring, tmp_path / "replica") as second:
        assert second.cursor == 2
        assert second.step() == 1


def test_bitmap_bits_of_any_range(ring: Bdr) -> None:
    capture = DmCapture(ring.device, Role.CONSUMER)
    try:
        capture.mark_bitmap(first=3, count=130)
        capture.clear_bitmap(first=64, count=2)
        raw = capture.read_bitmap(Bitmap.RESYNC, first=0, count=REGIONS)
        bits = [region for region in range(REGIONS) if raw[region // 8] >> region % 8 & 1]
        assert bits == [*range(3, 64), *range(66, 133)]
        assert capture.read_bitmap(Bitmap.RESYNC, first=64, count=64) == raw[8:16]
        assert capture.status().resync_regions == 128
    finally:
        capture.close()


def test_random_requests_from_all_sides_leave_the_device_in_working_order(
    loop: Loop, tmp_path: Path
) -> None:
    """Consumer, observers and mappings at random, while the device is written and reloaded."""
    with Bdr("t0", loop.path, capacity=256) as bdr:
        run(TOOLS / "fuzz", bdr.device, bdr.path, str(FUZZ_S), timeout_s=FUZZ_S + 60)
        with Mirror(bdr, tmp_path / "replica") as mirror, Direct(bdr.path) as disk:
            mirror.drain()
            mirror.resume()
            first = mirror.cursor
            disk.write(b"alive" + bytes(4091), 0)
            assert bytes(mirror.capture.payload(first, 1))[:5] == b"alive"
            mirror.drain()
