# SPDX-License-Identifier: GPL-2.0-only
"""Ends a process when its parent dies."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
# Before any fork: a child may have to call it between fork and exec.
_libc = ctypes.CDLL(None)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Makes the kernel send this process a signal when its parent dies for any reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
