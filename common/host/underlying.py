# SPDX-License-Identifier: GPL-2.0-only
"""The underlying device of a capture: what else uses it, and whether it keeps its content.

A write that does not come through the capture is not replicated, and nothing marks it.
device-mapper claims a device for all of its targets alike, so the capture's claim does
not keep LVM from activating the volumes whose label is on the same device.
"""

from __future__ import annotations

from typing import Protocol

from bdr.common.errors import DeviceError


class Looking(Protocol):
    """What these checks need of a host."""

    def run(self, *words: str) -> str:
        """Runs a command as root; raises `DeviceError` with what it said if it fails."""
        ...

    def exists(self, path: str) -> bool: ...

    def read(self, path: str) -> str:
        """Content of a file of /proc or /sys, "" if it is not there."""
        ...

    def names(self, path: str) -> list[str]:
        """Entries of a directory, none if it is not there."""
        ...

    def writers(self, number: str) -> list[str]:
        """Processes that have the block device MAJOR:MINOR open for writing."""
        ...


def family(host: Looking, number: str) -> list[str]:
    """A device and its partitions, by MAJOR:MINOR."""
    base = f"/sys/dev/block/{number}"
    return [
        number,
        *(
            host.read(f"{base}/{entry}/dev").strip()
            for entry in host.names(base)
            if host.exists(f"{base}/{entry}/partition")
        ),
    ]


def users(host: Looking, number: str, *, besides: str | None = None) -> list[str]:
    """What may write to a device or its partitions: devices that hold it, and processes.

    Args:
        number: its MAJOR:MINOR.
        besides: name of the mapped device that is to have it.
    """
    found = []
    for member in family(host, number):
        for holder in host.names(f"/sys/dev/block/{member}/holders"):
            name = host.read(f"/sys/class/block/{holder}/dm/name").strip()
            if not name:
                found.append(holder)
            elif name != besides:
                is_lvm = host.read(f"/sys/class/block/{holder}/dm/uuid").startswith("LVM-")
                found.append(f"{holder} ({'LVM volume ' if is_lvm else ''}{name})")
        found += host.writers(member)
    return found


def check_discard(host: Looking, path: str, number: str, *, discard: str) -> None:
    """Refuses a thin volume that changes by itself, and `pass` on anything but thin volumes.

    Where a block that was discarded as a whole reads as zeros is known of dm-thin only. Its
    pool must zero new blocks: else the first write to a block changes what the rest of
    it reads as.

    Raises:
        DeviceError: the replica would differ, and no region would be marked.
    """
    kinds = _targets(host, number)
    if discard == "pass" and (not kinds or any(words[2] != "thin" for words in kinds)):
        raise DeviceError(
            f"{path}: no thin volume, and of no other device is it known that it reads as zeros "
            "where it discarded; attach it with --discard zero"
        )
    for words in kinds:
        if words[2] != "thin":
            continue
        for pool in _targets(host, words[3]):
            if "skip_block_zeroing" in pool:
                raise DeviceError(
                    f"{path}: its thin pool does not zero new blocks, so that it changes "
                    "without a write; lvchange --zero y POOL"
                )


def _targets(host: Looking, number: str) -> list[list[str]]:
    """The table lines of a device-mapper device, none of another one."""
    name = host.read(f"/sys/dev/block/{number}/dm/name").strip()
    if not name:
        return []
    return [line.split() for line in host.run("dmsetup", "table", name).splitlines()]
