# SPDX-License-Identifier: GPL-2.0-only
"""Transfers of which the kernel makes only a part at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.storage.transfer import read_all, write_all

CONTENT = bytes(range(100))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    found = os.open(path, os.O_RDWR)
    yield found
    os.close(found)


def test_read_in_parts_fills_the_buffer(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: whole(fd, [to[0][:7]], at))
    buffer = bytearray(90)
    read_all(fd, memoryview(buffer), 5)
    assert bytes(buffer) == CONTENT[5:95]


def test_read_beyond_the_end_is_an_error(fd: int) -> None:
    with pytest.raises(OSError, match=rf"Errno {errno.EIO}\b"):
        read_all(fd, memoryview(bytearray(96)), 5)


def test_write_in_parts_writes_everything(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:7], at))
    write_all(fd, memoryview(b"x" * 30), 50)
    assert os.pread(fd, 100, 0) == CONTENT[:50] + b"x" * 30 + CONTENT[80:]


def test_write_that_makes_no_progress_is_a_full_disk(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match=rf"Errno {errno.ENOSPC}\b"):
        write_all(fd, memoryview(b"x"), 0)
