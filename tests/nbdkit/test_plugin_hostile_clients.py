# SPDX-License-Identifier: GPL-2.0-only
"""The control socket against clients that are malformed, greedy or dying."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import random
import socket
import struct

import pytest

from bdr.common.capture import abi
from bdr.common.capture.api import Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.errors import CaptureError
from bdr.common.ring.layout import Mode
from tests.nbdkit.client import NbdClient
from tests.nbdkit.raw import Raw
from tests.nbdkit.server import Server, wait_until
from tests.support.refusals import refused

REGIONS = 256


@pytest.mark.parametrize(
    ("code", "argument", "error"),
    [
        (abi.IOC_BITMAP_READ, (0, 64, 2, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (1, 64, 0, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 63, 0, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 64, 0, 1, 0), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 64, 0, 0, 1), errno.EINVAL),
        (abi.IOC_BITMAP_READ, (0, 320, 0, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (256, 64, 0, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (320, 0, 0, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (2**63, 0, 0, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (2**64 - 64, 64, 0, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_READ, (64, 2**64 - 64, 0, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_CLEAR, (0, 64, 0, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (0, 64, 0, 0, 0), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (0, 64, 1, 7, 0), errno.EINVAL),
        (abi.IOC_BITMAP_MARK, (0, 257, 1, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_MARK, (257, 0, 1, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_CLEAR, (2**63, 2**63, 1, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_CLEAR, (1, 2**64 - 1, 1, 0, 0), errno.ERANGE),
        (abi.IOC_BITMAP_CLEAR, (1, 2**64 - 1, 0, 0, 0), errno.EINVAL),
    ],
)
def test_wrong_bitmap_request_gets_an_errno_and_changes_nothing(
    server: Server, code: int, argument: tuple[int, ...], error: int
) -> None:
    with Raw(server) as raw:
        assert raw.open(Role.CONSUMER) == 0
        assert raw.ask(abi.IOC_BITMAP_MARK, abi.BITMAP.pack(5, 1, 1, 0, 0)) == 0
        assert raw.ask(code, abi.BITMAP.pack(*argument)) == error
    observer = server.observer()
    assert observer.status().resync_regions == 1
    assert observer.status().active_regions == 0
    observer.close()


def test_malformed_packets_get_an_errno(server: Server) -> None:
    request = abi.REQUEST.pack
    with Raw(server) as raw:
        assert raw.ask(abi.IOC_STATUS) == errno.ENOTCONN
        assert raw.send(b"x") == errno.EINVAL
        assert raw.send(request(abi.IOC_OPEN, 0)[:7]) == errno.EINVAL
        assert raw.ask(abi.IOC_OPEN) == errno.EINVAL
        assert raw.ask(abi.IOC_OPEN, bytes(7)) == errno.EINVAL
        assert raw.ask(abi.IOC_OPEN, bytes(9)) == errno.EINVAL
        assert raw.open(Role.OBSERVER, version=abi.ABI_VERSION + 1) == errno.EPROTONOSUPPORT
        assert raw.ask(abi.IOC_OPEN, abi.OPEN.pack(abi.ABI_VERSION, 2)) == errno.EINVAL
        assert not raw.fds
        assert raw.open(Role.CONSUMER) == 0
        assert len(raw.fds) == 2
        assert raw.open(Role.CONSUMER) == errno.EISCONN
        assert raw.send(request(abi.IOC_STATUS, 1)) == errno.EINVAL
        assert raw.send(request(abi.IOC_STATUS, 0) + b"\0") == errno.EINVAL
        assert raw.send(request(abi.IOC_STATUS, 0) + bytes(100_000)) == errno.EINVAL
        assert raw.send(request(abi.IOC_RELEASE, 0) + bytes(15)) == errno.EINVAL
        for code in (0, 1, abi.IOC_STATUS + 1, 2**32 - 1, abi.IOC_STATUS ^ 1 << 30):
            assert raw.ask(code) == errno.ENOTTY
        assert raw.ask(abi.IOC_STATUS) == 0
        # An empty packet is a goodbye; there is no other way to read it.
        raw.socket.send(b"")
        assert raw.socket.recv(100) == b""


def test_random_packets_do_no_harm(server: Server, client: NbdClient) -> None:
    client.write(0, bytes(8 * 4096))
    random_ = random.Random(11)
    codes = list(abi.REQUEST_NAMES)
    for _ in range(30):
        with Raw(server) as raw:
            if random_.random() < 0.9:
                raw.open(random_.choice(list(Role)))
            for _ in range(100):
                code = random_.choice([*codes, random_.getrandbits(32)])
                reserved = random_.choice([0, 0, 0, 1])
                argument = random_.randbytes(random_.choice([0, 8, 16, 32, 33]))
                if random_.random() < 0.5:
                    numbers = [random_.choice([0, 1, 64, 255, 256, 2**64 - 1]) for _ in range(4)]
                    argument = struct.pack("<4Q", *numbers)[: len(argument)]
                if raw.send(abi.REQUEST.pack(code, reserved) + argument) == errno.ENOTCONN:
                    break
    assert server.process.poll() is None
    client.write(0, bytes(4096))
    capture = server.consumer()
    status = capture.status()
    assert status.tail <= status.unpublished == status.head == 9
    capture.close()


def test_descriptors_sent_to_the_server_are_dropped(server: Server) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    with Raw(server) as raw:
        assert raw.open(Role.OBSERVER) == 0
        before = count()
        pipe = os.pipe()
        message = abi.REQUEST.pack(abi.IOC_STATUS, 0)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipe))
        for _ in range(50):
            raw.socket.sendmsg([message], [rights])
            raw.socket.recv(4096)
        for fd in pipe:
            os.close(fd)
        assert count() == before


def test_counters_that_decrease_are_refused_and_nothing_changes(
    server: Server, client: NbdClient
) -> None:
    client.write(0, bytes(4096))
    with Raw(server) as raw:
        assert raw.open(Role.CONSUMER) == 0

        def release(*fields: int) -> int:
            return raw.ask(abi.IOC_RELEASE, abi.RELEASE.pack(*fields))

        assert release(0, 0, 3, 5) == 0
        for counters in ((2, 5), (3, 4), (6, 5), (2**64 - 1, 5), (0, 0)):
            assert release(1, 1, *counters) == errno.EINVAL
            assert release(4, 4, *counters) == errno.EINVAL
        assert release(4, 4, 3, 5) == errno.ERANGE
        observer = server.observer()
        status = observer.status()
        observer.close()
        assert (status.tail, status.acknowledged, status.counted) == (0, 3, 5)


def test_clients_are_bounded_and_places_come_back(server: Server) -> None:
    with_place: list[NbdCapture] = []
    try:
        while len(with_place) < 64:
            with_place.append(server.observer())
        assert refused(server.observer) == errno.EUSERS
    finally:
        for capture in with_place:
            capture.close()

    def place_is_free() -> bool:
        try:
            server.observer().close()
        except CaptureError:
            return False
        return True

    wait_until(place_is_free)


def test_client_that_never_reads_its_answers_blocks_nobody(server: Server) -> None:
    request = abi.REQUEST.pack(abi.IOC_STATUS, 0)
    with Raw(server) as raw:
        assert raw.open(Role.CONSUMER) == 0
        raw.socket.setblocking(False)

        def flood() -> None:
            while True:
                raw.socket.send(request)

        with pytest.raises(BlockingIOError):
            flood()
        observer = server.observer()
        with NbdClient(server.nbd) as client:
            client.write(0, bytes(4096))
        assert observer.status().unpublished == 1
        observer.close()
        # The server ends well although this client's thread is blocked.
        server.stop()


def test_client_that_dies_within_a_request_frees_the_role(
    server: Server, client: NbdClient
) -> None:
    for _ in range(65):
        client.write(0, bytes(4096))
    for code, argument in (
        (abi.IOC_RESUME, b""),
        (abi.IOC_BITMAP_READ, abi.BITMAP.pack(0, REGIONS, 0, 0, 0)),
        (abi.IOC_RELEASE, abi.RELEASE.pack(0, 0, 0, 0)),
    ):
        for _ in range(20):
            raw = Raw(server)
            assert raw.open(Role.CONSUMER) == 0
            raw.socket.send(abi.REQUEST.pack(code, 0) + argument)
            raw.__exit__()
    capture = server.consumer()
    status = capture.status()
    assert (status.mode, status.active_regions, status.resync_regions) == (Mode.STREAM, 0, 1)
    capture.close()


def test_memory_is_sealed_and_read_only(server: Server) -> None:
    with Raw(server) as raw:
        assert raw.open(Role.CONSUMER) == 0
        memory = raw.fds[0]
        size = os.fstat(memory).st_size
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.pwrite(memory, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(memory, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # Root can reopen it for writing; the seals do not care.
        again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        try:
            for attempt in (
                lambda: os.pwrite(again, b"x", 0),
                lambda: os.ftruncate(again, 4096),
                lambda: os.ftruncate(again, size + 4096),
                lambda: mmap.mmap(again, 4096, mmap.MAP_SHARED),
            ):
                with pytest.raises(PermissionError):
                    attempt()
        finally:
            os.close(again)
        # A read-only mapping does not become writable either.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        numbers = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *numbers]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, memory, 0)
        assert libc.mprotect(at, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES
        libc.munmap(at, 4096)
