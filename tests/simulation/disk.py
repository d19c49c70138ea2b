# SPDX-License-Identifier: GPL-2.0-only
"""A disk with a page cache that can lose, tear and fail.

What was written is seen at once. What was not synced may be written back at any
moment, sector by sector and in any order, or never: a power cut leaves of each
unsynced sector any version since the last sync, sometimes only a part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from bdr.common.ring.layout import SECTOR_BYTES


class DiskFailedError(Exception):
    """EIO or ENOSPC, as the name says."""


class PowerLostError(Exception):
    """The target's power was cut in the middle of a step."""


class Disk:
    """`content` is what a reader sees; `synced` what a power cut surely leaves."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.synced = bytearray(size)
        self.unsynced: dict[int, list[bytes]] = {}
        self.fails_write: str | None = None
        self.fails_sync: str | None = None
        self.fuse: int | None = None
        """How many more writes and syncs there will be before the power is cut."""

    def copy(self) -> Disk:
        """As it is now, without what is planned to fail."""
        copied = Disk(0)
        copied.content, copied.synced = bytearray(self.content), bytearray(self.synced)
        copied.unsynced = {sector: list(versions) for sector, versions in self.unsynced.items()}
        return copied

    def read(self, offset: int, length: int) -> bytes:
        """As pread(2) through the page cache."""
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """As pwrite(2); whole sectors.

        Raises:
            DiskFailedError: as planned by `fails_write`; a part may have been written.
        """
        self._burn(lambda: self._put(offset, data[: len(data) // 2 // 512 * 512]))
        if self.fails_write:
            why, self.fails_write = self.fails_write, None
            self._put(offset, data[: len(data) // 2 // SECTOR_BYTES * SECTOR_BYTES])
            raise DiskFailedError(why)
        self._put(offset, data)

    def sync(self) -> None:
        """As fdatasync(2).

        Raises:
            DiskFailedError: as planned by `fails_sync`. As on Linux, some pages are
                then taken for clean although they never reached the disk.
        """
        self._burn(lambda: None)
        if self.fails_sync:
            why, self.fails_sync = self.fails_sync, None
            for sector in list(self.unsynced)[::2]:
                del self.unsynced[sector]
            raise DiskFailedError(why)
        for sector in self.unsynced:
            at = sector * SECTOR_BYTES
            self.synced[at : at + SECTOR_BYTES] = self.content[at : at + SECTOR_BYTES]
        self.unsynced.clear()

    def settle(self) -> None:
        """As a process does that opens it: what is cached is the disk's from then on."""
        for sector in self.unsynced:
            at = sector * SECTOR_BYTES
            self.synced[at : at + SECTOR_BYTES] = self.content[at : at + SECTOR_BYTES]
        self.unsynced.clear()
        self.content[:] = self.synced

    def drop_cache(self) -> None:
        """Reads come from the disk again; what is unsynced stays cached."""
        cached = {sector: versions[-1] for sector, versions in self.unsynced.items()}
        self.content[:] = self.synced
        for sector, version in cached.items():
            self.content[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = version

    def after_power_cut(self, rng: Random | None) -> Disk:
        """What is found after a power cut now; without `rng` all that is unsynced is lost."""
        left = Disk(0)
        left.synced = bytearray(self.synced)
        if rng is not None:
            luck = rng.choice((0.1, 0.5, 0.9, 1.0))
            tears = rng.choice((0.0, 0.1, 0.5))
            for sector, versions in self.unsynced.items():
                if rng.random() < luck:
                    at = sector * SECTOR_BYTES
                    torn = rng.randrange(SECTOR_BYTES) if rng.random() < tears else SECTOR_BYTES
                    left.synced[at : at + torn] = rng.choice(versions)[:torn]
        left.content = bytearray(left.synced)
        return left

    def _burn(self, last_act: Callable[[], None]) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                last_act()
                raise PowerLostError

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        self.content[offset : offset + len(data)] = data
        for at in range(0, len(data), SECTOR_BYTES):
            version = bytes(data[at : at + SECTOR_BYTES])
            self.unsynced.setdefault((offset + at) // SECTOR_BYTES, []).append(version)
