# SPDX-License-Identifier: GPL-2.0-only
"""Files that are replaced as careful programs do it: write, fsync, rename, fsync of the directory.

A client has a few files, and replaces one after the other; each has the number of its
transaction and a checksum. So what a crash leaves says which transaction was the last one, and
which content every file must have.
"""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

FILES = 64
FILE_BYTES_MAX = 20000
_DIGITS = 8


class FileClient:
    """Replaces its files, in a directory of its own."""

    def __init__(self, top: Path, client: int) -> None:
        self._directory = _directory(top, client)
        self._directory.mkdir(parents=True)
        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        self._rng = random.Random(client)
        self._new = self._directory / "new"
        self._number = 0

    def prepare(self, number: int) -> None:
        self._number = number
        body = b"%d\n" % number + self._rng.randbytes(self._rng.randrange(FILE_BYTES_MAX))
        with self._new.open("wb") as file:
            file.write(_checksum(body) + body)
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        self._new.rename(self._directory / str(self._number % FILES))
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def newest_file(top: Path, client: int) -> int:
    """The last transaction of a client.

    Raises:
        AssertionError: a file is torn, or has another content than the last transaction left.
    """
    numbers = {
        int(path.name): _number_of(path)
        for path in _directory(top, client).iterdir()
        if path.name != "new"
    }
    newest = max(numbers.values(), default=0)
    wanted = {number % FILES: number for number in range(max(1, newest - FILES + 1), newest + 1)}
    assert numbers == wanted, f"client {client}: {numbers}"
    return newest


def _directory(top: Path, client: int) -> Path:
    return top / f"client-{client}"


def _checksum(body: bytes) -> bytes:
    return b"%0*x" % (_DIGITS, zlib.crc32(body))


def _number_of(path: Path) -> int:
    text = path.read_bytes()
    checksum, body = text[:_DIGITS], text[_DIGITS:]
    assert body, f"{path}: empty"
    assert checksum == _checksum(body), f"{path}: torn"
    return int(body.split(b"\n", 1)[0])
