# SPDX-License-Identifier: GPL-2.0-only
"""What these tests need of the host: without it they are skipped, and fail on a CI system."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NOTHING_IS_SKIPPED


def require(condition: bool, what: str) -> None:
    """Skips the test, with the reason, if the host does not have `what`; on CI that fails."""
    if condition:
        return
    reason = f"this host has no {what}; `make test-databases` installs what can be installed"
    if os.environ.get(NOTHING_IS_SKIPPED):
        pytest.fail(reason)
    pytest.skip(reason)


def require_tools(*names: str) -> None:
    """Programs, in PATH or in the directories of root's."""
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        require(found is not None, name)


def require_file_system(kind: str) -> None:
    """A file system of the kernel, perhaps as a module."""
    if not _has(kind):
        subprocess.run(["modprobe", "--quiet", kind], check=False, capture_output=True)
    require(_has(kind), f"file system {kind}")


def require_captured_devices() -> None:
    """What `deploy.nbd_source` is made of."""
    require(os.geteuid() == 0, "root: devices, mounts and namespaces need it")
    for device in ("/dev/fuse", "/dev/loop-control"):
        require(Path(device).exists(), device)
    require_tools("nbdkit", "nbdfuse", "losetup", "nsenter", "ip")


def _has(kind: str) -> bool:
    return kind in Path("/proc/filesystems").read_text().split()
