# SPDX-License-Identifier: GPL-2.0-only
"""What a disk calls itself: a name that outlives a reboot and goes with the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SYS = Path("/sys/dev/block")
_IDENTITIES = ("dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial")
"""Attributes of a block device, the first of which counts. All outlive a reboot."""
LENGTH_MAX_BYTES = 200
"""It is part of records of a limited size."""


def identity_of(path: str) -> str:
    """Of the device at this path; empty for a file, or a disk that has no such name."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return identity_of_number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else ""


def identity_of_number(number: int) -> str:
    """Of the block device with this device number; empty where it has no such name."""
    place = (_SYS / f"{os.major(number)}:{os.minor(number)}").resolve()
    part = ""
    if (place / "partition").exists():
        part = f", partition {_attribute(place / 'partition')}"
        place = place.parent
    for name in _IDENTITIES:
        found = _attribute(place / name)
        if found:
            # Sysfs returns what the disk says, of any length and encoding.
            room = LENGTH_MAX_BYTES - len(part)
            name_of_disk = f"{Path(name).name} {found}".encode()[:room].decode(errors="ignore")
            return f"{name_of_disk}{part}"
    return ""


def _attribute(path: Path) -> str:
    try:
        return " ".join(path.read_text(errors="replace").split())
    except OSError:
        return ""
