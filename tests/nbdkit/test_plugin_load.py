# SPDX-License-Identifier: GPL-2.0-only
"""Parallel writers: ring and file agree byte for byte, and nothing is forgotten."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import MISSED_UNKNOWN, Mode, Op
from tests.nbdkit.client import (
    FLUSH,
    FUA,
    NO_HOLE,
    TRIM,
    WRITE,
    ZERO,
    NbdClient,
)
from tests.nbdkit.server import DEADLINE_S, Replay, Server, build_plugin

Serve = Callable[..., Server]
MIB = 1 << 20
SECTOR = 512


class Writer(threading.Thread):
    """One connection with several random requests in flight.

    Args:
        server: whose file is written.
        seed: of the requests.
        first: start of the range that is written, in bytes.
        end: its end.
        requests: how many.
    """

    DEPTH = 8
    LENGTHS = (1, 1, 3, 8, 8, 8, 16, 64, 300, 2100)

    def __init__(self, server: Server, *, seed: int, first: int, end: int, requests: int) -> None:
        super().__init__()
        self._server = server
        self._random = random.Random(seed)
        self._first = first
        self._end = end
        self._requests = requests
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with NbdClient(self._server.nbd) as client:
                self._write(client)
        except BaseException as failure:
            self.failure = failure

    def _write(self, client: NbdClient) -> None:
        cookies: list[int] = []
        for _ in range(self._requests):
            if len(cookies) >= self.DEPTH:
                at = self._random.randrange(len(cookies))
                assert client.wait(cookies.pop(at)).error == 0
            cookies.append(self._submit(client))
        for cookie in cookies:
            assert client.wait(cookie).error == 0

    def _submit(self, client: NbdClient) -> int:
        chance = self._random
        length = min(chance.choice(self.LENGTHS) * SECTOR, self._end - self._first)
        offset = chance.randrange(self._first // SECTOR, (self._end - length) // SECTOR + 1)
        offset *= SECTOR
        flags = FUA if chance.random() < 0.02 else 0
        kind = chance.random()
        if kind < 0.03:
            return client.submit(FLUSH)
        if kind < 0.08:
            return client.submit(TRIM, offset, length, flags=flags)
        if kind < 0.13:
            return client.submit(ZERO, offset, length, flags=flags | chance.choice([0, NO_HOLE]))
        # Each write is recognisable, also in part.
        data = chance.randbytes(16) * (length // 16)
        return client.submit(WRITE, offset, data=data, flags=flags)


def join(writers: list[Writer]) -> None:
    for writer in writers:
        writer.join()
    for writer in writers:
        if writer.failure is not None:
            raise writer.failure


def bits(capture: NbdCapture, bitmap: Bitmap) -> set[int]:
    raw = capture.read_bitmap(bitmap, first=0, count=capture.info.regions)
    number = int.from_bytes(raw, "little")
    return {region for region in range(capture.info.regions) if number >> region & 1}


def writers_on(server: Server, size: int, *, seed: int, requests: int) -> list[Writer]:
    """Two connections on the same half mebibyte, two more with ranges of their own."""
    ranges = [(0, MIB // 2), (0, MIB // 2), (0, size), (MIB, size // 2)]
    return [
        Writer(server, seed=seed * 10 + i, first=first, end=end, requests=requests)
        for i, (first, end) in enumerate(ranges)
    ]


def replay_all_of(server: Server, *, seed: int, requests: int) -> Replay:
    """Runs writers while a consumer follows; returns what the consumer saw."""
    size = server.file.stat().st_size
    capture = server.consumer()
    replay = Replay(capture, bytearray(size))
    writers = writers_on(server, size, seed=seed, requests=requests)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        replay.consume()
    join(writers)
    replay.drain()
    status = capture.status()
    assert (status.mode, status.missed_writes) == (Mode.STREAM, 0), "the ring was too small"
    capture.close()
    return replay


@pytest.mark.parametrize("seed", range(3))
def test_replay_of_parallel_overlapping_writes_equals_the_file(serve: Serve, seed: int) -> None:
    server = serve("writes=16384")
    replay = replay_all_of(server, seed=seed, requests=400)
    assert replay.image == server.file.read_bytes()
    assert set(replay.ops) == {Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES, Op.FLUSH}


def test_two_connections_that_fight_for_one_sector_agree_with_the_ring(serve: Serve) -> None:
    """Every request overlaps every other: the last in the ring is what the disk has."""
    server = serve("writes=16384")
    capture = server.consumer()
    replay = Replay(capture, bytearray(16 * MIB))
    for round_number in range(20):
        writers = [
            Writer(server, seed=round_number * 4 + i, first=0, end=8 * SECTOR, requests=40)
            for i in range(4)
        ]
        for writer in writers:
            writer.start()
        join(writers)
        replay.drain()
        assert replay.image[: 8 * SECTOR] == server.file.read_bytes()[: 8 * SECTOR]
    capture.close()


@pytest.mark.parametrize("seed", range(3))
def test_overflow_and_resume_under_load_forget_no_write(serve: Serve, seed: int) -> None:
    """Where the replayed ring and the file differ, a bitmap says so, and no byte else.

    The consumer clears regions of `resync` as a scan does: only from a copy of
    the file that was read after RESUME, and only until the next RESUME.
    """
    server = serve("writes=512", "region=4096")
    capture = server.consumer()
    size = server.file.stat().st_size
    replay = Replay(capture, bytearray(size))
    writers = writers_on(server, size, seed=seed + 100, requests=600)
    for writer in writers:
        writer.start()
    chance = random.Random(seed)
    resumed = repaired = 0
    while any(writer.is_alive() for writer in writers):
        if chance.random() < 0.7:
            replay.consume()
        if capture.status().mode is Mode.OVERFLOW and chance.random() < 0.3:
            repaired += resume_and_scan(capture, replay, server.file, chance)
            resumed += 1
    join(writers)
    replay.drain()
    # What is still open is repaired now, in peace.
    capture.resume()
    dirty = bits(capture, Bitmap.RESYNC)
    assert bits(capture, Bitmap.ACTIVE) == set()
    final = server.file.read_bytes()
    differing = {
        region
        for region in range(size // 4096)
        if replay.image[region * 4096 : (region + 1) * 4096]
        != final[region * 4096 : (region + 1) * 4096]
    }
    assert differing <= dirty, f"forgotten: {sorted(differing - dirty)}"
    status = capture.status()
    assert status.overflows > 1
    assert resumed > 1
    assert repaired > 1
    assert (status.unlogged, status.failed_writes) == (0, 0)
    capture.close()


def resume_and_scan(capture: NbdCapture, replay: Replay, file: Path, chance: random.Random) -> int:
    """RESUME, then repairs some of the dirty regions; returns how many.

    The reader's exclusions, in the small: the slots before S are applied first,
    and then every slot that was published when the region had been read.
    """
    first = capture.resume()
    deadline = time.monotonic() + DEADLINE_S
    while replay.cursor < first:
        assert time.monotonic() < deadline
        replay.consume()
    repaired = 0
    dirty = sorted(bits(capture, Bitmap.RESYNC))
    for region in chance.sample(dirty, min(len(dirty), 40)):
        if capture.status().mode is Mode.OVERFLOW:
            break
        # Everything dispatched is older than the read; what comes later overwrites.
        replay.consume()
        with file.open("rb", buffering=0) as disk:
            disk.seek(region * 4096)
            data = disk.read(4096)
        replay.image[region * 4096 : (region + 1) * 4096] = data
        capture.clear_bitmap(first=region, count=1)
        repaired += 1
    return repaired


def test_write_larger_than_the_ring_overflows_and_does_not_block(serve: Serve) -> None:
    server = serve("writes=8", "region=4096")
    capture = server.consumer()
    with NbdClient(server.nbd) as client:
        client.write(0, os.urandom(MIB))
    status = capture.status()
    assert (status.mode, status.head, status.unpublished) == (Mode.OVERFLOW, 8, 8)
    assert bits(capture, Bitmap.ACTIVE) == set(range(8, 256))
    capture.close()


# A device that fails


@pytest.fixture
def limited(serve: Serve) -> Iterator[tuple[Server, NbdClient, NbdCapture]]:
    """A server that cannot write beyond 8 MiB into its file: EFBIG."""
    server = serve("writes=1024")
    limit = (8 * MIB, resource.RLIM_INFINITY)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
    capture = server.consumer()
    with NbdClient(server.nbd) as client:
        yield server, client, capture
    capture.close()


def test_failed_write_is_an_error_a_nop_and_a_dirty_region(
    limited: tuple[Server, NbdClient, NbdCapture],
) -> None:
    server, client, capture = limited
    client.write(0, b"a" * 4096)
    reply = client.wait(client.submit(WRITE, 12 * MIB, data=b"b" * 8192))
    assert reply.error in (errno.EFBIG, errno.ENOSPC, errno.EINVAL, errno.EIO)
    client.write(4096, b"c" * 4096)

    status = capture.status()
    assert (status.unpublished, status.failed_writes, status.active_regions) == (4, 1, 1)
    assert status.missed_since_ns == MISSED_UNKNOWN
    assert bits(capture, Bitmap.ACTIVE) == {12 * MIB // 65536}
    replay = Replay(capture, bytearray(16 * MIB))
    replay.drain()
    assert replay.ops == [Op.WRITE, Op.NOP, Op.NOP, Op.WRITE]
    assert replay.image == server.file.read_bytes()

    # RESUME moves the failed write's region to the scan, without an overflow.
    assert capture.resume() == 4
    assert bits(capture, Bitmap.RESYNC) == {12 * MIB // 65536}
    assert capture.status().overflows == 0


def test_large_write_that_fails_half_way_is_recorded_up_to_there(
    limited: tuple[Server, NbdClient, NbdCapture],
) -> None:
    server, client, capture = limited
    data = os.urandom(3 * MIB)
    # One piece fits, one fails half way, one is never tried.
    reply = client.wait(client.submit(WRITE, 6 * MIB + MIB // 2, data=data))
    assert reply.error
    status = capture.status()
    assert (status.head, status.unpublished, status.failed_writes) == (512, 512, 1)
    replay = Replay(capture, bytearray(16 * MIB))
    replay.drain()
    assert replay.ops == [Op.WRITE] * 256 + [Op.NOP] * 256
    dirty = bits(capture, Bitmap.ACTIVE)
    assert dirty == set(range(120, 136))
    final = server.file.read_bytes()
    for region in range(256):
        span = slice(region * 65536, (region + 1) * 65536)
        assert region in dirty or replay.image[span] == final[span]


def test_failed_zero_is_recorded_as_failed(tmp_path: Path) -> None:
    """tmpfs has no ZERO_RANGE, so zeros are written, and that fails."""
    disk = Path("/dev/shm") / f"bdr-test-{os.getpid()}-{tmp_path.name}"
    try:
        with disk.open("wb") as file:
            file.truncate(16 * MIB)
        with Server(tmp_path, disk, "writes=1024") as server, NbdClient(server.nbd) as client:
            limit = (8 * MIB, resource.RLIM_INFINITY)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
            capture = server.consumer()
            reply = client.wait(client.submit(ZERO, 12 * MIB, 65536, flags=NO_HOLE))
            assert reply.error
            assert capture.status().failed_writes == 1
            assert bits(capture, Bitmap.ACTIVE) == {12 * MIB // 65536}
            replay = Replay(capture, bytearray(16 * MIB))
            replay.drain()
            assert replay.ops == [Op.NOP]
            capture.close()
    finally:
        disk.unlink(missing_ok=True)


def test_writes_that_fail_during_overflow_stay_marked(
    limited: tuple[Server, NbdClient, NbdCapture],
) -> None:
    _, client, capture = limited
    for _ in range(5):
        client.write(0, bytes(MIB))
    assert capture.status().mode is Mode.OVERFLOW
    reply = client.wait(client.submit(WRITE, 10 * MIB, data=bytes(65536)))
    assert reply.error
    capture.resume()
    assert 160 in bits(capture, Bitmap.RESYNC)
    assert capture.status().unlogged == 0


# Block devices


@pytest.mark.root
def test_block_device_is_captured_like_a_file(tmp_path: Path, disk: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices")
    device = subprocess.run(
        ["losetup", "--find", "--show", str(disk)], capture_output=True, text=True, check=False
    )
    if device.returncode:
        pytest.skip(f"no loop device: {device.stderr.strip()}")
    loop = device.stdout.strip()
    try:
        with Server(tmp_path, Path(loop), "writes=16384") as server:
            capture = server.consumer()
            assert capture.info.device_sectors == 16 * MIB // SECTOR
            assert capture.info.underlying == loop
            replay = Replay(capture, bytearray(16 * MIB))
            writers = writers_on(server, 16 * MIB, seed=7, requests=200)
            for writer in writers:
                writer.start()
            while any(writer.is_alive() for writer in writers):
                replay.consume()
            join(writers)
            with NbdClient(server.nbd) as client:
                client.write(0, b"x" * MIB)
                client.trim(4096, 65536)
                client.zero(131072, 65536, flags=NO_HOLE)
                client.zero(262144 + 512, 512)
                client.flush()
                assert client.read(4096, 65536) == bytes(65536)
                assert client.read(131072, 65536) == bytes(65536)
            replay.drain()
            assert replay.image == Path(loop).read_bytes()
            # Opened exclusively: a second user would change it behind the ring's back.
            command = ["nbdkit", "-f", "-U", f"{tmp_path}/second.nbd", str(build_plugin())]
            command += [f"file={loop}", f"ring={tmp_path}/second", "--run", "true"]
            second = subprocess.run(
                command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            assert "the device is in use" in second.stderr
            capture.close()
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


# Sanitizers


def library(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(
    ("sanitizers", "preload", "environment"),
    [
        ("address,undefined", "libasan.so", "ASAN_OPTIONS=detect_leaks=1"),
        ("thread", "libtsan.so", "TSAN_OPTIONS=exitcode=66"),
    ],
)
def test_plugin_is_clean_under_sanitizers(
    tmp_path: Path, disk: Path, sanitizers: str, preload: str, environment: str
) -> None:
    """Load, overflow and resume, failing I/O, clients that vanish; then a clean end."""
    plugin = build_plugin(
        tmp_path / "build",
        "CC=gcc",
        f"SANITIZE={sanitizers}",
        # TSan does not understand the fences of the wake-up; all else is atomic there.
        "CFLAGS=-O1 -g -Wno-tsan",
    )
    wrapper = ("env", environment, f"LD_PRELOAD={library(preload)}")
    with Server(tmp_path, disk, "writes=512", plugin=plugin, wrapper=wrapper) as server:
        capture = server.consumer()
        replay = Replay(capture, bytearray(16 * MIB))
        writers = writers_on(server, 16 * MIB, seed=3, requests=120)
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            replay.consume()
            if capture.status().mode is Mode.OVERFLOW:
                capture.resume()
            server.observer().close()
        join(writers)
        capture.close()
        limit = (8 * MIB, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
        with NbdClient(server.nbd) as client:
            assert client.wait(client.submit(WRITE, 12 * MIB, data=bytes(2 * MIB))).error
        server.consumer().close()
        # What belongs to a connection whose thread has not ended, nbdkit never frees.
        server.wait_idle(others=sanitizers == "thread")
        server.stop()
        log = server.log()
        for complaint in ("Sanitizer", "runtime error"):
            assert complaint not in log, log
