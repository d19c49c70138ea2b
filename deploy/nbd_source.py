# SPDX-License-Identifier: GPL-2.0-only
"""A captured block device without a kernel module: nbdkit, nbdfuse and a loop device.

file or device <- nbdkit with the plugin `bdr` <- nbdfuse <- /dev/loopN
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.command import SetupError, end, run, wait_for

PLUGIN = Path(__file__).parent.parent / "build" / "nbdkit" / "bdr.so"
_DEFAULT_WRITES = 65536


@dataclass(frozen=True, slots=True)
class NbdSource:
    """A captured device.

    Attributes:
        device: the block device, such as /dev/loop0.
        ring: path of the capture's control socket: the reader's --chardev.
        nbdkit: the server; its death is the device's.
    """

    device: str
    ring: str
    nbdkit: subprocess.Popen[bytes]


@contextlib.contextmanager
def nbd_server(
    backing: str, directory: Path, *, writes: int = _DEFAULT_WRITES
) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Serves `backing` over NBD on a Unix socket.

    Yields:
        The server, the NBD socket's path, and the ring's path.
    """
    if not PLUGIN.exists():
        raise SetupError(f"{PLUGIN}: not built; run `make plugin`")
    socket, ring = directory / "nbd.sock", directory / "ring.sock"
    ready = directory / "nbdkit.pid"
    for left in (ready, socket):  # of an earlier server, which does not remove its socket
        left.unlink(missing_ok=True)
    log = (directory / "nbdkit.log").open("wb")
    server = subprocess.Popen(
        [
            "nbdkit",
            "--foreground",
            "--exit-with-parent",
            f"--unix={socket}",
            f"--pidfile={ready}",  # written when it is listening
            str(PLUGIN),
            f"file={backing}",
            f"ring={ring}",
            f"writes={writes}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C must not end it before its users
    )
    try:
        wait_for(
            lambda: (ready.exists() and ring.exists()) or server.poll() is not None,
            what="nbdkit",
            timeout_s=10,
        )
        if server.poll() is not None:
            said = (directory / "nbdkit.log").read_text().strip()
            raise SetupError(f"nbdkit ended with {server.returncode}: {said}")
        yield server, str(socket), str(ring)
    finally:
        end(server)
        log.close()


@contextlib.contextmanager
def nbd_source(
    backing: str, directory: Path, *, writes: int = _DEFAULT_WRITES
) -> Iterator[NbdSource]:
    """Creates a captured block device over `backing`, and removes it at the end.

    Args:
        backing: file or block device that the writes go to.
        directory: for sockets, mount point and log; must exist.
        writes: capacity of the ring.
    """
    with (
        nbd_server(backing, directory, writes=writes) as (server, socket, ring),
        _fuse_file(socket, directory) as file,
        loop_device(file) as device,
    ):
        yield NbdSource(device, ring, server)


@contextlib.contextmanager
def _fuse_file(socket: str, directory: Path) -> Iterator[str]:
    mount_point = directory / "fuse"
    mount_point.mkdir()
    file = mount_point / "nbd"
    log = (directory / "nbdfuse.log").open("wb")
    fuse = subprocess.Popen(
        ["nbdfuse", str(file), "--unix", socket],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_for(lambda: file.exists() or fuse.poll() is not None, what="nbdfuse", timeout_s=10)
        if fuse.poll() is not None:
            said = (directory / "nbdfuse.log").read_text().strip()
            raise SetupError(f"nbdfuse ended with {fuse.returncode}: {said}")
        yield str(file)
    finally:
        if os.path.ismount(mount_point):
            run("fusermount3", "-u", str(mount_point))
        end(fuse)
        log.close()


@contextlib.contextmanager
def loop_device(
    file: str, *, read_only: bool = False, offset: int = 0, size: int = 0
) -> Iterator[str]:
    """Attaches a loop device, and detaches it at the end.

    Args:
        offset: where it begins in the file, in bytes.
        size: in bytes; 0 for all that is there.
    """
    options = ["--read-only"] if read_only else []
    options += [f"--offset={offset}", f"--sizelimit={size}"]
    device = run("losetup", "--show", "--find", *options, file).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        # The kernel detaches it at the last close.
        wait_for(
            lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists(),
            what=f"detaching {device}",
            timeout_s=10,
        )


@contextlib.contextmanager
def mounted(device: str, mount_point: Path, *options: str) -> Iterator[Path]:
    """Mounts a file system, and unmounts it at the end."""
    mount_point.mkdir(exist_ok=True)
    run("mount", *options, device, str(mount_point))
    try:
        yield mount_point
    finally:
        run("umount", str(mount_point))
