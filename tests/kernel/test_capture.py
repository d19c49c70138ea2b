# SPDX-License-Identifier: GPL-2.0-only
"""Everything written is captured exactly."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.ring.layout import Mode, Op
from bdr.common.ring.slots import decode, slots_at
from tests.kernel.devices import (
    Bdr,
    Direct,
    Loop,
    Mapped,
    have_module,
    null_block_device,
    run,
    wait_for,
)
from tests.kernel.mirror import Mirror

FIO = ["fio", "--minimal", "--group_reporting", "--randseed=7", "--fallocate=none"]
VERIFY = ["--verify=crc32c", "--do_verify=1", "--verify_state_save=0"]


def fio(path: str, *options: str) -> None:
    run(*FIO, f"--filename={path}", "--name=job", *options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "direct",
            ["--ioengine=libaio", "--direct=1", "--iodepth=16", "--bsrange=512-1M", *VERIFY],
        ),
        ("buffered", ["--ioengine=psync", "--fsync=16", "--bsrange=512-256k", *VERIFY]),
        ("io_uring", ["--ioengine=io_uring", "--direct=1", "--iodepth=32", "--bs=4k", *VERIFY]),
    ],
)
def test_fio_mixed_sizes_verified_replica_identical(
    loop: Loop, tmp_path: Path, name: str, options: list[str]
) -> None:
    jobs = ["--numjobs=2", "--size=8M", "--offset_increment=32M", "--rw=randwrite"]
    with (
        # Room for everything: no write may be missed here.
        Bdr("t0", loop.path, capacity=16384) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with mirror.running():
            fio(bdr.path, *options, *jobs, "--end_fsync=1")
        mirror.drain()
        status = mirror.capture.status()
        assert mirror.ops[Op.WRITE] >= 16 * 256
        assert (status.failed_writes, status.missed_writes) == (0, 0)
        assert mirror.differing() == []


@pytest.mark.parametrize(
    ("kind", "make", "check"),
    [
        ("ext4", ["mkfs.ext4", "-q", "-F"], ["e2fsck", "-fn"]),
        ("xfs", ["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n"]),
        ("btrfs", ["mkfs.btrfs", "-q", "-f"], ["btrfs", "check", "--readonly"]),
    ],
)
def test_filesystem_workload_replica_identical_and_sound(
    module: None, tmp_path: Path, kind: str, make: list[str], check: list[str]
) -> None:
    if kind not in Path("/proc/filesystems").read_text() and not have_module(kind):
        pytest.skip(f"this kernel has no {kind}")
    mount = tmp_path / "mount"
    mount.mkdir()
    with (
        Loop(tmp_path / "lower", megabytes=320) as loop,
        Bdr("fs", loop.path, capacity=32768) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with mirror.running():
            run(*make, bdr.path)
            run("mount", "-o", "discard", bdr.path, mount)
            try:
                source = Path(os.__file__).parent / "asyncio"
                run("cp", "-r", source, mount / "a")
                run("cp", "-r", source, mount / "b")
                run("sync", "-f", mount)
                run("rm", "-r", mount / "a")
                run("dd", "if=/dev/urandom", f"of={mount}/c", "bs=1M", "count=6", "oflag=direct")
                run("fstrim", mount)
            finally:
                run("umount", mount)
        mirror.drain()
        if mirror.resumes:
            mirror.resume()
            mirror.repair()
        assert mirror.differing() == []
        assert mirror.ops[Op.DISCARD] > 0
        assert mirror.ops[Op.FLUSH] > 0
        if kind == "ext4":
            assert mirror.fuas > 0
        run(*check, mirror.file)


def has_completed(bdr: Bdr) -> bool:
    """Whether no write is in flight, with slots or without."""
    status = bdr.status()
    return status.unpublished == status.head and not status.unlogged


def test_write_completes_though_its_submitter_polls_for_nothing(
    module: None, tmp_path: Path
) -> None:
    """Else a process that is stopped would hold up the ring, and what it overlaps."""
    job = [*FIO, "--name=job", "--thread", "--ioengine=io_uring", "--hipri", "--direct=1",
           "--iodepth=16", "--bs=4k", "--rw=randwrite", "--size=64M", "--time_based",
           "--runtime=60"]  # fmt: skip
    with (
        null_block_device("poll_queues=1", "submit_queues=1") as lower,
        Bdr("t0", lower, capacity=4096) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        mirror.running(),
        subprocess.Popen([*job, f"--filename={bdr.path}"], stdout=subprocess.DEVNULL) as writer,
    ):
        try:
            wait_for(lambda: bdr.status().head > 100, "writes")
            writer.send_signal(signal.SIGSTOP)
            state = Path(f"/proc/{writer.pid}/stat")
            wait_for(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "T", "a stop")
            # Within less than the 5 s after which io_uring's own workers look again.
            wait_for(lambda: has_completed(bdr), "no write in flight", 3)
        finally:
            writer.kill()


def test_pages_written_through_a_mapping_are_captured(loop: Loop, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    with (
        Bdr("t0", loop.path, capacity=16384) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        open(bdr.path, "r+b", buffering=0) as file,
    ):
        with mirror.running(), mmap.mmap(file.fileno(), 64 << 20) as pages:
            for _ in range(4):
                for at in random.integers(0, (64 << 20) - 64, 500).tolist():
                    pages[at : at + 64] = random.bytes(64)
                pages.flush()
        os.fsync(file.fileno())
        mirror.drain()
        assert mirror.ops[Op.WRITE] > 1000
        assert mirror.capture.status().missed_writes == 0
        assert mirror.differing() == []


def test_discard_write_zeroes_flush_have_slots_of_their_own(disk: str, tmp_path: Path) -> None:
    with (
        Bdr("t0", disk, capacity=4096, sectors=65536) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as device,
    ):
        run("blkdiscard", "-z", bdr.path)
        device.write(b"x" * 65536, 0)
        mirror.drain()
        first = mirror.cursor
        run("blkdiscard", "-o", "8192", "-l", "16384", bdr.path)
        run("blkdiscard", "-z", "-o", "32768", "-l", "8192", bdr.path)
        os.fsync(device.fd)
        status = mirror.capture.status()
        columns = decode(slots_at(mirror.capture.headers, first=first, count=status.head - first))
        seen = list(zip(columns.op.tolist(), columns.sector.tolist(), strict=True))
        assert (Op.FLUSH, 0) in seen
        for op, sector, sectors in ((Op.DISCARD, 16, 32), (Op.WRITE_ZEROES, 64, 16)):
            at = seen.index((op, sector))
            payload = mirror.capture.payload(first + at, 1)
            assert int.from_bytes(payload[:8], "little") == sectors
        mirror.drain()
        assert mirror.differing() == []


def test_device_of_4096_byte_sectors_keeps_them_and_is_captured(
    module: None, tmp_path: Path
) -> None:
    with (
        Loop(tmp_path / "lower", megabytes=32, sector_size=4096) as loop,
        Bdr("t0", loop.path, capacity=1024) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        assert run("blockdev", "--getss", bdr.path).strip() == "4096"
        with mirror.running():
            fio(
                bdr.path, "--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite",
                "--bsrange=4k-512k", "--blockalign=4k", "--size=16M",
            )  # fmt: skip
        mirror.drain()
        if mirror.resumes:
            mirror.resume()
            mirror.repair()
        assert mirror.differing() == []


def test_sparse_4_tib_device_written_beyond_2_tib_keeps_sectors(
    module: None, tmp_path: Path
) -> None:
    tib = 1 << 40
    with (
        Loop(tmp_path / "lower", megabytes=4 << 20) as loop,
        Bdr("t0", loop.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        places = [0, 2 * tib - 4096, 2 * tib, 3 * tib + 512, 4 * tib - 4096]
        for number, place in enumerate(places):
            disk.write(bytes([number + 1]) * 4096, place)
        columns = decode(slots_at(mirror.capture.headers, first=0, count=len(places)))
        assert columns.sector.tolist() == [place // 512 for place in places]
        mirror.drain()
        with mirror.file.open("rb") as replica:
            for number, place in enumerate(places):
                replica.seek(place)
                assert replica.read(4096) == bytes([number + 1]) * 4096
        # And without room, the right bits of the bitmap: 4 TiB have 64 Mi regions.
        bdr.message("overflow")
        disk.write(b"z" * 4096, 3 * tib)
        disk.write(b"z" * 4096, 4 * tib - 4096)
        assert mirror.capture.status().active_regions == 2
        mirror.resume()
        region = 3 * tib // 65536
        assert mirror.capture.read_bitmap(Bitmap.RESYNC, first=region, count=64)[0] == 1
        last = 4 * tib // 65536 - 64
        assert mirror.capture.read_bitmap(Bitmap.RESYNC, first=last, count=64)[-1] == 0x80


def test_large_write_is_split_into_writes_that_fit_an_eighth_of_the_ring(
    loop: Loop, tmp_path: Path
) -> None:
    with (
        Bdr("t0", loop.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        disk.write(os.urandom(64 * 4096), 0)
        columns = decode(slots_at(mirror.capture.headers, first=0, count=64))
        assert columns.last.tolist() == [number % 8 == 7 for number in range(64)]
        mirror.drain()
        assert mirror.capture.status().mode is Mode.STREAM
        assert mirror.differing() == []


def test_payload_across_the_wrap_is_contiguous(loop: Loop, tmp_path: Path) -> None:
    with (
        Bdr("t0", loop.path, capacity=24) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
        Direct(bdr.path) as disk,
    ):
        for lap in range(40):
            data = os.urandom(3 * 4096 if lap % 2 else 2 * 4096)
            disk.write(data, lap * 65536)
            first, count = mirror.cursor, len(data) // 4096
            assert bytes(mirror.capture.payload(first, count)) == data
            mirror.drain()
        assert mirror.differing() == []


def test_two_targets_in_one_table_have_streams_of_their_own(loop: Loop, tmp_path: Path) -> None:
    half = 65536
    with (
        Mapped("half0", f"0 {half} linear {loop.path} 0") as low,
        Mapped("half1", f"0 {half} linear {loop.path} {half}") as high,
        Mapped(
            "both",
            f"0 {half} bdr {low.path} bdr-low 64\n{half} {half} bdr {high.path} bdr-high 64",
        ) as both,
        Direct(both.path) as disk,
    ):
        disk.write(b"l" * 4096, 0)
        disk.write(b"h" * 4096, half * 512 + 8192)
        for name, sector in (("bdr-low", 0), ("bdr-high", 16)):
            handle = Bdr("both", low.path, capacity=64)
            handle.device = f"/dev/{name}"
            with Mirror(handle, tmp_path / name) as mirror:
                columns = decode(slots_at(mirror.capture.headers, first=0, count=1))
                assert columns.sector.tolist() == [sector]
                assert mirror.capture.status().head == 1
