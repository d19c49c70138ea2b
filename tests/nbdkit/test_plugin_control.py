# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: roles, release, resume, bitmaps."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import Mode
from tests.nbdkit.client import WRITE, NbdClient
from tests.nbdkit.raw import Raw
from tests.nbdkit.server import ROOT, Server, readable, wait_until
from tests.support.refusals import refused

Serve = Callable[..., Server]
REGIONS = 256


# Roles


def test_second_consumer_is_refused(server: Server, capture: NbdCapture) -> None:
    assert refused(server.consumer) == errno.EBUSY
    observer = server.observer()
    seen = observer.status()
    assert seen == replace(capture.status(), clock_ns=seen.clock_ns)
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
        assert refused(attempt) == errno.EPERM
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
        assert refused(server.consumer) == errno.EBUSY
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


# Release and resume


def test_release_outside_the_ring_is_refused(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(3 * 4096))
    capture.release(tail=1, cursor=3)
    for tail, cursor in ((0, 3), (4, 4), (2, 1), (2, 4), (2**64 - 1, 2**64 - 1)):
        assert refused(partial(capture.release, tail=tail, cursor=cursor)) == errno.ERANGE
    assert capture.status().tail == 1


def test_counters_are_kept_for_the_next_consumer(server: Server, client: NbdClient) -> None:
    client.write(0, bytes(4096))
    first = server.consumer()
    assert (first.status().acknowledged, first.status().counted) == (0, 0)
    first.release(tail=1, cursor=1, acknowledged=3, counted=2**63)
    first.close()
    second = server.consumer()
    assert (second.status().acknowledged, second.status().counted) == (3, 2**63)
    second.close()


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
