# SPDX-License-Identifier: GPL-2.0-only
"""udev runs in the machine, and BDR's devices are made and removed beside it.

These run before all other tests, which need what the first one asserts.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from bdr.common.errors import DeviceError
from bdr.common.host.attach import Attachment, LinuxHost, attach, detach
from tests.kernel.devices import Loop, Mapped, run, start, wait_for, write

pytestmark = pytest.mark.skipif(
    os.environ.get("BDR_VM_UDEV") != "1", reason="the machine was started without udev"
)
RULES = Path("/lib/udev/rules.d")


def test_udevd_handles_the_event_of_a_device_before_dmsetup_returns(loop: Loop) -> None:
    assert Path("/run/udev/control").exists()
    run("udevadm", "settle", "--timeout=60")
    for rules in ("55-dm.rules", "69-lvm.rules", "64-md-raid-assembly.rules"):
        assert (RULES / rules).exists()
    assert shutil.which("lvm", path="/usr/sbin:/sbin")
    assert shutil.which("mdadm", path="/usr/sbin:/sbin")
    assert "DM_DISABLE_UDEV" not in os.environ
    link = Path("/dev/disk/by-id/dm-name-seen")
    with Mapped("seen", f"0 8 linear {loop.path} 0") as device:
        # dmsetup makes a node where udev makes a link.
        assert Path(device.path).is_symlink()
        assert link.resolve() == Path(device.path).resolve()
    assert not link.is_symlink()
    assert not Path(device.path).is_symlink()


def test_attach_write_and_detach_repeatedly_never_fails_busy(loop: Loop) -> None:
    host = LinuxHost()
    for number in range(5):
        attach(host, Attachment("again", loop.path, "again-ring", 64))
        path = Path("/dev/mapper/again")
        assert path.is_symlink()
        # Its close makes udev open the device once more.
        write(str(path), os.urandom(4096), number * 4096)
        detach(host, "again", force=True)
        assert not path.is_symlink()


class Watched(LinuxHost):
    """Knows when a removal was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.has_refused = threading.Event()

    def run(self, *words: str) -> str:
        """As `LinuxHost`."""
        try:
            return super().run(*words)
        except DeviceError:
            if words[:2] == ("dmsetup", "remove"):
                self.has_refused.set()
            raise


def test_detach_of_a_device_that_is_open_for_a_moment_tries_again(loop: Loop) -> None:
    """udev opens a device likewise, for a shorter time."""
    attach(LinuxHost(), Attachment("seen", loop.path, "seen-ring", 64))
    reader = os.open("/dev/mapper/seen", os.O_RDONLY)
    try:
        host = Watched()
        detaching = start(lambda: detach(host, "seen"))
        wait_for(host.has_refused.is_set, "a removal that was refused")
    finally:
        os.close(reader)
    detaching.join(30)
    assert not Path("/dev/mapper/seen").is_symlink()
