# SPDX-License-Identifier: GPL-2.0-only
"""Whether a device holds nothing that would be lost if it were overwritten."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.storage.target_device import TargetDevice

_PIECE_BYTES = 1 << 20
_PLACES = 64
"""Evenly over the device, besides its first and last MiB: file systems put copies of their
superblock about it."""
_DATA_PIECES_MAX = 64
"""Of a sparse file so many are read, if it has more; they are where its data is."""


def is_blank(device: TargetDevice) -> bool:
    """Whether it reads as zeros wherever it was looked at.

    A file system, a partition table, LVM or a database would be seen; a few bytes in the
    middle of nothing may not be. One that cannot be read is not blank.
    """
    size = device.sectors * SECTOR_BYTES
    buffer = memoryview(mmap.mmap(-1, _PIECE_BYTES))
    for offset in _offsets(device.path, size):
        piece = buffer[: min(_PIECE_BYTES, size - offset)]
        try:
            device.read_into(piece, offset)
        except DeviceError:
            return False  # whatever is there would be lost
        if any(piece[:4096]) or piece.tobytes().strip(b"\0"):
            return False
    return True


def _offsets(path: str, size: int) -> Iterator[int]:
    """Where to look, each a multiple of 4096."""
    last = max(0, size - _PIECE_BYTES) // 4096 * 4096
    places = {0, last, *(last * at // _PLACES // 4096 * 4096 for at in range(_PLACES))}
    yield from sorted(places)
    yield from _data_offsets(path, size)


def _data_offsets(path: str, size: int) -> Iterator[int]:
    """Where a sparse file has data, as far as its file system says so."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = 0
        for _ in range(_DATA_PIECES_MAX):
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            if offset >= size:
                return
            yield offset // 4096 * 4096
            offset = os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EINVAL, errno.ESPIPE):
            raise
    finally:
        os.close(fd)
