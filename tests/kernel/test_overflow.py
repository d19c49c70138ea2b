# SPDX-License-Identifier: GPL-2.0-only
"""The application never waits for the consumer, and no write is in neither place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.capture import Bitmap, Role
from common.capture_dm import DmCapture
from common.ring import Mode
from tests.kernel.devices import ROOT, Bdr, Direct, Loop, Mapped, have_module, run, wait_for
from tests.kernel.mirror import Mirror

REGION = 65536


@contextmanager
def load(
    path: str, *, megabytes: int = 1024, size: str = "48M"
) -> Iterator[subprocess.Popen[bytes]]:
    """Random writes for as long as the block lasts; an error in them is one here."""
    process = subprocess.Popen(
        ["fio", "--name=load", f"--filename={path}", "--ioengine=libaio", "--direct=1",
         "--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k", f"--size={size}", "--minimal",
         "--norandommap", f"--io_size={megabytes}M", "--refill_buffers", "--randseed=3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
        assert process.poll() in (None, 0), process.communicate()[0]
    finally:
        process.terminate()
        output = process.communicate()[0]
    assert b"error" not in output, output


def test_no_reader_every_write_completes_and_is_in_ring_or_bitmap(
    loop: Loop, tmp_path: Path
) -> None:
    with Bdr("t0", loop.path, capacity=256) as bdr:
        run(
            "fio", "--name=j", f"--filename={bdr.path}", "--ioengine=libaio", "--direct=1",
            "--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k", "--size=32M", "--minimal",
        )  # fmt: skip
        status = bdr.status()
        assert (status.mode, status.overflows, status.unlogged) == ("OVERFLOW", 1, 0)
        assert 0 < status.head <= 256
        assert status.missed > 0
        assert status.gap == str(status.head)
        with Mirror(bdr, tmp_path / "replica") as mirror:
            mirror.drain()
            active = set(np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist())
            different = set(mirror.differing())
            assert different
            assert different <= active
            # The gap lies behind the last slot there is: it must still be told.
            assert mirror.capture.status().gap == status.head
            assert mirror.resume() == status.head
            assert mirror.capture.status().mode is Mode.STREAM
            mirror.repair()
            assert mirror.differing() == []
            # And it is forgotten once a slot behind it is released.
            with Direct(bdr.path) as disk:
                disk.write(b"n" * 4096, 0)
            mirror.drain()
            assert mirror.capture.status().gap is None


@pytest.mark.parametrize(("reader", "pause_s", "limit"), [("keen", 0.0, 2048), ("slow", 0.05, 256)])
def test_resume_again_and_again_under_full_load_loses_nothing(
    loop: Loop, tmp_path: Path, reader: str, pause_s: float, limit: int
) -> None:
    with Bdr("t0", loop.path, capacity=512) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with load(bdr.path), mirror.running(pause_s=pause_s, limit=limit):
            wait_for(lambda: mirror.resumes >= 15, "15 times from OVERFLOW to STREAM", 60)
        mirror.drain()
        mirror.resume()
        status = mirror.capture.status()
        assert status.overflows >= 15
        assert status.active_regions == 0
        assert status.resync_regions > 0
        resync = set(np.flatnonzero(mirror.bits(Bitmap.RESYNC)).tolist())
        assert set(mirror.differing()) <= resync
        mirror.repair()
        assert mirror.differing() == []


def test_stopped_reader_does_not_stop_the_application(loop: Loop, tmp_path: Path) -> None:
    with Bdr("t0", loop.path, capacity=256) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with load(bdr.path):
            wait_for(lambda: bdr.status().missed > 500, "500 writes past a stopped reader", 60)
        mirror.drain()
        slot = mirror.resume()
        assert slot == mirror.capture.status().head
        mirror.repair()
        assert mirror.differing() == []


def test_region_marked_during_its_own_resync_stays_marked(loop: Loop, tmp_path: Path) -> None:
    with (
        Bdr("t0", loop.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        bdr.message("overflow")
        disk.write(b"1" * 4096, 5 * REGION)
        mirror.resume()
        assert np.flatnonzero(mirror.bits(Bitmap.RESYNC)).tolist() == [5]
        assert not mirror.bits(Bitmap.ACTIVE).any()
        # The scan has read the region; before its acknowledgement comes a write.
        bdr.message("overflow")
        disk.write(b"2" * 4096, 5 * REGION)
        mirror.capture.clear_bitmap(first=5, count=1)
        assert not mirror.bits(Bitmap.RESYNC).any()
        assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [5]
        mirror.resume()
        assert np.flatnonzero(mirror.bits(Bitmap.RESYNC)).tolist() == [5]


def test_write_that_missed_the_ring_is_marked_again_when_it_completes(
    loop: Loop, tmp_path: Path
) -> None:
    """A RESUME merges while a write of the next OVERFLOW is in flight."""
    if not have_module("dm-delay"):
        pytest.skip("this kernel has no dm-delay")
    with (
        Mapped("slow", f"0 65536 delay {loop.path} 0 0 {loop.path} 0 400") as slow,
        Bdr("t0", slow.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):

        def write(region: int) -> threading.Thread:
            def body() -> None:
                with Direct(bdr.path) as disk:
                    disk.write(b"w" * 4096, region * REGION)

            thread = threading.Thread(target=body)
            thread.start()
            return thread

        bdr.message("overflow")
        first = write(1)
        wait_for(lambda: mirror.capture.status().unlogged == 1, "write 1 in flight")
        resumed = threading.Thread(target=mirror.resume)
        resumed.start()
        wait_for(lambda: mirror.capture.status().mode is Mode.STREAM, "RESUME has begun")
        assert resumed.is_alive()
        bdr.message("overflow")
        second = write(2)
        wait_for(lambda: mirror.capture.status().unlogged == 2, "write 2 in flight")
        resumed.join()
        assert first.join(10) is None
        # Both bits were merged; a scan reads now, too early for write 2, and clears.
        assert np.flatnonzero(mirror.bits(Bitmap.RESYNC)).tolist() == [1, 2]
        mirror.capture.clear_bitmap(first=0, count=3)
        second.join()
        assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [2]


def test_killed_resume_leaves_marks_for_the_next_one(loop: Loop, tmp_path: Path) -> None:
    if not have_module("dm-delay"):
        pytest.skip("this kernel has no dm-delay")
    with (
        Mapped("slow", f"0 65536 delay {loop.path} 0 0 {loop.path} 0 3000") as slow,
        Bdr("t0", slow.path, capacity=64) as bdr,
    ):
        bdr.message("overflow")
        writer = subprocess.Popen(
            ["dd", "if=/dev/urandom", f"of={bdr.path}", "bs=4k", "count=1", "oflag=direct"],
            stderr=subprocess.DEVNULL,
        )
        observer = DmCapture(bdr.device, Role.OBSERVER)
        wait_for(lambda: observer.status().unlogged == 1, "a write in flight")
        code = (
            "import fcntl,os; fd=os.open(%r, os.O_RDWR); fcntl.ioctl(fd, 0x8008B703, bytearray(8))"
        )
        resume = subprocess.Popen([sys.executable, "-S", "-c", code % bdr.device], cwd=ROOT)
        wait_for(lambda: observer.status().mode is Mode.STREAM, "RESUME has begun")
        assert writer.poll() is None
        os.kill(resume.pid, signal.SIGKILL)
        assert resume.wait(10) == -signal.SIGKILL
        assert writer.wait(30) == 0
        observer.close()
        with Mirror(bdr, tmp_path / "replica") as mirror:
            assert mirror.capture.status().gap == 0
            assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [0]
            mirror.resume()
            mirror.repair()
            assert mirror.differing() == []
