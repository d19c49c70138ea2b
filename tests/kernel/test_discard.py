# SPDX-License-Identifier: GPL-2.0-only
"""A discarded range reads as zeros on both sides, whatever the device makes of discards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.ring.layout import Op
from tests.kernel.devices import (
    Bdr,
    Direct,
    Loop,
    Mapped,
    fails,
    have_module,
    null_block_device,
    run,
    sectors_of,
    wait_for,
)
from tests.kernel.mirror import Mirror


@pytest.fixture
def forgetful(module: None) -> Iterator[str]:
    """A SCSI disk that frees discarded blocks and goes on to show what they held.

    It zeroes by WRITE SAME, and rejects that once it is told to; see `reject_write_same`.
    """
    if not have_module("sd_mod") or fails(
        "modprobe", "scsi_debug", "dev_size_mb=16", "delay=0", "lbpu=1", "lbprz=0",
        "unmap_granularity=8",
    ):  # fmt: skip
        pytest.skip("this kernel has no scsi_debug")
    try:
        adapters = Path("/sys/bus/pseudo/drivers/scsi_debug")
        wait_for(lambda: bool(list(adapters.glob("adapter*/host*/target*/*/block/*"))), "a disk")
        (disk,) = adapters.glob("adapter*/host*/target*/*/block/*")
        wait_for(lambda: Path("/dev", disk.name).exists(), "its node")
        yield f"/dev/{disk.name}"
    finally:
        wait_for(lambda: not fails("rmmod", "scsi_debug"), "the end of scsi_debug")


def write_and_discard(path: str) -> None:
    """Fills 1 MiB and discards a part of it that begins and ends within a granule."""
    with Direct(path) as disk:
        disk.write(b"x" * (1 << 20), 0)
    run("blkdiscard", "-o", str(16384 + 512), "-l", "65536", path)


def test_discard_zero_leaves_zeros_on_a_device_that_does_not(
    forgetful: str, tmp_path: Path
) -> None:
    with Bdr("t0", forgetful, capacity=4096) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with mirror.running():
            write_and_discard(bdr.path)
        mirror.drain()
        assert mirror.ops[Op.DISCARD] > 0
        assert mirror.ops[Op.WRITE_ZEROES] == 0
        assert mirror.differing() == []
        with Direct(forgetful) as lower:
            assert lower.read(98304, 0) == b"x" * 16896 + bytes(65536) + b"x" * 15872
        assert (bdr.status().failed, bdr.status().missed) == (0, 0)


def test_discard_pass_shows_what_the_device_makes_of_it(forgetful: str, tmp_path: Path) -> None:
    """The control of the test above: here source and replica do differ."""
    with (
        Bdr("t0", forgetful, capacity=4096, options="2 discard pass") as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with mirror.running():
            write_and_discard(bdr.path)
        mirror.drain()
        assert mirror.ops[Op.DISCARD] > 0
        assert mirror.differing() == [0, 1]


def reject_write_same() -> None:
    """Has the SCSI disk refuse every WRITE SAME of more than a block, as illegal."""
    Path("/sys/module/scsi_debug/parameters/write_same_length").write_text("1")


def test_discard_that_is_rejected_as_write_zeroes_is_made_of_zeros_once(
    forgetful: str, tmp_path: Path
) -> None:
    with Bdr("t0", forgetful, capacity=4096) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with Direct(bdr.path) as disk:
            disk.write(b"x" * (1 << 20), 0)
        reject_write_same()
        run("blkdiscard", "-o", "65536", "-l", "65536", bdr.path)
        assert bdr.status().head == 257
        # No more of them are taken: each would be zeros to write.
        run("blkdiscard", "-o", "262144", "-l", "65536", bdr.path)
        assert bdr.status().head == 257
        run("blkdiscard", "-z", "-o", "131072", "-l", "65536", bdr.path)
        mirror.drain()
        assert (mirror.ops[Op.DISCARD], mirror.ops[Op.WRITE_ZEROES]) == (1, 1)
        status = bdr.status()
        assert (status.failed, status.active, status.head) == (0, 0, 258)
        with Direct(forgetful) as lower:
            wanted = b"x" * 65536 + bytes(131072) + b"x" * 65536
            assert lower.read(len(wanted), 0) == wanted
            assert lower.read(65536, 262144) == b"x" * 65536
        assert mirror.differing() == []


@pytest.fixture
def memory_loop(module: None, tmp_path: Path) -> Iterator[Loop]:
    """A loop device that offers write-zeroes, and rejects those that may not free space."""
    directory = tmp_path / "memory"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "none", directory)
    try:
        with Loop(directory / "lower", megabytes=64) as loop:
            yield loop
    finally:
        run("umount", directory)


def test_write_zeroes_that_are_rejected_are_no_failed_writes(
    memory_loop: Loop, tmp_path: Path
) -> None:
    with (
        Bdr("t0", memory_loop.path, capacity=4096) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with Direct(bdr.path) as disk:
            disk.write(b"x" * (1 << 20), 0)
        run("blkdiscard", "-z", "-o", "4096", "-l", "262144", bdr.path)
        mirror.drain()
        assert (mirror.ops[Op.WRITE_ZEROES], mirror.ops[Op.NOP]) == (1, 0)
        with Direct(memory_loop.path) as lower:
            assert lower.read(1 << 20, 0) == b"x" * 4096 + bytes(262144) + b"x" * 782336
        with mirror.running():
            run("mkfs.ext4", "-q", "-F", bdr.path)
        mirror.drain()
        status = bdr.status()
        assert (status.failed, status.active, status.missed) == (0, 0, 0)
        assert mirror.ops[Op.WRITE_ZEROES] > 1
        assert mirror.differing() == []


@pytest.fixture
def thin(module: None, tmp_path: Path) -> Iterator[str]:
    """A thin volume of 64 MiB in blocks of 64 KiB; its pool zeroes new ones."""
    if not have_module("dm-thin-pool"):
        pytest.skip("this kernel has no dm-thin-pool")
    with (
        Loop(tmp_path / "metadata", megabytes=4) as metadata,
        Loop(tmp_path / "data", megabytes=64) as data,
        Mapped("pool", f"0 131072 thin-pool {metadata.path} {data.path} 128 0") as pool,
    ):
        run("dmsetup", "message", pool.name, "0", "create_thin 0")
        with Mapped("thin", f"0 131072 thin {pool.path} 0") as volume:
            yield volume.path


def test_discard_pass_takes_the_whole_blocks_of_a_thin_volume_only(
    thin: str, tmp_path: Path
) -> None:
    with (
        Bdr("t0", thin, capacity=4096, options="2 discard pass") as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        data = os.urandom(1 << 20)
        with Direct(bdr.path) as disk:
            disk.write(data, 0)
        head = bdr.status().head
        for offset, length in ((4096, 81920), (65536, 65024), (0, 512), (983552, 65024)):
            run("blkdiscard", "-o", str(offset), "-l", str(length), bdr.path)
        assert bdr.status().head == head, "no block of the volume was discarded as a whole"
        run("blkdiscard", "-o", "4096", "-l", "204800", bdr.path)
        mirror.drain()
        assert mirror.ops[Op.DISCARD] > 0
        with Direct(thin) as lower:
            assert lower.read(1 << 20, 0) == data[:65536] + bytes(131072) + data[196608:]
        assert mirror.differing() == []
        assert (bdr.status().failed, bdr.status().active) == (0, 0)


def test_discard_pass_of_a_file_system_on_a_thin_volume(thin: str, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with (
        Bdr("t0", thin, capacity=8192, options="2 discard pass") as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with mirror.running():
            run("mkfs.ext4", "-q", "-F", bdr.path)
            run("mount", bdr.path, mounted)
            try:
                for number in range(40):
                    (mounted / f"f{number}").write_bytes(os.urandom(300_000))
                run("sync", "-f", mounted)
                for number in range(0, 40, 2):
                    (mounted / f"f{number}").unlink()
                run("sync", "-f", mounted)
                run("fstrim", mounted)
            finally:
                run("umount", mounted)
        mirror.drain()
        assert mirror.ops[Op.DISCARD] > 0
        status = bdr.status()
        assert (status.failed, status.missed, status.active) == (0, 0, 0)
        assert mirror.differing() == []


def test_discards_are_offered_only_where_the_device_takes_zeroes(module: None) -> None:
    with null_block_device("discard=1") as lower:
        for options, offered in (("", False), ("2 discard pass", True)):
            with Bdr("t0", lower, capacity=64, options=options, sectors=2048) as bdr:
                assert fails("blkdiscard", bdr.path) is not offered
                assert bdr.status().head == offered
        assert sectors_of(lower) > 2048
