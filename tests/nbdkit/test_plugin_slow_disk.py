# SPDX-License-Identifier: GPL-2.0-only
"""What must hold while the disk has not completed a write, moment by moment."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import Mode, Op
from bdr.common.ring.slots import decode
from tests.nbdkit.client import FLUSH, FUA, WRITE, NbdClient
from tests.nbdkit.server import DEADLINE_S, Replay, Server, wait_until
from tests.support.refusals import refused

MIB = 1 << 20
CAPACITY = 16


class Disk:
    """Holds the writes into some mebibytes; see held_disk.c."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[int, int] = {}

    def hold(self, mebibyte: int) -> None:
        fd = os.open(self._directory / str(mebibyte), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._held[mebibyte] = fd

    def let_go(self, mebibyte: int) -> None:
        os.close(self._held.pop(mebibyte))

    def let_all_go(self) -> None:
        for mebibyte in list(self._held):
            self.let_go(mebibyte)

    def fail_to_sync(self) -> None:
        (self._directory / "broken").touch()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shim") / "held_disk.so"
    source = Path(__file__).parent / "held_disk.c"
    flags = ("-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared")
    subprocess.run(["cc", *flags, str(source), "-o", str(out)], check=True)
    return out


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Disk]:
    directory = tmp_path / "held"
    directory.mkdir()
    disk = Disk(directory)
    yield disk
    disk.let_all_go()


@pytest.fixture
def server(tmp_path: Path, serve: Callable[..., Server], shim: Path, held: Disk) -> Server:
    wrapper = ("env", f"LD_PRELOAD={shim}", f"HELD_DISK={tmp_path}/held")
    return serve(f"writes={CAPACITY}", "region=64K", wrapper=wrapper)


@pytest.fixture
def client(server: Server, held: Disk) -> Iterator[NbdClient]:
    with NbdClient(server.nbd) as client:
        yield client
        held.let_all_go()


