# SPDX-License-Identifier: GPL-2.0-only
"""Files and devices that one process alone may write, and that outlive a power cut."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PATIENCE_S = 3.0
_PAUSE_S = 0.05


def lock_exclusively(fd: int) -> bool:
    """Takes flock(2) on a descriptor for itself alone; whether it could.

    Waits a little: who only looks holds a shared lock for a moment, as udev does when
    a disk was closed, which is when a killed process is started again.
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
    """Makes the name of a file that was created durable; raises OSError."""
    descriptor = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
