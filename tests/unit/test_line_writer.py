# SPDX-License-Identifier: GPL-2.0-only
"""Lines go to a descriptor that may block or fail, and their writer goes on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.services.runtime.line_writer import LineWriter

WAIT_S = 30.0


def notice(lost: int) -> bytes:
    return b"lost %d\n" % lost


class Pipe:
    """A pipe that is read when a test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def read_all(self) -> list[bytes]:
        """Every line until the last writer has closed it."""
        os.close(self.writing)
        with open(self.reading, "rb", closefd=False) as file:
            return file.readlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reading, made.writing):
        try:
            os.close(fd)
        except OSError:
            assert fd == made.writing


def stated(lines: list[bytes]) -> int:
    """The sum of the numbers in all notices."""
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"lost "))


def test_lines_arrive_in_order_and_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, notice=notice)
    lines = [b"%d\n" % number for number in range(100)]
    for line in lines:
        writer.put(line)
    writer.close(WAIT_S)
    assert pipe.read_all() == lines
    assert writer.lost == 0


def test_a_pipe_that_is_not_read_loses_lines_and_says_how_many(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, notice=notice, queue_bytes_max=10_000)
    count = 5_000
    for number in range(count):
        writer.put(b"%063d\n" % number)  # 64 bytes: five times what pipe and queue hold
    assert not writer.flush(0.0)
    assert writer.lost > 0
    lines: list[bytes] = []
    received = b""
    while not writer.flush(0.0):
        received += os.read(pipe.reading, 1 << 16)
    writer.put(b"last\n")
    writer.close(WAIT_S)
    lines = received.splitlines(keepends=True) + pipe.read_all()
    assert lines[-1] == b"last\n"
    kept = [line for line in lines if not line.startswith(b"l")]
    assert kept == sorted(kept)
    assert len(kept) + stated(lines) == count
    assert stated(lines) == writer.lost


def test_lost_lines_are_stated_without_another_line(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, notice=notice)
    writer.count_lost()
    writer.put(b"x\n")
    writer.count_lost()
    writer.close(WAIT_S)
    assert stated(pipe.read_all()) == 2


def test_a_full_disk_loses_lines() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = LineWriter(full.fileno(), notice=notice)
        for _ in range(100):
            writer.put(b"line\n")
        assert writer.flush(WAIT_S)
        assert writer.lost == 100
        writer.close(WAIT_S)


def test_a_closed_pipe_loses_lines() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing, notice=notice)
    writer.put(b"line\n")
    assert writer.flush(WAIT_S)
    assert writer.lost == 1
    writer.close(WAIT_S)
    os.close(writing)


def test_a_disk_with_room_again_gets_the_number_and_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line before was written in part: what follows begins a line."""
    room, write = [8], os.write

    def limited(fd: int, data: memoryview) -> int:
        size = min(len(data), room[0])
        if not size:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= size
        return write(fd, data[:size])

    monkeypatch.setattr(os, "write", limited)
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        writer = LineWriter(file.fileno(), notice=notice)
        for line in (b"first\n", b"second\n", b"third\n"):
            writer.put(line)
        assert writer.flush(WAIT_S)
        room[0] = 1 << 20
        writer.put(b"fourth\n")
        writer.close(WAIT_S)
    assert path.read_bytes() == b"first\nse\nlost 2\nfourth\n"
    assert writer.lost == 2


def test_a_pipe_that_another_process_made_non_blocking_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing, notice=notice)
    lines = [b"%099d\n" % number for number in range(2_000)]
    for line in lines:
        writer.put(line)
    received = b""
    while received.count(b"\n") < len(lines):
        received += os.read(pipe.reading, 4096)
    assert re.findall(rb".*\n", received) == lines
    writer.close(WAIT_S)


def test_a_blocked_writer_can_be_left(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, notice=notice, queue_bytes_max=1 << 20)
    for _ in range(2_000):
        writer.put(b"x" * 99 + b"\n")
    writer.close(0.01)
    assert not writer.flush(0.0)
