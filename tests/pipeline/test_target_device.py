# SPDX-License-Identifier: GPL-2.0-only
"""The target's device: discards and zeroes on devices as they are, and its lock."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import Op
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.extents import Extents

MIB = 1 << 20
pytestmark = pytest.mark.root


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """What the device below keeps its blocks in."""
    path = tmp_path / "backing"
    path.write_bytes(os.urandom(8 * MIB))
    return path


@pytest.fixture
def device(backing: Path) -> Iterator[str]:
    """A disk of blocks of 4096 bytes."""
    found = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", backing],
        check=True,
        capture_output=True,
        text=True,
    )
    path = found.stdout.strip()
    yield path
    subprocess.run(["losetup", "--detach", path], check=True)


def test_discard_that_is_no_whole_block_does_not_end_the_freeing_of_others(
    device: str, backing: Path
) -> None:
    target = TargetDevice(device)
    wanted = bytearray(backing.read_bytes())
    used = backing.stat().st_blocks
    extents = Extents(
        [Op.DISCARD, Op.WRITE_ZEROES, Op.DISCARD, Op.DISCARD],
        [512, 5 * MIB + 1536, 3 * MIB + 512, 2 * MIB],
        [1024, 6 * 4096, 9 * 4096, MIB],
        [0, 0, 0, 0],
    )
    target.apply(extents, b"")
    target.sync()
    target.close()
    for offset, length in zip(extents.offset, extents.length, strict=True):
        wanted[offset : offset + length] = bytes(length)
    with open(device, "rb") as file:
        assert file.read() == wanted
    assert backing.stat().st_blocks <= used - MIB // 512


def test_lock_of_who_only_looks_is_waited_for(backing: Path) -> None:
    """udev takes one on a disk that was closed, as by the death of the process before."""
    fd = os.open(backing, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, os.close, [fd])
    timer.start()
    TargetDevice(str(backing)).close()
    timer.join()


def test_lock_of_another_applier_is_an_error(backing: Path) -> None:
    first = TargetDevice(str(backing))
    with pytest.raises(DeviceError, match="locked by another applier"):
        TargetDevice(str(backing))
    first.close()
