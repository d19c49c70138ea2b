# SPDX-License-Identifier: GPL-2.0-only
"""dmsetup's verbs, module unload and table reloads, also while the device is in use."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.dm import DmCapture
from bdr.common.errors import CaptureGoneError, StaleCaptureError
from bdr.common.ring.layout import Mode
from tests.kernel.conftest import MODULE
from tests.kernel.devices import (
    Bdr,
    Direct,
    Loop,
    Mapped,
    fails,
    resume_mapped,
    run,
    sectors_of,
    start,
    wait_for,
    write,
)
from tests.kernel.mirror import Mirror
from tests.kernel.test_overflow import load
from tests.support.refusals import refused


def memory_figures() -> dict[str, int]:
    """What a leak would change: memory of vmap, and unreclaimable slab, in KiB."""
    # Only slabs: an emulated machine that has to read every program again needs minutes for it.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    figures = {name: int(fields[name].split()[0]) for name in ("VmallocUsed", "SUnreclaim")}
    mapped = Path("/proc/vmallocinfo").read_text().splitlines()
    figures["bdr areas"] = sum("[bdr]" in line for line in mapped)
    return figures


def test_table_and_status_say_what_was_asked_for(loop: Loop) -> None:
    options = "6 region_sectors 256 stable hint discard pass"
    with Bdr("t0", loop.path, capacity=128, options=options) as bdr:
        table = run("dmsetup", "table", bdr.name).split()
        assert table[2:3] + table[4:] == ["bdr", bdr.chardev, "128", *options.split()]
        status = bdr.status()
        assert (status.mode, status.used, status.gap) == ("STREAM", "0/128", "-")
        assert len(status.stream) == 32
        assert oct(os.stat(bdr.device).st_mode & 0o777) == "0o600"


WRONG_TABLES = [
    ("", "Need: device"),
    ("{lower}", "Need: device"),
    ("{lower} name", "Need: device"),
    ("/nowhere name 64", "Cannot open the underlying device"),
    ("{lower} name 7", "Buffer size in writes out of range"),
    ("{lower} name 268435457", "Buffer size in writes out of range"),
    ("{lower} name -1", "Buffer size in writes out of range"),
    ("{lower} name 64k", "Buffer size in writes out of range"),
    ("{lower} name 268435456", "Buffer is larger than half of the memory"),
    ("{lower} ../x 64", "Control device name"),
    ("{lower} a/b 64", "Control device name"),
    ("{lower} %s%n 64", "Control device name"),
    ("{lower} .. 64", "Control device name"),
    (f"{{lower}} {'n' * 64} 64", "Control device name"),
    ("{lower} name 64 1", "Invalid number of options"),
    ("{lower} name 64 2 region_sectors", "Invalid number of options"),
    ("{lower} name 64 2 region_sectors 100", "region_sectors is not a power of two"),
    ("{lower} name 64 2 region_sectors 4", "region_sectors out of range"),
    ("{lower} name 64 2 stable perhaps", "stable must be copy or hint"),
    ("{lower} name 64 2 discard perhaps", "discard must be zero or pass"),
    ("{lower} name 64 2 colour blue", "Unknown option"),
    ("{lower} name 64 1 stable", "An option has no value"),
    ("{lower} name 64 0 more", "Invalid number of options"),
]


def test_wrong_table_is_refused_with_a_reason(loop: Loop) -> None:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for arguments, message in WRONG_TABLES:
            os.lseek(log, 0, os.SEEK_END)
            table = f"0 131072 bdr {arguments.format(lower=loop.path)}"
            assert fails("dmsetup", "create", "wrong", "--table", table)
            assert message in os.read(log, 8192).decode(), arguments
            assert not Path("/dev/name").exists()
    finally:
        os.close(log)


def test_target_longer_than_the_device_is_refused(loop: Loop) -> None:
    assert fails("dmsetup", "create", "wrong", "--table", f"0 131080 bdr {loop.path} name 64")


def test_name_in_use_by_another_device_is_refused_and_changes_nothing(
    bdr: Bdr, loop: Loop, tmp_path: Path
) -> None:
    with Loop(tmp_path / "other", megabytes=8) as other:
        table = f"0 16384 bdr {other.path} {bdr.chardev} 64"
        assert fails("dmsetup", "create", "thief", "--table", table)
    with Mirror(bdr, tmp_path / "replica") as mirror, Direct(bdr.path) as disk:
        disk.write(b"x" * 4096, 0)
        mirror.drain()
        assert mirror.differing() == []


def test_suspend_resume_status_table_message_under_load(loop: Loop, tmp_path: Path) -> None:
    with Bdr("t0", loop.path, capacity=8192) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with mirror.running(), load(bdr.path):
            for number in range(8):
                run("dmsetup", "suspend", *(["--noflush"] if number % 2 else []), bdr.name)
                status = bdr.status()
                assert status.unpublished == status.head
                assert status.unlogged == 0
                resume_mapped(bdr.name)
                run("dmsetup", "table", bdr.name)
                bdr.message("resync" if number == 3 else "overflow")
            assert fails("dmsetup", "message", bdr.name, "0", "nonsense")
            assert fails("dmsetup", "message", bdr.name, "0", "overflow", "now")
        mirror.drain()
        mirror.resume()
        assert mirror.bits(Bitmap.RESYNC).all()
        mirror.repair()
        assert mirror.differing() == []


def test_remove_while_open_mapped_and_polled_gives_enodev_and_hang_up(loop: Loop) -> None:
    with Bdr("t0", loop.path, capacity=64) as bdr, Direct(bdr.path) as disk:
        disk.write(b"k" * 4096, 0)
        capture = DmCapture(bdr.device, Role.CONSUMER)
        late = os.open(bdr.device, os.O_RDONLY)
        poll = select.poll()
        poll.register(capture.fileno(), select.POLLIN)
        capture.status()
        capture.release(tail=1, cursor=1)
        events: list[tuple[int, int]] = []
        sleeper = threading.Thread(target=lambda: events.extend(poll.poll(20000)))
        sleeper.start()
    sleeper.join(20)
    assert events
    assert events[0][1] & select.POLLHUP
    assert not Path(bdr.device).exists()
    for request in (capture.status, capture.resume, lambda: capture.release(tail=1, cursor=1)):
        with pytest.raises(CaptureGoneError):
            request()
    with pytest.raises(CaptureGoneError):
        capture.mark_bitmap(first=0, count=1)
    # What is mapped stays, also pages not yet touched.
    assert bytes(capture.payload(0, 1)) == b"k" * 4096
    assert bytes(capture.payload(63, 1)) == bytes(4096)
    # The module cannot go as long as a file or a mapping has it.
    assert fails("rmmod", "bdr")
    os.close(late)
    capture.close()
    run("rmmod", "bdr")
    run("insmod", MODULE)


def test_module_unload_refused_while_a_device_exists(bdr: Bdr) -> None:
    assert fails("rmmod", "bdr")
    assert bdr.status().mode == "STREAM"


def test_device_grows_while_a_reader_runs_new_regions_dirty_stream_goes_on(
    loop: Loop, tmp_path: Path
) -> None:
    old_regions, new_regions = 64 * 16, 96 * 16
    with Bdr("t0", loop.path, capacity=4096) as bdr, Mirror(bdr, tmp_path / "replica") as mirror:
        with Direct(bdr.path) as disk:
            disk.write(b"1" * 4096, 0)
        mirror.drain()
        before = bdr.status()
        with mirror.running(), load(bdr.path):
            wait_for(lambda: bdr.status().head > before.head + 100, "load")
            loop.grow(96)
            bdr.reload(bdr.line(96 * 2048))
            during = bdr.status()
            wait_for(lambda: bdr.status().head > during.head + 100, "load after the reload")
        mirror.drain()
        after = bdr.status()
        assert after.stream == before.stream
        assert after.head > during.head > before.head
        assert mirror.capture.status().device_sectors == 96 * 2048
        marked = mirror.bits(Bitmap.ACTIVE) | mirror.bits(Bitmap.RESYNC)
        assert set(range(old_regions, new_regions)) <= set(np.flatnonzero(marked).tolist())
        with Direct(bdr.path) as disk:
            disk.write(b"2" * 4096, 95 << 20)
        mirror.drain()
        os.truncate(mirror.file, 96 << 20)
        mirror.resume()
        mirror.repair()
        assert mirror.differing() == []
        # And smaller again.
        bdr.reload(bdr.line(32 * 2048))
        status = mirror.capture.status()
        assert status.device_sectors == 32 * 2048
        assert len(mirror.bits(Bitmap.RESYNC)) == 32 * 16
        with Direct(bdr.path) as disk:
            disk.write(b"3" * 4096, (32 << 20) - 4096)
        mirror.drain()
        assert mirror.differing() == []


def test_reload_onto_another_device_begins_another_stream(bdr: Bdr, tmp_path: Path) -> None:
    """No slot of it before the consumer has looked, and no scan may clear its marks."""
    with Loop(tmp_path / "other", megabytes=64) as other, Mirror(bdr, tmp_path / "r") as mirror:
        write(bdr.path, b"a" * 4096, 0)
        first = mirror.capture.status()
        assert first.stream == mirror.capture.info.stream
        bdr.reload(bdr.line(131072, lower=other.path))
        write(bdr.path, b"b" * 4096, 0)
        second = mirror.capture.status()
        assert second.stream != first.stream
        assert (second.mode, second.head, second.last_gap) == (Mode.OVERFLOW, 1, 1)
        mirror.capture.clear_bitmap(first=0, count=1024)
        assert mirror.bits(Bitmap.ACTIVE).all()
        observer = DmCapture(bdr.device, Role.OBSERVER)
        assert observer.info.underlying == other.path
        assert observer.info.stream == second.stream
        observer.close()
        # The same device again is another stream again.
        bdr.reload(bdr.line(131072))
        assert mirror.capture.status().stream not in (first.stream, second.stream)


def test_counters_of_a_stream_are_not_those_of_the_next(bdr: Bdr, tmp_path: Path) -> None:
    """A consumer that has not looked since would set the new stream's to the old one's."""
    with Loop(tmp_path / "other", megabytes=64) as other:
        capture = DmCapture(bdr.device, Role.CONSUMER)
        capture.release(tail=0, cursor=0, acknowledged=2, counted=4)
        bdr.reload(bdr.line(131072))
        capture.release(tail=0, cursor=0, acknowledged=3, counted=4)
        bdr.reload(bdr.line(131072, lower=other.path))
        with pytest.raises(StaleCaptureError):
            capture.release(tail=0, cursor=0, acknowledged=4, counted=4)
        observer = DmCapture(bdr.device, Role.OBSERVER)
        observer.status()
        with pytest.raises(StaleCaptureError):
            capture.release(tail=0, cursor=0, acknowledged=4, counted=4)
        status = capture.status()
        assert (status.acknowledged, status.counted) == (0, 0)
        capture.release(tail=0, cursor=0, acknowledged=1, counted=1)
        status = observer.status()
        assert (status.acknowledged, status.counted) == (1, 1)
        observer.close()
        capture.close()
        bdr.reload(bdr.line(131072))  # the other device is taken away


def test_table_without_the_target_in_between_begins_another_stream(
    disk: str, tmp_path: Path
) -> None:
    """Of the next table the context is the last one's, and knows nothing of what went by."""
    with (
        Mapped("lower", f"0 65536 linear {disk} 0") as lower,
        Bdr("t0", lower.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        first = mirror.capture.status()
        with lower.suspended():
            writer = start(lambda: write(bdr.path, b"1" * 4096, 0))
            wait_for(lambda: bdr.status().head == 1, "a write in flight")
            run("dmsetup", "load", bdr.name, "--table", f"0 65536 linear {lower.path} 0")
            resume = subprocess.Popen(["dmsetup", "resume", bdr.name])
            stack = Path(f"/proc/{resume.pid}/stack")
            wait_for(lambda: "dm_suspend" in stack.read_text(), "a resume that waits for the write")
            run("dmsetup", "load", bdr.name, "--table", bdr.table)
        writer.join()
        assert resume.wait(30) == 0
        for role in Role:
            assert refused(partial(DmCapture, bdr.device, role)) == errno.EAGAIN
        write(bdr.path, b"2" * 4096, 0)
        resume_mapped(bdr.name)
        second = mirror.capture.status()
        assert second.stream != first.stream
        assert (second.mode, second.head) == (Mode.OVERFLOW, 1)
        assert mirror.bits(Bitmap.ACTIVE).all()


def test_name_twice_in_one_table_is_refused(loop: Loop) -> None:
    """Both would write into one bitmap, which has the size of one of them."""
    lines = f"0 65536 bdr {loop.path} bdr-twice 64\n65536 1024 bdr {loop.path} bdr-twice 64"
    assert fails("dmsetup", "create", "twice", "--table", lines)
    assert not Path("/dev/bdr-twice").exists()


def test_control_device_of_a_table_that_is_not_live_refuses_to_be_opened(
    loop: Loop, tmp_path: Path
) -> None:
    """What is written before goes by it, and nothing would say so."""
    with Mapped("plain", f"0 131072 linear {loop.path} 0") as plain:
        bdr = Bdr("plain", loop.path, capacity=64)
        run("dmsetup", "load", plain.name, "--table", bdr.table)
        assert Path(bdr.device).exists()
        for role in Role:
            assert refused(partial(DmCapture, bdr.device, role)) == errno.EAGAIN
        run("dmsetup", "suspend", plain.name)
        resume_mapped(plain.name)
        with Mirror(bdr, tmp_path / "replica") as mirror:
            write(plain.path, b"x" * 4096, 0)
            mirror.drain()
            assert mirror.capture.status().head == 1


def test_table_loaded_and_cleared_or_refused_leaves_the_live_one(bdr: Bdr, tmp_path: Path) -> None:
    with Mirror(bdr, tmp_path / "replica") as mirror, Direct(bdr.path) as disk:
        stream = bdr.status().stream
        for _ in range(3):
            run("dmsetup", "load", bdr.name, "--table", bdr.line(65536))
            run("dmsetup", "clear", bdr.name)
        assert mirror.capture.status().device_sectors == 131072
        for table in (
            bdr.line(131072).replace(" 4096", " 2048"),
            f"{bdr.line(131072)} 2 region_sectors 8",
            bdr.line(131073),
        ):
            assert fails("dmsetup", "load", bdr.name, "--table", table)
        disk.write(b"x" * 4096, 0)
        mirror.drain()
        assert bdr.status().stream == stream
        assert mirror.differing() == []
        # The same size again, several times: nothing becomes dirty.
        for _ in range(3):
            bdr.reload(bdr.line(131072))
        disk.write(b"y" * 4096, 4096)
        mirror.drain()
        assert not mirror.bits(Bitmap.RESYNC).any()
        assert mirror.differing() == []


def test_five_targets_at_once_do_not_mix(module: None, tmp_path: Path) -> None:
    loops = [Loop(tmp_path / f"lower{n}", megabytes=16).__enter__() for n in range(5)]
    targets = [Bdr(f"m{n}", loop.path, capacity=2048).__enter__() for n, loop in enumerate(loops)]
    mirrors = [Mirror(bdr, tmp_path / f"replica{n}") for n, bdr in enumerate(targets)]
    try:
        assert len({mirror.capture.info.stream for mirror in mirrors}) == 5
        jobs = []
        for number, bdr in enumerate(targets):
            jobs += [f"--name=j{number}", f"--filename={bdr.path}", "--size=8M", "--bs=16k",
                     "--rw=randwrite", "--ioengine=libaio", "--iodepth=4", "--direct=1",
                     f"--randseed={number}"]  # fmt: skip
        run("fio", "--minimal", *jobs)
        for mirror in mirrors:
            mirror.drain()
            if mirror.capture.status().mode is Mode.OVERFLOW:
                mirror.resume()
                mirror.repair()
            assert mirror.differing() == []
    finally:
        for mirror in mirrors:
            mirror.close()
        for bdr in targets:
            bdr.__exit__()
        for loop in loops:
            loop.__exit__()


@pytest.mark.timeout(600)
def test_attach_and_detach_100_times_leaks_nothing(loop: Loop) -> None:
    target = Bdr("t0", loop.path, capacity=256)
    verbs = f"dmsetup create t0 --table '{target.table}' && dmsetup remove --retry t0"

    def cycles(count: int) -> None:
        for _ in range(count // 10):
            run("sh", "-ec", f"for i in 1 2 3 4 5 6 7 8 9; do {verbs}; done")
            with target, Direct(target.path) as disk:
                capture = DmCapture(target.device, Role.CONSUMER)
                disk.write(b"x" * 4096, 0)
                assert bytes(capture.payload(0, 1)) == b"x" * 4096
                capture.close()

    cycles(10)
    before = memory_figures()
    cycles(100)
    after = memory_figures()
    print(f"before {before}, after {after}")
    assert after["bdr areas"] == before["bdr areas"] == 0
    # One leaked ring would be 1 MiB, one leaked context 2 KiB: 100 of them show.
    assert after["VmallocUsed"] - before["VmallocUsed"] < 512
    assert after["SUnreclaim"] - before["SUnreclaim"] < 4096


def test_second_consumer_is_refused_and_the_first_may_come_back(bdr: Bdr) -> None:
    first = DmCapture(bdr.device, Role.CONSUMER)
    assert refused(lambda: DmCapture(bdr.device, Role.CONSUMER)) == errno.EBUSY
    observer = DmCapture(bdr.device, Role.OBSERVER)
    assert refused(observer.resume) == errno.EPERM
    assert sectors_of(bdr.path) == observer.info.device_sectors
    observer.close()
    first.close()
    DmCapture(bdr.device, Role.CONSUMER).close()
