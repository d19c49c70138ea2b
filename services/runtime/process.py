# SPDX-License-Identifier: GPL-2.0-only
"""A process and its surroundings: its parent, its standard streams."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

SUPERVISORD = "BDR_SUPERVISORD"
"""Variable with the process id of supervisord, which it sets for its children."""

OUTPUT_S = 1.0
_PR_SET_PDEATHSIG = 1
# Before any fork: a child may have to call it between fork and exec.
_libc = ctypes.CDLL(None)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Makes the kernel send this process a signal when its parent dies for any reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)


def open_standard_streams() -> None:
    """Opens /dev/null in place of standard streams that are closed.

    Otherwise the next file that is opened, such as a device, gets the descriptor of standard error,
    and log lines are written to it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest one that is free
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def takes_output(fd: int, timeout_s: float = OUTPUT_S) -> bool:
    """Whether a line can be written to a descriptor without blocking."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poller.poll(timeout_s * 1000))
