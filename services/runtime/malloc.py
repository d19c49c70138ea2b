# SPDX-License-Identifier: GPL-2.0-only
"""Tunes the C library's malloc for large, short-lived buffers."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_big_buffers(limit_bytes: int) -> None:
    """Makes malloc reuse freed buffers, up to `limit_bytes`, instead of unmapping them.

    libzmq allocates each received frame; by default each one of several MiB is mapped, faulted in
    page by page, and unmapped again, about a tenth of an applier's time. No effect with a C library
    without mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, limit_bytes)
        mallopt(_M_TRIM_THRESHOLD, limit_bytes)
