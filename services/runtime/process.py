# SPDX-License-Identifier: GPL-2.0-only
"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
# Before any fork: a child may have to call it between fork and exec.
_libc = ctypes.CDLL(None)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Has the kernel send this process a signal when its parent dies, however that does."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
