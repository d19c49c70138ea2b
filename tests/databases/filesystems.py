# SPDX-License-Identifier: GPL-2.0-only
"""File systems: how each is made, and how it is checked after a crash."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.command import run


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One kind.

    Attributes:
        kind: as in /proc/filesystems.
        make: command that makes it on a device.
        check: command that checks an unmounted one and changes nothing.
        mount: options of mount(8) on the source.
        scrub: command that reads all of a mounted one and verifies its checksums.
        is_checked_dirty: whether `check` is for one that was not unmounted, too.
    """

    name: str
    kind: str
    make: tuple[str, ...]
    check: tuple[str, ...]
    mount: tuple[str, ...] = ()
    scrub: tuple[str, ...] = ()
    is_checked_dirty: bool = False

    @property
    def tools(self) -> tuple[str, ...]:
        """Programs that it needs."""
        return self.make[0], self.check[0]

    def format(self, device: str) -> None:
        """Makes one."""
        run(*self.make, device)

    def check_dirty(self, device: str) -> None:
        """Checks one whose host was lost, if that can be done before it is mounted."""
        if self.is_checked_dirty:
            run(*self.check, device)

    def check_mounted(self, top: Path) -> None:
        """Verifies the checksums that it has."""
        if self.scrub:
            run(*self.scrub, str(top))

    def check_clean(self, device: str) -> None:
        """Checks one that was mounted, so its journal was replayed, and unmounted.

        Raises:
            SetupError: it has errors.
        """
        run(*self.check, device)


_MAKE_EXT4 = ("mkfs.ext4", "-q", "-F")
_CHECK_EXT4 = ("e2fsck", "-f", "-n")

EXT4 = FileSystem("ext4", "ext4", _MAKE_EXT4, _CHECK_EXT4)
EXT4_DATA_JOURNAL = FileSystem(
    "ext4-data-journal", "ext4", _MAKE_EXT4, _CHECK_EXT4, mount=("-o", "data=journal")
)
XFS = FileSystem("xfs", "xfs", ("mkfs.xfs", "-q", "-f"), ("xfs_repair", "-n"))
BTRFS = FileSystem(
    "btrfs",
    "btrfs",
    ("mkfs.btrfs", "-q", "-f"),
    ("btrfs", "check", "--readonly"),
    scrub=("btrfs", "scrub", "start", "-B", "-r"),
    is_checked_dirty=True,
)
FILE_SYSTEMS = (EXT4, EXT4_DATA_JOURNAL, XFS, BTRFS)


def preen_ext4(device: str) -> None:
    """Replays the journal as at boot, before it is mounted; and checks everything.

    Raises:
        AssertionError: more than the journal had to be applied.
    """
    preened = subprocess.run(
        ["e2fsck", "-f", "-p", device], check=False, capture_output=True, text=True
    )
    assert preened.returncode in (0, 1), preened.stdout + preened.stderr
    EXT4.check_clean(device)
