# SPDX-License-Identifier: GPL-2.0-only
"""Ring equals disk: also for buffers that change in flight and writes that collide."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernel.devices import TOOLS, Bdr, Direct, Mapped, have_module, run, sectors_of
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
    """Under a delay of 2 s: A, then B over A, then C elsewhere: C's slot precedes B's."""
    if not have_module("dm-delay"):
        pytest.skip("this kernel has no dm-delay")
    with (
        Mapped("slow", f"0 65536 delay {disk} 0 0 {disk} 0 2000") as slow,
        Bdr("t0", slow.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        script = (
            f"dd if=/dev/zero of={bdr.path} bs=8k count=1 oflag=direct conv=notrunc & "
            "sleep 0.1; "
            f"dd if=/dev/urandom of={bdr.path} bs=4k seek=1 count=1 oflag=direct conv=notrunc & "
            "sleep 0.1; "
            f"dd if=/dev/zero of={bdr.path} bs=4k seek=9 count=1 oflag=direct conv=notrunc & "
            "wait"
        )
        run("sh", "-c", script)
        mirror.drain()
        status = bdr.status()
        assert status.serialised == 1
        assert status.head == 4
        headers = mirror.capture.headers[:4] & ((1 << 48) - 1)
        assert headers.tolist() == [0, 8, 72, 8]
        assert mirror.differing() == []


def test_suspend_waits_for_a_write_that_waits(disk: str, tmp_path: Path) -> None:
    if not have_module("dm-delay"):
        pytest.skip("this kernel has no dm-delay")
    with (
        Mapped("slow", f"0 65536 delay {disk} 0 0 {disk} 0 200") as slow,
        Bdr("t0", slow.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        writers = [
            subprocess.Popen(
                ["dd", "if=/dev/urandom", f"of={bdr.path}", "bs=4k", "count=1", "oflag=direct",
                 "conv=notrunc"], stderr=subprocess.DEVNULL,
            )
            for _ in range(4)
        ]  # fmt: skip
        while bdr.status().head == 0:
            pass
        run("dmsetup", "suspend", bdr.name)
        suspended = bdr.status()
        assert suspended.unpublished == suspended.head
        run("dmsetup", "resume", bdr.name)
        assert [writer.wait(30) for writer in writers] == [0] * 4
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
