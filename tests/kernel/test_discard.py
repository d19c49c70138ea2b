# SPDX-License-Identifier: GPL-2.0-only
"""A discarded range reads as zeros on both sides, whatever the device makes of discards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.ring.layout import Op
from tests.kernel.devices import (
    Bdr,
    Direct,
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
    """A SCSI disk that frees discarded blocks and goes on to show what they held."""
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


def test_discards_are_offered_only_where_the_device_takes_zeroes(module: None) -> None:
    with null_block_device("discard=1") as lower:
        for options, offered in (("", False), ("2 discard pass", True)):
            with Bdr("t0", lower, capacity=64, options=options, sectors=2048) as bdr:
                assert fails("blkdiscard", bdr.path) is not offered
                assert bdr.status().head == offered
        assert sectors_of(lower) > 2048
