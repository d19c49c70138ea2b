# SPDX-License-Identifier: GPL-2.0-only
"""Exclusive locks on files and devices, and durable directory entries."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PATIENCE_S = 3.0
_PAUSE_S = 0.05


def lock_exclusively(fd: int) -> bool:
    """Takes an exclusive flock(2) on a descriptor; returns whether it succeeded.

    Retries for a while: a probe may hold a shared lock briefly, as udev does after a disk was
    closed, which is when a killed process is restarted.
    """
    deadline_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_at:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True


def sync_directory(path: str) -> None:
    """Makes the directory entry of a new file durable; raises OSError."""
    descriptor = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
