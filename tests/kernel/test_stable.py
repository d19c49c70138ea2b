# SPDX-License-Identifier: GPL-2.0-only
"""Ring equals disk: also for buffers that change in flight and writes that collide."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.devices import (
    TOOLS,
    Bdr,
    Direct,
    Mapped,
    resume_mapped,
    run,
    sectors_of,
    start,
    wait_for,
    write,
)
from tests.kernel.mirror import Mirror


def test_buffer_changed_in_flight_ring_holds_what_the_disk_got(disk: str, tmp_path: Path) -> None:
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=8192) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with mirror.running():
            run(TOOLS / "hammer", "scribble", bdr.path, "3000")
        mirror.drain()
        if mirror.resumes:
            mirror.resume()
            mirror.repair()
        assert mirror.differing() == []


def test_buffer_changed_in_flight_is_noticed_without_the_copy(disk: str, tmp_path: Path) -> None:
    """The control of the test above: with the hint alone ring and disk do come apart."""
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=8192, options="2 stable hint") as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        for _ in range(20):
            with mirror.running():
                run(TOOLS / "hammer", "scribble", bdr.path, "150")
            mirror.drain()
            assert not mirror.resumes
            if mirror.differing():
                return
        pytest.fail("3000 buffers changed in flight, and no difference was seen")


def test_writes_of_the_same_blocks_at_once_are_put_in_the_order_of_the_disk(
    disk: str, tmp_path: Path
) -> None:
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=8192) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        rounds = 0
        for _ in range(10):
            with mirror.running():
                run(TOOLS / "hammer", "collide", bdr.path, "100")
            mirror.drain()
            if mirror.resumes:
                mirror.resume()
                mirror.repair()
            assert mirror.differing() == []
            rounds += 1
        assert rounds == 10
        assert bdr.status().serialised > 0


def test_overlapping_write_waits_for_the_first_and_others_do_not(disk: str, tmp_path: Path) -> None:
    """A, then B over a part of A, then C elsewhere: C's slot precedes B's."""
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with lower.suspended():
            writers = [start(lambda: write(bdr.path, b"A" * 8192, 0))]
            wait_for(lambda: bdr.status().head == 2, "A in flight")
            writers.append(start(lambda: write(bdr.path, b"B" * 4096, 4096)))
            wait_for(lambda: bdr.status().serialised == 1, "B waits")
            writers.append(start(lambda: write(bdr.path, b"C" * 4096, 9 * 4096)))
            wait_for(lambda: bdr.status().head == 3, "C in flight")
        for writer in writers:
            writer.join()
        mirror.drain()
        status = bdr.status()
        assert status.serialised == 1
        assert status.head == 4
        headers = mirror.capture.headers[:4] & ((1 << 48) - 1)
        assert headers.tolist() == [0, 8, 72, 8]
        assert mirror.differing() == []


def test_write_that_waits_is_not_overtaken_by_later_ones_for_ever(
    disk: str, tmp_path: Path
) -> None:
    """A long write waits for small ones under it; those that come later wait for it."""
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=1024) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with lower.suspended():
            writers = [start(lambda: write(bdr.path, b"s" * 4096, 0))]
            wait_for(lambda: bdr.status().head == 1, "a small write in flight")
            writers.append(start(lambda: write(bdr.path, b"l" * 65536, 0)))
            wait_for(lambda: bdr.status().serialised == 1, "a long one over it")
            for later in range(1, 9):
                writers.append(start(partial(write, bdr.path, b"n" * 4096, later * 4096)))
            # None of them overlaps the small one, all of them the long one.
            wait_for(lambda: bdr.status().serialised == 9, "later ones wait for that")
            assert bdr.status().head == 1
        for writer in writers:
            writer.join()
        mirror.drain()
        headers = mirror.capture.headers[1:25] & ((1 << 48) - 1)
        assert headers[:16].tolist() == list(range(0, 128, 8))
        assert sorted(headers[16:].tolist()) == list(range(8, 72, 8))
        assert mirror.differing() == []


def test_writes_of_one_block_go_as_they_came_and_are_counted_once(
    disk: str, tmp_path: Path
) -> None:
    data = [bytes([number]) * 4096 for number in range(32)]
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with lower.suspended():
            writers = [start(lambda: write(bdr.path, data[0], 0))]
            wait_for(lambda: bdr.status().head == 1, "the first in flight")

            def waits(count: int) -> bool:
                return bdr.status().serialised == count

            for number in range(1, 32):
                writers.append(start(partial(write, bdr.path, data[number], 0)))
                wait_for(partial(waits, number), "one more waits")
        for writer in writers:
            writer.join()
        assert (bdr.status().head, bdr.status().serialised) == (32, 31)
        assert bytes(mirror.capture.payload(0, 32)) == b"".join(data)
        mirror.drain()
        assert mirror.differing() == []


def test_suspend_waits_for_a_write_that_waits(disk: str, tmp_path: Path) -> None:
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with lower.suspended():
            writers = [start(lambda: write(bdr.path, os.urandom(4096), 0)) for _ in range(4)]
            wait_for(lambda: bdr.status().serialised == 3, "3 writes wait for the first")
            suspend = subprocess.Popen(["dmsetup", "suspend", "--nolockfs", bdr.name])
            stack = Path(f"/proc/{suspend.pid}/stack")
            wait_for(lambda: "dm_suspend" in stack.read_text(), "a suspend under way")
            assert bdr.status().unpublished == 0
        assert suspend.wait(30) == 0
        suspended = bdr.status()
        assert (suspended.unpublished, suspended.head) == (4, 4)
        resume_mapped(bdr.name)
        for writer in writers:
            writer.join()
        mirror.drain()
        assert mirror.capture.status().head == 4
        assert mirror.differing() == []


def test_hint_only_asks_for_stable_pages(disk: str, tmp_path: Path) -> None:
    with (
        Bdr("t0", disk, capacity=4096, options="2 stable hint", sectors=65536) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as device,
    ):
        name = Path(bdr.path).resolve().name
        if not name.startswith("dm-"):
            name = run("dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", bdr.name)
        stable = Path(f"/sys/block/{name.strip()}/queue/stable_writes").read_text().strip()
        assert stable == "1"
        assert sectors_of(bdr.path) == 65536
        device.write(b"h" * 8192, 0)
        mirror.drain()
        with mirror.file.open("rb") as replica:
            assert replica.read(8192) == b"h" * 8192
