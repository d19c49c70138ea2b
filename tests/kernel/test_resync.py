# SPDX-License-Identifier: GPL-2.0-only
"""Scans on the kernel module: whole processes, and O_DIRECT reads below the target.

The same rounds as `tests/pipeline/test_resync_rounds.py`, fewer of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from deploy.dm_source import dm_source
from deploy.stack import Stack
from tests.kernel.devices import Direct, Mapped, run, write
from tests.pipeline.forked import ForkedStack
from tests.pipeline.pair import Application
from tests.pipeline.scanned import ScannedPair, fill, survive_rounds

MIB = 1 << 20
SIZE = 24 * MIB
GROWN = 8 * MIB
MOVED = 64 * MIB
"""Where on the machine's disk another device for the source begins."""
ROUNDS = 4
NAME = "resync"
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F


class Disk:
    """An application on a block device, without a cache of its own."""

    def __init__(self, path: str) -> None:
        self._direct = Direct(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._direct.fd)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        self._direct.write(data, offset)
        if flags:
            self.flush()

    def flush(self) -> None:
        os.fsync(self._direct.fd)

    def trim(self, offset: int, length: int) -> None:
        fcntl.ioctl(self._direct.fd, _BLKDISCARD, struct.pack("QQ", offset, length))

    def zero(self, offset: int, length: int) -> None:
        fcntl.ioctl(self._direct.fd, _BLKZEROOUT, struct.pack("QQ", offset, length))


class ModulePair(ScannedPair):
    """A pair whose source is a block device behind the module."""

    stack: ForkedStack

    def __init__(self, directory: Path, *, source: Path, size: int, target_size: int) -> None:
        super().__init__(
            directory, source=source, size=size, target_size=target_size, writes=512, senders=1
        )

    @contextlib.contextmanager
    def captured(self) -> Iterator[tuple[str, Application]]:
        with (
            dm_source(str(self.source), name=NAME, writes=self.writes) as made,
            Disk(made.device) as disk,
        ):
            yield made.ring, disk

    def make_stack(self, directory: Path) -> Stack:
        return ForkedStack(directory)

    def is_identical(self) -> bool:
        # The module's writes pass by the page cache of the device below.
        run("blockdev", "--flushbufs", self.source)
        return super().is_identical()


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="bdr-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lower(disk: str) -> Iterator[Mapped]:
    """A small part of the machine's disk."""
    with Mapped("lower", linear(disk, SIZE)) as device:
        yield device


@pytest.fixture
def other(disk: str) -> Iterator[Mapped]:
    """Another part of it."""
    with Mapped("other", linear(disk, SIZE + GROWN, offset=MOVED)) as device:
        yield device


def linear(disk: str, size: int, *, offset: int = 0) -> str:
    return f"0 {size // 512} linear {disk} {offset // 512}"


def is_mostly_asleep(pid: int) -> bool:
    """Whether a process waits for something at most of 50 looks."""
    looks = []
    for _ in range(50):
        looks.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        time.sleep(0.02)
    return looks.count("S") > len(looks) / 2


def test_reader_sleeps_while_slots_may_not_go(directory: Path, lower: Mapped) -> None:
    """The control device stays readable as long as the slot that is waited for is there."""
    with ModulePair(directory, source=Path(lower.path), size=SIZE, target_size=SIZE) as pair:
        pair.start()
        pair.wait_consistent()
        pair.stack.stop("v-applier")
        pair.client.write(0, b"w" * 8192)
        assert pair.status().unpublished == pair.status().tail + 2
        assert is_mostly_asleep(pair.stack.pid("v-reader"))
        pair.stack.start("v-applier")
        pair.wait_consistent()
        assert pair.becomes_identical()


@pytest.mark.timeout(600)
def test_rounds_of_overflow_and_kills_on_the_module_end_identical(
    directory: Path, disk: str, lower: Mapped, other: Mapped
) -> None:
    with ModulePair(
        directory, source=Path(lower.path), size=SIZE, target_size=SIZE + GROWN
    ) as pair:
        fill(pair, 24, extents=20)
        pair.start()
        pair.wait_consistent()
        assert pair.becomes_identical()
        survive_rounds(pair, random.Random(1), rounds=ROUNDS)
        grow(pair, disk, lower)
        pair.scribble(random.Random(2), 50)
        pair.wait_consistent()
        assert pair.becomes_identical()
        assert "error=StaleCaptureError" in pair.stack.log("v-reader")
        code, said = pair.stack.run_once(pair.bdr_words("verify"), timeout_s=120)
        assert code == 0, said
        assert len(unknown_streams(pair)) == 1
        move(pair, lower, other)
        pair.scribble(random.Random(3), 50)
        pair.wait_consistent()
        assert pair.becomes_identical()
        assert "error=StaleCaptureError" in pair.stack.log("v-scanner-1")
        assert len(unknown_streams(pair)) == 2


def grow(pair: ModulePair, disk: str, lower: Mapped) -> None:
    """Makes the device bigger, with something in the new part."""
    pair.size += GROWN
    with open(disk, "r+b") as file:
        file.seek(SIZE + 12345)
        file.write(b"below the module" * 1000)
        os.fsync(file.fileno())
    lower.reload(linear(disk, pair.size))
    reload(lambda table: [table[0], str(pair.size // 512), *table[2:]])


def unknown_streams(pair: ModulePair) -> set[str]:
    """Of the captures whose source greeted while its replica did not follow them yet."""
    log = pair.stack.log("v-applier")
    return set(re.findall(r"event=unknown-position stream=(\w+)", log))


def move(pair: ModulePair, lower: Mapped, other: Mapped) -> None:
    """Puts another device below, as after a migration; a few of its blocks differ."""
    run("dd", f"if={lower.path}", f"of={other.path}", "bs=1M", "iflag=direct", "oflag=direct")
    write(other.path, os.urandom(16384), 5 * MIB)
    reload(lambda table: [*table[:3], other.path, *table[4:]])
    pair.source = Path(other.path)


def reload(change: Callable[[list[str]], list[str]]) -> None:
    """Changes the table of the device that is captured."""
    Mapped(NAME, "").reload(" ".join(change(run("dmsetup", "table", NAME).split())))
