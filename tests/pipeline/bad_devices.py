# SPDX-License-Identifier: GPL-2.0-only
"""Devices that fail: files seen through nbdkit and nbdfuse, which add the errors."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.command import end, run, wait_for
from tests.pipeline.pair import DEADLINE_S


@contextlib.contextmanager
def seen_through(server: Sequence[str], directory: Path) -> Iterator[str]:
    """A file that is what an nbdkit serves.

    Args:
        server: nbdkit's options, filters, plugin and parameters.
        directory: for socket and mount point; is made.
    """
    directory.mkdir()
    socket, mount = directory / "nbd.sock", directory / "mount"
    mount.mkdir()
    with contextlib.ExitStack() as stack:
        for words, awaited in (
            (["nbdkit", "--foreground", f"--unix={socket}", *server], socket),
            (["nbdfuse", str(mount / "nbd"), "--unix", str(socket)], mount / "nbd"),
        ):
            process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
            stack.callback(end, process)
            wait_for(awaited.exists, what=str(awaited), timeout_s=DEADLINE_S)
        stack.callback(run, "fusermount3", "-u", "-z", str(mount))
        yield str(mount / "nbd")


@contextlib.contextmanager
def half_dead(path: Path, directory: Path, *, sectors: range) -> Iterator[str]:
    """A view of a file of which these sectors cannot be read."""
    begin, end_ = sectors.start * 512, sectors.stop * 512
    fails = f"[ $4 -lt {end_} ] && [ $(( $4 + $3 )) -gt {begin} ] && echo EIO >&2 && exit 1"
    read = f"dd if={path} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"
    words = ["eval", f"get_size=stat -c %s {path}", f"pread={fails}; {read}"]
    with seen_through(words, directory) as view:
        yield view


@contextlib.contextmanager
def failing(path: Path, directory: Path, *, request: str) -> Iterator[tuple[str, Path]]:
    """A view of a file, and a path: while something is there, each such request fails.

    Args:
        request: pread, pwrite, ... as nbdkit's filter `error` names them.
    """
    broken = directory.with_name(f"{directory.name}-is-broken")
    words = ["--filter=error", "file", str(path)]
    words += [f"error-{request}-rate=100%", f"error-{request}-file={broken}"]
    with seen_through(words, directory) as view:
        yield view, broken
