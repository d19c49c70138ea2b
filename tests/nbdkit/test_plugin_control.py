# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: roles, wake-ups, and clients that mean no good."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.capture.opening import open_capture
from bdr.common.errors import CaptureError, CaptureGoneError
from bdr.common.ring.layout import Mode
from tests.nbdkit.client import WRITE, NbdClient
from tests.nbdkit.server import DEADLINE_S, ROOT, Server, wait_until

Serve = Callable[..., Server]
REGIONS = 256


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("writes=64")


@pytest.fixture
def client(server: Server) -> Iterator[NbdClient]:
    with NbdClient(server.nbd) as client:
        yield client


@pytest.fixture
def capture(server: Server) -> Iterator[NbdCapture]:
    capture = server.consumer()
    yield capture
    capture.close()


class Raw:
    """A client that sends what it likes."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(server.ring)
        self.fds: list[int] = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)
        self.socket.close()

    def send(self, packet: bytes) -> int:
        """The error of the answer."""
        self.socket.send(packet)
        answer, fds, _, _ = socket.recv_fds(self.socket, 1 << 17, 4)
        self.fds += fds
        error, reserved = abi.REPLY.unpack_from(answer)
        assert reserved == 0
        if error:
            assert len(answer) == abi.REPLY.size
        return int(error)

    def ask(self, code: int, argument: bytes = b"") -> int:
        return self.send(abi.REQUEST.pack(code, 0) + argument)

    def open(self, role: Role, version: int = abi.ABI_VERSION) -> int:
        return self.ask(abi.IOC_OPEN, abi.OPEN.pack(version, role.value))


def readable(capture: NbdCapture, timeout_s: float = 0) -> bool:
    poller = select.poll()
    poller.register(capture.fileno(), select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


# Wake-ups


def test_idle_consumer_is_not_readable(capture: NbdCapture) -> None:
    assert not readable(capture)


def test_publishing_the_cursor_wakes_the_consumer(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(4096))
    assert readable(capture, DEADLINE_S)
    capture.drain_wakeup()
    assert not readable(capture)
    capture.release(tail=0, cursor=1)
    assert not readable(capture)
    client.write(0, bytes(4096))
    assert readable(capture, DEADLINE_S)


def test_release_with_a_published_cursor_wakes_at_once(
    client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, bytes(8192))
    capture.release(tail=0, cursor=2)
    assert not readable(capture)
    capture.release(tail=0, cursor=1)
    assert readable(capture)


def test_new_consumer_is_woken_for_what_was_published_before(
    server: Server, client: NbdClient
) -> None:
    client.write(0, bytes(4096))
    capture = server.consumer()
    assert readable(capture)
    capture.close()


def test_mode_change_wakes_until_status_is_asked(client: NbdClient, capture: NbdCapture) -> None:
    capture.release(tail=0, cursor=0)
    client.write(0, bytes(64 * 4096))
    capture.release(tail=0, cursor=64)
    assert not readable(capture)
    client.write(0, bytes(512))
    assert readable(capture, DEADLINE_S)
    assert capture.status().mode is Mode.OVERFLOW
    assert not readable(capture)
    assert capture.resume() == 64
    # The way back is a change, too; a RESUME that finds STREAM is none.
    assert readable(capture)
    assert capture.status().mode is Mode.STREAM
    assert not readable(capture)
    assert capture.resume() == 64
    assert not readable(capture)


def test_mode_change_while_nobody_consumed_wakes_the_next(
    server: Server, client: NbdClient
) -> None:
    for _ in range(65):
        client.write(0, bytes(512))
    capture = server.consumer()
    capture.release(tail=64, cursor=64)
    assert readable(capture)
    assert capture.status().mode is Mode.OVERFLOW
    assert not readable(capture)
    capture.close()


def test_publishing_makes_no_wakeup_while_the_consumer_does_not_wait(
    client: NbdClient, capture: NbdCapture
) -> None:
    """The eventfd counts its writes: one for the cursor, none for what follows."""
    for _ in range(20):
        client.write(0, bytes(512))
    assert os.eventfd_read(capture._wakeup) == 1


def test_end_of_the_server_wakes_and_is_an_error(server: Server, capture: NbdCapture) -> None:
    server.kill()
    assert readable(capture, DEADLINE_S)
    with pytest.raises(CaptureGoneError, match="gone"):
        capture.drain_wakeup()
    with pytest.raises(CaptureGoneError, match="is its nbdkit running"):
        capture.status()
    # The memory is still there.
    assert bytes(capture.payload(0, 1)) == bytes(4096)


def test_lost_wakeup_never_happens_in_a_ping_pong(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    """Each write is waited for by poll alone; the next is sent when it was seen."""
    seen = threading.Semaphore(0)
    rounds = 3000

    def produce() -> None:
        for _ in range(rounds):
            client.write(0, bytes(512))
            assert seen.acquire(timeout=DEADLINE_S)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for cursor in range(rounds):
            assert readable(capture, DEADLINE_S), f"no wake-up for slot {cursor}"
            capture.release(tail=cursor + 1, cursor=cursor + 1)
            seen.release()
    finally:
        for _ in range(rounds):
            seen.release()
        producer.join()


# Roles


def test_second_consumer_is_refused(server: Server, capture: NbdCapture) -> None:
    with pytest.raises(CaptureError, match="another process is the consumer"):
        server.consumer()
    observer = server.observer()
    assert observer.status() == capture.status()
    observer.close()


def test_observer_may_look_and_not_touch(server: Server, client: NbdClient) -> None:
    client.write(0, b"x" * 512)
    observer = server.observer()
    assert observer.status().unpublished == 1
    assert bytes(observer.payload(0, 1)[:512]) == b"x" * 512
    assert observer.read_bitmap(Bitmap.ACTIVE, first=0, count=REGIONS) == bytes(32)
    for attempt in (
        lambda: observer.release(tail=1, cursor=1),
        observer.resume,
        lambda: observer.clear_bitmap(first=0, count=1),
        lambda: observer.mark_bitmap(first=0, count=1),
    ):
        with pytest.raises(CaptureError, match="an observer may not"):
            attempt()
    assert observer.status().tail == 0
    observer.close()


def test_role_is_free_as_soon_as_the_consumer_has_closed(server: Server) -> None:
    for _ in range(200):
        server.consumer().close()


def test_killed_consumer_is_succeeded_at_the_tail(server: Server, client: NbdClient) -> None:
    """kill -9 of a reader: the next one finds every slot that was not released."""
    for i in range(10):
        client.write(i * 4096, bytes([i]) * 4096)
    program = (
        "import sys; from bdr.common.capture.nbd import NbdCapture\n"
        "from bdr.common.capture.api import Role\n"
        "capture = NbdCapture(sys.argv[1], Role.CONSUMER); capture.release(tail=4, cursor=8)\n"
        "print('released', flush=True); sys.stdin.read()"
    )
    for _ in range(5):
        reader = subprocess.Popen(
            [sys.executable, "-c", program, server.ring],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"released\n"
        with pytest.raises(CaptureError, match="another process is the consumer"):
            server.consumer()
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        reader.stdin.close()
        reader.stdout.close()
        # No waiting: a supervisor starts the next one right away.
        successor = server.consumer()
        assert successor.status().tail == 4
        assert readable(successor)
        assert bytes(successor.payload(4, 6)) == b"".join(bytes([i]) * 4096 for i in range(4, 10))
        successor.close()


# Release


def test_release_outside_the_ring_is_refused(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(3 * 4096))
    capture.release(tail=1, cursor=3)
    for tail, cursor in ((0, 3), (4, 4), (2, 1), (2, 4), (2**64 - 1, 2**64 - 1)):
        with pytest.raises(CaptureError, match="out of range"):
            capture.release(tail=tail, cursor=cursor)
    assert capture.status().tail == 1


def test_released_slots_are_reused_lap_after_lap(client: NbdClient, capture: NbdCapture) -> None:
    tail = 0
    for i in range(300):
        data = struct.pack("<Q", i) * (64 * (1 + i % 20))
        client.write(0, data)
        slots = -(-len(data) // 4096)
        assert bytes(capture.payload(tail, slots)[: len(data)]) == data
        tail += slots
        capture.release(tail=tail, cursor=tail)
    status = capture.status()
    assert (status.tail, status.mode, status.overflows) == (tail, Mode.STREAM, 0)
    assert tail > 5 * 64


# Bitmaps


def test_overflow_marks_the_regions_of_every_missed_write(
    client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, bytes(64 * 4096))
    client.write(65536 * 10 + 512, bytes(65536))
    client.trim(65536 * 100, 65536 * 3)
    client.zero(65536 * 255, 65536)
    status = capture.status()
    assert (status.mode, status.gap, status.overflows) == (Mode.OVERFLOW, 64, 1)
    assert (status.missed_writes, status.unlogged, status.active_regions) == (3, 0, 6)
    active = int.from_bytes(capture.read_bitmap(Bitmap.ACTIVE, first=0, count=REGIONS), "little")
    assert active == sum(1 << region for region in (10, 11, 100, 101, 102, 255))

    # Released or not, RESUME goes on where the ring stopped.
    assert capture.resume() == 64
    status = capture.status()
    assert (status.mode, status.active_regions, status.resync_regions) == (Mode.STREAM, 0, 6)
    resync = int.from_bytes(capture.read_bitmap(Bitmap.RESYNC, first=0, count=REGIONS), "little")
    assert resync == active
    capture.clear_bitmap(first=11, count=90)
    capture.mark_bitmap(first=0, count=2)
    resync = int.from_bytes(capture.read_bitmap(Bitmap.RESYNC, first=0, count=REGIONS), "little")
    assert resync == sum(1 << region for region in (0, 1, 10, 101, 102, 255))

    assert status.gap == 64
    capture.release(tail=64, cursor=64)
    client.write(0, bytes(512))
    assert capture.status().gap == 64
    capture.release(tail=65, cursor=65)
    assert capture.status().gap is None


def test_bitmap_larger_than_a_packet_is_read_in_pieces(serve: Serve, disk: Path) -> None:
    os.truncate(disk, 5 << 30)
    server = serve("region=4096", "writes=8")
    regions = (5 << 30) // 4096
    assert regions > 2 * abi.BITMAP_CHUNK_REGIONS
    capture = server.consumer()
    marks = (0, 63, 64, abi.BITMAP_CHUNK_REGIONS - 1, abi.BITMAP_CHUNK_REGIONS, regions - 1)
    for region in marks:
        capture.mark_bitmap(first=region, count=1)
    raw = capture.read_bitmap(Bitmap.RESYNC, first=0, count=regions)
    assert int.from_bytes(raw, "little") == sum(1 << region for region in marks)
    capture.mark_bitmap(first=0, count=regions)
    assert capture.status().resync_regions == regions
    capture.clear_bitmap(first=0, count=regions)
    assert capture.status().resync_regions == 0
    capture.close()


def test_bitmap_whose_last_word_is_short_is_read_to_its_end(serve: Serve, disk: Path) -> None:
    os.truncate(disk, 65536 * 70 + 512)
    capture = serve().consumer()
    assert capture.info.regions == 71
    capture.mark_bitmap(first=0, count=71)
    raw = capture.read_bitmap(Bitmap.RESYNC, first=0, count=71)
    assert int.from_bytes(raw, "little") == (1 << 71) - 1
    raw = capture.read_bitmap(Bitmap.RESYNC, first=64, count=7)
    assert raw == b"\x7f"
    capture.close()


# Clients that mean no good


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


def test_clients_are_bounded_and_places_come_back(server: Server) -> None:
    with_place = []
    try:
        while len(with_place) < 64:
            with_place.append(server.observer())
        with pytest.raises(CaptureError, match="too many clients"):
            server.observer()
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
        (abi.IOC_RELEASE, abi.RELEASE.pack(0, 0)),
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
        with pytest.raises(OSError, match="Bad file descriptor"):
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
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3
        libc.mmap.argtypes += [ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, memory, 0)
        assert libc.mprotect(at, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES
        libc.munmap(at, 4096)


# The Python side


def test_payload_is_contiguous_across_the_wrap(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(60 * 4096))
    capture.release(tail=60, cursor=60)
    data = os.urandom(10 * 4096)
    client.write(0, data)
    view = capture.payload(60, 10)
    assert view.readonly
    assert bytes(view) == data


def test_forget_drops_pages_and_keeps_the_data(client: NbdClient, capture: NbdCapture) -> None:
    def resident_kib() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssShmem:"):
                return int(line.split()[1])
        raise AssertionError("no RssShmem in /proc/self/status")

    data = os.urandom(64 * 4096)
    client.write(0, data)
    before = resident_kib()
    assert bytes(capture.payload(0, 64)) == data
    touched = resident_kib()
    assert touched - before >= 200
    capture.drop_pages(0, 64)
    assert resident_kib() <= touched - 200
    assert bytes(capture.payload(0, 64)) == data


def test_open_capture_finds_the_plugin_by_its_socket(server: Server) -> None:
    capture = open_capture(server.ring, Role.OBSERVER)
    assert isinstance(capture, NbdCapture)
    capture.close()


def test_opening_a_dead_socket_says_what_was_wanted(server: Server) -> None:
    server.kill()
    with pytest.raises(CaptureError, match=r"Connection refused; wanted the ring= socket"):
        server.observer()


def test_opening_a_foreign_socket_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "foreign")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as foreign:
        foreign.bind(path)
        foreign.listen()

        def answer() -> None:
            peer, _ = foreign.accept()
            with peer:
                peer.recv(100)
                peer.send(b"hi")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CaptureError, match="no packet of BDR's"):
            NbdCapture(path, Role.OBSERVER)
        thread.join()


def test_closed_capture_leaks_no_descriptor(server: Server) -> None:
    server.observer().close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        capture = server.consumer()
        with pytest.raises(CaptureError, match="consumer"):
            server.consumer()
        capture.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_resume_waits_for_unlogged_writes_in_flight(server: Server, capture: NbdCapture) -> None:
    """Many writes miss the ring; whenever RESUME returns, none of the old is left."""
    stop = threading.Event()

    def produce() -> None:
        with NbdClient(server.nbd) as client:
            while not stop.is_set():
                cookies = [client.submit(WRITE, i * 65536, data=bytes(65536)) for i in range(8)]
                for cookie in cookies:
                    assert client.wait(cookie).error == 0

    producers = [threading.Thread(target=produce) for _ in range(3)]
    for producer in producers:
        producer.start()
    try:
        overflows = 0
        for _ in range(100):
            wait_until(lambda: capture.status().mode is Mode.OVERFLOW)
            status = capture.status()
            first = capture.resume()
            assert first == status.head
            after = capture.status()
            assert after.overflows >= status.overflows > overflows
            overflows = status.overflows
            capture.release(tail=after.unpublished, cursor=after.unpublished)
    finally:
        stop.set()
        for producer in producers:
            producer.join()
    final = capture.status()
    assert (final.unlogged, final.unpublished) == (0, final.head)