def marked(capture: NbdCapture, bitmap: Bitmap, mebibyte: int) -> bool:
    region = mebibyte * 16
    return bool(capture.read_bitmap(bitmap, first=region - region % 64, count=64)[region % 64 // 8])


def overflow(client: NbdClient, capture: NbdCapture) -> None:
    """Fills the ring with writes to the last mebibyte, until one finds no room."""
    while capture.status().mode is Mode.STREAM:
        client.write(15 * MIB, bytes(512))


def test_slot_is_published_when_the_disk_has_the_write(
    held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    held.hold(0)
    first = client.submit(WRITE, 0, data=b"a" * 8192)
    wait_until(lambda: capture.status().head == 2)
    client.write(MIB, b"b" * 512)  # completes before it

    status = capture.status()
    assert (status.head, status.unpublished) == (3, 0)
    headers = decode(np.array(capture.headers[:3])).op
    assert list(headers) == [Op.NOP, Op.NOP, Op.WRITE], "zeroed memory, zeroed memory, published"
    assert refused(lambda: capture.release(tail=1, cursor=3)) == errno.EBUSY
    assert refused(lambda: capture.release(tail=3, cursor=3)) == errno.EBUSY

    held.let_go(0)
    assert client.wait(first).error == 0
    assert capture.status().unpublished == 3
    capture.release(tail=3, cursor=3)


def test_overlapping_writes_in_flight_keep_one_order(
    server: Server, held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    """The second could pass the first on the disk: its pieces are in other mebibytes."""
    held.hold(0)
    first = client.submit(WRITE, MIB - 4096, data=b"1" * 8192)
    wait_until(lambda: capture.status().head == 2)
    second = client.submit(WRITE, MIB, data=b"2" * 4096)
    third = client.submit(WRITE, MIB, data=b"3" * 4096)
    client.write(4 * MIB, b"x" * 512)  # overlaps none, waits for none
    assert capture.status().head == 3

    held.let_go(0)
    for cookie in (first, second, third):
        assert client.wait(cookie).error == 0
    replay = Replay(capture, bytearray(16 * MIB))
    replay.drain()
    assert replay.image == server.file.read_bytes()


def test_two_writes_sent_at_once_end_on_the_disk_as_in_the_ring(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    with NbdClient(server.nbd) as other, server.file.open("rb", buffering=0) as disk:
        for i in range(400):
            cookies = [
                (peer, peer.submit(WRITE, 0, data=bytes([i % 251, mark]) * (4 * 4096)))
                for peer, mark in ((client, 1), (other, 2))
            ]
            for peer, cookie in cookies:
                assert peer.wait(cookie).error == 0
            tail = 16 * (i + 1)
            assert bytes(capture.payload(tail - 8, 8)) == os.pread(disk.fileno(), 8 * 4096, 0)
            capture.release(tail=tail, cursor=tail)


def test_resume_waits_for_an_unlogged_write_and_holds_nobody_up(
    server: Server, held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    overflow(client, capture)
    capture.release(tail=CAPACITY, cursor=CAPACITY)
    held.hold(3)
    unlogged = client.submit(WRITE, 3 * MIB, data=b"u" * 512)
    wait_until(lambda: capture.status().unlogged == 1)

    resumed: list[int] = []
    resume = threading.Thread(target=lambda: resumed.append(capture.resume()))
    resume.start()
    observer = server.observer()
    try:
        wait_until(lambda: observer.status().mode is Mode.STREAM)
        client.write(5 * MIB, b"l" * 512)  # takes a slot already
        status = observer.status()
        assert (status.head, status.unlogged) == (CAPACITY + 1, 1)
        assert marked(observer, Bitmap.ACTIVE, 3)
        assert not marked(observer, Bitmap.RESYNC, 3), "the scan would read what is not there yet"
        assert resume.is_alive()
        held.let_go(3)
        assert client.wait(unlogged).error == 0
        resume.join()
        assert resumed == [CAPACITY]
        assert marked(observer, Bitmap.RESYNC, 3)
        assert observer.status().active_regions == 0
    finally:
        held.let_all_go()
        resume.join()
        observer.close()


def test_write_that_misses_the_ring_during_a_resume_is_known_to_the_next(
    server: Server, held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    """Merged before it reached the disk, scanned too early, and yet not forgotten."""
    overflow(client, capture)
    capture.release(tail=CAPACITY, cursor=CAPACITY)
    held.hold(3)
    held.hold(5)
    old = client.submit(WRITE, 3 * MIB, data=b"o" * 512)
    wait_until(lambda: capture.status().unlogged == 1)
    observer = server.observer()
    resume = threading.Thread(target=capture.resume)
    resume.start()
    try:
        wait_until(lambda: observer.status().mode is Mode.STREAM)
        overflow(client, observer)
        fresh = client.submit(WRITE, 5 * MIB, data=b"f" * 512)
        wait_until(lambda: observer.status().unlogged == 2)
        held.let_go(3)
        assert client.wait(old).error == 0
        resume.join()

        assert marked(observer, Bitmap.RESYNC, 5)
        capture.clear_bitmap(first=0, count=256)  # a scan read the old content, and is done
        held.let_go(5)
        assert client.wait(fresh).error == 0
        capture.resume()
        assert marked(observer, Bitmap.RESYNC, 5)
    finally:
        held.let_all_go()
        resume.join()
        observer.close()


def test_consumer_that_dies_within_a_resume_is_succeeded_after_it(
    server: Server, held: Disk, client: NbdClient
) -> None:
    first = server.consumer()
    overflow(client, first)
    held.hold(3)
    unlogged = client.submit(WRITE, 3 * MIB, data=b"u" * 512)
    wait_until(lambda: first.status().unlogged == 1)
    observer = server.observer()
    # It asks and dies, without waiting for the answer.
    first._socket.send(abi.REQUEST.pack(abi.IOC_RESUME, 0))
    wait_until(lambda: observer.status().mode is Mode.STREAM)
    first.close()

    # Two RESUMEs at a time would share a counter: the role comes after the merge.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as successor:
        successor.connect(server.ring)
        role = abi.OPEN.pack(abi.ABI_VERSION, Role.CONSUMER.value)
        successor.send(abi.REQUEST.pack(abi.IOC_OPEN, 0) + role)
        successor.settimeout(0.2)
        with pytest.raises(TimeoutError):
            successor.recv(100)
        held.let_go(3)
        assert client.wait(unlogged).error == 0
        successor.settimeout(DEADLINE_S)
        assert successor.recv(100) == abi.REPLY.pack(0, 0)
    assert marked(observer, Bitmap.RESYNC, 3)
    assert observer.status().unlogged == 0
    observer.close()


def test_flush_slot_follows_writes_that_completed_and_not_those_in_flight(
    held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    held.hold(0)
    write = client.submit(WRITE, 0, data=b"w" * 512)
    wait_until(lambda: capture.status().head == 1)
    assert client.wait(client.submit(FLUSH)).error == 0
    status = capture.status()
    assert (status.head, status.unpublished) == (2, 0)
    held.let_go(0)
    assert client.wait(write).error == 0
    assert list(decode(np.array(capture.headers[:2])).op) == [Op.WRITE, Op.FLUSH]


def test_sync_that_fails_is_an_error_and_a_nop(
    held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    held.fail_to_sync()
    assert (
        client.wait(client.submit(WRITE, 2 * MIB, data=bytes(4096), flags=FUA)).error == errno.EIO
    )
    assert client.wait(client.submit(FLUSH)).error == errno.EIO
    status = capture.status()
    assert (status.unpublished, status.failed_writes, status.active_regions) == (2, 2, 1)
    assert list(decode(np.array(capture.headers[:2])).op) == [Op.NOP, Op.NOP]
    assert marked(capture, Bitmap.ACTIVE, 2)


def test_observer_role_is_not_held_up_by_a_waiting_resume(
    server: Server, held: Disk, client: NbdClient, capture: NbdCapture
) -> None:
    overflow(client, capture)
    held.hold(3)
    unlogged = client.submit(WRITE, 3 * MIB, data=b"u" * 512)
    wait_until(lambda: capture.status().unlogged == 1)
    resume = threading.Thread(target=capture.resume)
    resume.start()
    try:
        for _ in range(20):
            observer = NbdCapture(server.ring, Role.OBSERVER)
            assert observer.status().unlogged == 1
            observer.close()
        assert refused(server.consumer) == errno.EBUSY
    finally:
        held.let_all_go()
        resume.join()
    assert client.wait(unlogged).error == 0
