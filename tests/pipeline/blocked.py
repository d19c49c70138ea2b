# SPDX-License-Identifier: GPL-2.0-only
"""Outputs of processes that block: their pipes are filled, and nothing reads them."""

from __future__ import annotations

import contextlib
import fcntl
import os

_SMALLEST_BYTES = 4096


def fill_output(pid: int, fd: int = 2) -> None:
    """Fills the pipe to which a process writes.

    A pipe that supervisord reads has to be kept from that first.
    """
    writing = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # it holds more already
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _SMALLEST_BYTES)
        for size in (_SMALLEST_BYTES, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"\n" * size)
    finally:
        os.close(writing)
