# SPDX-License-Identifier: GPL-2.0-only
"""The application never waits for the consumer, and no write is in neither place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.ring.layout import MISSED_NOTHING, Mode
from tests.kernel.devices import ROOT, Bdr, Direct, Loop, Mapped, run, start, wait_for, write
from tests.kernel.mirror import Mirror

REGION = 65536
TICK_NS = 10_000_000
"""The resolution of the module's clock."""


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
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - TICK_NS
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
            look = mirror.capture.status()
            assert before_ns <= look.missed_since_ns < look.clock_ns
            assert mirror.resume() == status.head
            assert mirror.capture.status().mode is Mode.STREAM
            mirror.repair()
            assert mirror.differing() == []
            assert mirror.capture.status().missed_since_ns == MISSED_NOTHING
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
    with (
        Mapped("a", f"0 65536 linear {loop.path} 0") as a,
        Mapped("b", f"0 65536 linear {loop.path} 65536") as b,
        Mapped("both", f"0 65536 linear {a.path} 0\n65536 65536 linear {b.path} 0") as both,
        Bdr("t0", both.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        in_b = 65536 * 512 // REGION
        bdr.message("overflow")
        with b.suspended():
            with a.suspended():
                first = start(lambda: write(bdr.path, b"1" * 4096, REGION))
                wait_for(lambda: bdr.status().unlogged == 1, "write 1 in flight")
                resumed = start(mirror.resume)
                wait_for(lambda: bdr.status().mode == "STREAM", "RESUME has begun")
                bdr.message("overflow")
                second = start(lambda: write(bdr.path, b"2" * 4096, in_b * REGION))
                wait_for(lambda: bdr.status().unlogged == 2, "write 2 in flight")
                assert resumed.is_alive()
            first.join()
            resumed.join()
            # Both bits were merged; a scan reads now, too early for write 2, and clears.
            assert np.flatnonzero(mirror.bits(Bitmap.RESYNC)).tolist() == [1, in_b]
            mirror.capture.clear_bitmap(first=0, count=in_b + 1)
        second.join()
        assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [in_b]


def test_write_over_one_without_a_slot_takes_its_slot_when_that_has_completed(
    loop: Loop, tmp_path: Path
) -> None:
    """Both are in flight at once after a RESUME has begun; the scan reads only then."""
    with (
        Mapped("lower", f"0 65536 linear {loop.path} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        bdr.message("overflow")
        with lower.suspended():
            first = start(lambda: write(bdr.path, b"1" * 4096, REGION))
            wait_for(lambda: bdr.status().unlogged == 1, "write 1 in flight")
            resumed = start(mirror.resume)
            wait_for(lambda: bdr.status().mode == "STREAM", "RESUME has begun")
            second = start(lambda: write(bdr.path, b"2" * 4096, REGION))
            wait_for(lambda: bdr.status().serialised + bdr.status().head > 0, "write 2")
            assert bdr.status().head == 0
        for thread in (first, resumed, second):
            thread.join()
        mirror.repair()
        mirror.drain()
        assert bdr.status().head == 1
        assert mirror.differing() == []


def test_killed_resume_leaves_marks_for_the_next_one(loop: Loop, tmp_path: Path) -> None:
    with (
        Mapped("lower", f"0 65536 linear {loop.path} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
    ):
        bdr.message("overflow")
        with lower.suspended():
            writer = start(lambda: write(bdr.path, os.urandom(4096), 0))
            wait_for(lambda: bdr.status().unlogged == 1, "a write in flight")
            code = (
                "import fcntl,os; fd=os.open(%r, os.O_RDWR); "
                "fcntl.ioctl(fd, 0x8008B703, bytearray(8))"
            )
            resume = subprocess.Popen([sys.executable, "-S", "-c", code % bdr.device], cwd=ROOT)
            wait_for(lambda: bdr.status().mode == "STREAM", "RESUME has begun")
            os.kill(resume.pid, signal.SIGKILL)
            assert resume.wait(10) == -signal.SIGKILL
            assert bdr.status().unlogged == 1
        writer.join()
        with Mirror(bdr, tmp_path / "replica") as mirror:
            assert mirror.capture.status().gap == 0
            assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [0]
            mirror.resume()
            mirror.repair()
            assert mirror.differing() == []
