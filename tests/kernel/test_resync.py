# SPDX-License-Identifier: GPL-2.0-only
"""Scans on the kernel module: whole processes, and O_DIRECT reads below the target.

The same rounds as `tests/pipeline/test_resync_rounds.py`, fewer of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from deploy.dm_source import dm_source
from deploy.stack import Stack
from tests.kernel.devices import Direct, Mapped, run
from tests.pipeline.forked import ForkedStack
from tests.pipeline.pair import Application
from tests.pipeline.scanned import ScannedPair, fill, survive_rounds

MIB = 1 << 20
SIZE = 24 * MIB
GROWN = 8 * MIB
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


def linear(disk: str, size: int) -> str:
    return f"0 {size // 512} linear {disk} 0"


@pytest.mark.timeout(600)
def test_rounds_of_overflow_and_kills_on_the_module_end_identical(
    directory: Path, disk: str, lower: Mapped
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
        assert pair.stack.log("v-applier").count("event=unknown-position") == 1


def grow(pair: ModulePair, disk: str, lower: Mapped) -> None:
    """Makes the device bigger, with something in the new part."""
    pair.size += GROWN
    with open(disk, "r+b") as file:
        file.seek(SIZE + 12345)
        file.write(b"below the module" * 1000)
        os.fsync(file.fileno())
    lower.reload(linear(disk, pair.size))
    upper = Mapped(NAME, "")
    table = run("dmsetup", "table", NAME).split()
    table[1] = str(pair.size // 512)
    upper.reload(" ".join(table))
