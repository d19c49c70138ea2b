# SPDX-License-Identifier: GPL-2.0-only
"""Mounts of a test's own: no other process sees them, and they are gone when the test has ended.

A process that makes a mount namespace copies every mount of its parent's: a device that is
mounted here would be busy as long as some unrelated process runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from deploy.command import run

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """The calling thread, and what it starts, are in a mount namespace of their own."""
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    directory = os.getcwd()
    try:
        _check(_libc.unshare(_CLONE_NEWNS))
        try:
            run("mount", "--make-rprivate", "/")
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNS))
            os.chdir(directory)  # setns moves to the root
    finally:
        os.close(before)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
