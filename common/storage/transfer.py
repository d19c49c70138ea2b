# SPDX-License-Identifier: GPL-2.0-only
"""Transfers at an offset of a descriptor, completed when the kernel makes a part of one."""

from __future__ import annotations

import errno
import os


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Writes `data` at `offset`, in bytes; raises OSError, ENOSPC if no more fits."""
    while data:
        written = os.pwrite(fd, data, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]
        offset += written


def read_all(fd: int, buffer: memoryview, offset: int) -> None:
    """Fills `buffer` from `offset` on, in bytes; raises OSError, EIO if the file ends before."""
    while buffer:
        done = os.preadv(fd, [buffer], offset)
        if not done:
            raise OSError(errno.EIO, "it ends before")
        buffer = buffer[done:]
        offset += done
