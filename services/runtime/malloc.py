# SPDX-License-Identifier: GPL-2.0-only
"""How this process's C library handles big, short-lived buffers."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_big_buffers(limit_bytes: int) -> None:
    """Has malloc reuse freed buffers, up to `limit_bytes`, not return them to the kernel.

    libzmq allocates each received frame; by default every one of several MiB is
    mapped, faulted in page by page, and unmapped again, which costs about a tenth
    of an applier's time. A C library without mallopt is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, limit_bytes)
        mallopt(_M_TRIM_THRESHOLD, limit_bytes)
