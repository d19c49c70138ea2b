# SPDX-License-Identifier: GPL-2.0-only
"""Never ahead: what the disk refused does not reach the replica."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.ring.layout import MISSED_UNKNOWN, Mode, Op
from bdr.common.ring.slots import decode, slots_at
from tests.kernel.devices import Bdr, Direct, Loop, Mapped, have_module, run
from tests.kernel.mirror import Mirror

HALF = 65536
"""Sectors of each half of the device; writes to the upper one fail."""


@pytest.fixture
def flaky(loop: Loop) -> Iterator[Mapped]:
    if not have_module("dm-flakey"):
        pytest.skip("this kernel has no dm-flakey")
    with Mapped(
        "flaky",
        f"0 {HALF} linear {loop.path} 0\n"
        f"{HALF} {HALF} flakey {loop.path} {HALF} 0 60 1 error_writes",
    ) as device:
        yield device


def test_failed_write_gives_eio_is_a_nop_and_is_marked(flaky: Mapped, tmp_path: Path) -> None:
    with (
        Bdr("t0", flaky.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        disk.write(b"a" * 4096, 0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            disk.write(b"b" * 12288, HALF * 512 + 65536)
        disk.write(b"c" * 4096, 4096)
        columns = decode(slots_at(mirror.capture.headers, first=0, count=5))
        assert columns.op.tolist() == [Op.WRITE, Op.NOP, Op.NOP, Op.NOP, Op.WRITE]
        assert columns.last.tolist() == [True, False, False, True, True]
        status = mirror.capture.status()
        assert (status.failed_writes, status.missed_writes, status.head) == (1, 0, 5)
        assert status.missed_since_ns == MISSED_UNKNOWN
        assert status.mode is Mode.STREAM
        assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [HALF // 128 + 1]
        mirror.drain()
        with mirror.file.open("rb") as replica:
            assert replica.read(8192) == b"a" * 4096 + b"c" * 4096
            replica.seek(HALF * 512 + 65536)
            assert replica.read(12288) == bytes(12288)


def test_failed_discard_and_write_zeroes_are_nops_and_marked(flaky: Mapped, tmp_path: Path) -> None:
    with Bdr("t0", flaky.path, capacity=64) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        run("sh", "-c", f"! blkdiscard -z -o {HALF * 512} -l 131072 {bdr.path} 2>/dev/null")
        mirror.drain()
        assert mirror.ops[Op.WRITE_ZEROES] == mirror.ops[Op.DISCARD] == mirror.ops[Op.WRITE] == 0
        assert mirror.ops[Op.NOP] > 0
        marked = np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist()
        assert marked == [HALF // 128, HALF // 128 + 1]


def test_failed_write_in_overflow_is_marked_and_returns_eio(flaky: Mapped, tmp_path: Path) -> None:
    with (
        Bdr("t0", flaky.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        bdr.message("overflow")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            disk.write(b"b" * 4096, HALF * 512)
        assert np.flatnonzero(mirror.bits(Bitmap.ACTIVE)).tolist() == [HALF // 128]
        assert mirror.capture.status().unlogged == 0


def test_writes_that_fail_in_a_crowd_leave_only_marked_regions_different(
    flaky: Mapped, tmp_path: Path
) -> None:
    """Four writers over both halves; half of the writes fail."""
    failures = [0] * 4

    def write(bdr: Bdr, seed: int) -> None:
        random = np.random.default_rng(seed)
        with Direct(bdr.path) as disk:
            for _ in range(150):
                sector = int(random.integers(0, 2 * HALF - 64)) // 8 * 8
                try:
                    disk.write(random.bytes(4096 * int(random.integers(1, 8))), sector * 512)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    failures[seed] += 1

    with Bdr("t0", flaky.path, capacity=4096) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        threads = [threading.Thread(target=write, args=(bdr, seed)) for seed in range(4)]
        with mirror.running():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        mirror.drain()
        status = mirror.capture.status()
        assert status.failed_writes >= sum(failures) > 100
        assert mirror.ops[Op.NOP] > 0
        marked = mirror.bits(Bitmap.ACTIVE) | mirror.bits(Bitmap.RESYNC)
        assert set(mirror.differing()) <= set(np.flatnonzero(marked).tolist())
        mirror.resume()
        mirror.repair()
        assert mirror.differing() == []
