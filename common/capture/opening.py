# SPDX-License-Identifier: GPL-2.0-only
"""Opens the capture at a path; the file type selects the implementation.

=================  ======================  =======================================
path               implementation          where the writes come from
=================  ======================  =======================================
character device   `capture.dm`            the device-mapper target `bdr`
socket             `capture.nbd`           the nbdkit plugin `bdr`
regular file       `capture.memory`        this very host's tests and benchmarks
=================  ======================  =======================================
"""

from __future__ import annotations

import os
import stat

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.dm import DmCapture
from bdr.common.capture.nbd import NbdCapture
from bdr.common.errors import CaptureError


def open_capture(path: str, role: Role) -> Capture:
    """Opens the capture at `path`.

    Raises:
        CaptureError: the path does not exist, is not a capture, or is of another ABI version, or
            the consumer role is taken.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise CaptureError(
            f"capture {path}: {error.strerror}; wanted the control device of a `bdr` target, or "
            "the ring= socket of the nbdkit plugin: is the device attached?"
        ) from error
    if stat.S_ISCHR(mode):
        return DmCapture(path, role)
    if stat.S_ISSOCK(mode):
        return NbdCapture(path, role)
    if stat.S_ISREG(mode):
        # Imported on demand: numpy is a third of a process's memory.
        from bdr.common.capture.memory import MemoryCapture  # noqa: PLC0415

        return MemoryCapture.attach(path)
    raise CaptureError(
        f"capture {path}: found neither a character device nor a socket; wanted the control "
        "device of a `bdr` target, or the ring= socket of the nbdkit plugin"
    )
