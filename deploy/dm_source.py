# SPDX-License-Identifier: GPL-2.0-only
"""A captured block device with the kernel module: the target `bdr` over a device."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bdr.common.errors import DeviceError
from bdr.common.host.attach import Attachment, LinuxHost, attach, detach, is_target_known
from deploy.nbd_source import loop_device

_BUILD = Path(__file__).parent.parent / "build"


@dataclass(frozen=True, slots=True)
class DmSource:
    """A captured device.

    Attributes:
        device: the block device, such as /dev/mapper/demo.
        ring: path of the control device: the reader's --chardev.
    """

    device: str
    ring: str


def load_module() -> str | None:
    """Loads the device-mapper target `bdr`.

    Returns:
        None, or why this host cannot.
    """
    host = LinuxHost()
    try:
        if is_target_known(host):
            return None
        try:
            host.run("modprobe", "bdr")
        except DeviceError:
            # A module built for this kernel but not installed is sufficient.
            built = os.environ.get("BDR_MODULE", str(_BUILD / "module" / "bdr.ko"))
            if not os.path.exists(built):
                raise
            host.run("insmod", built)
        return None if is_target_known(host) else "device-mapper has no target bdr"
    except DeviceError as error:
        return str(error).splitlines()[0]


@contextlib.contextmanager
def dm_source(backing: str, *, name: str, writes: int) -> Iterator[DmSource]:
    """Creates a captured block device over `backing`, and removes it at the end.

    Args:
        backing: block device, or a file that becomes one through a loop device.
        name: of the new device under /dev/mapper.
        writes: capacity of the ring.
    """
    with contextlib.ExitStack() as stack:
        if not stat.S_ISBLK(os.stat(backing).st_mode):
            backing = stack.enter_context(loop_device(backing))
        host = LinuxHost()
        chardev = f"{name}-ring"
        attach(host, Attachment(name=name, underlying=backing, chardev=chardev, capacity=writes))
        stack.callback(detach, host, name, force=True)
        yield DmSource(f"/dev/mapper/{name}", f"/dev/{chardev}")
