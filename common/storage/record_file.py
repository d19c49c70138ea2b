# SPDX-License-Identifier: GPL-2.0-only
"""The file with a replica's record: two copies, written alternately."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace

from bdr.common.errors import StateError
from bdr.common.storage.locking import lock_exclusively, sync_directory
from bdr.common.target import record as format_
from bdr.common.target.record import ReplicaRecord


class RecordFile:
    """Opens or creates the file, exclusively.

    Raises:
        StateError: it cannot be opened, is locked by another applier, is damaged,
            or belongs to another volume.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"replica state {path}: {error.strerror}; wanted a file in an existing, writable "
                "directory"
            ) from error
        if not lock_exclusively(self._fd):
            os.close(self._fd)
            raise StateError(
                f"replica state {path}: found it locked by another applier; wanted one of its own "
                "for each volume"
            )
        self._generation = 0
        self._device = ""
        self._is_new = os.fstat(self._fd).st_size == 0

    def load(
        self, *, volume: str, device_sectors: int, device: str = "", allow_foreign: bool = False
    ) -> ReplicaRecord:
        """The record of this volume, or a blank one.

        Args:
            device: the target's identity, if it has one; `save` stores it.
            allow_foreign: also load the record of a promoted or another device.

        Raises:
            StateError: damaged, of another volume, or of a bigger device; or of one that was
                promoted, or is another one.
        """
        self._drop_page_cache()
        try:
            data = os.pread(self._fd, format_.RECORD_BYTES, 0).ljust(format_.RECORD_BYTES, b"\0")
        except OSError as error:
            raise self._failed(error) from error
        copies = [
            data[at : at + format_.COPY_BYTES]
            for at in range(0, format_.RECORD_BYTES, format_.COPY_BYTES)
        ]
        found = format_.choose(copies, where=self.path)
        self._device = device
        if found is None:
            return ReplicaRecord(volume=volume, device_sectors=device_sectors, device=device)
        self._generation, record = found
        self._device = device or record.device
        if record.volume != volume:
            raise StateError(
                f"replica state {self.path}: found that of volume {record.volume!r}, wanted that "
                f"of {volume!r}; set another state file"
            )
        if record.device not in ("", self._device) and not allow_foreign:
            raise StateError(
                f"replica state {self.path}: found the target to be {device!r}, wanted "
                f"{record.device!r}, which has the replica; set that as target, or, if the disk "
                f"was replaced, run `bdr demote {volume}`: then everything is compared"
            )
        if record.promoted_utc and not allow_foreign:
            raise StateError(
                f"replica state {self.path}: found its device promoted, on "
                f"{utc(record.promoted_utc)}; wanted a replica: `bdr demote {volume}` makes "
                "it one again, and discards what was written to it"
            )
        if record.device_sectors > device_sectors:
            raise StateError(
                f"replica state {self.path}: found a replica of {record.device_sectors} sectors, "
                f"but the target has {device_sectors}; is it the right device? If so, delete "
                "the state file and let the source scan"
            )
        return replace(record, device_sectors=device_sectors, device=self._device)

    def _drop_page_cache(self) -> None:
        """Syncs what a killed process left in the page cache, then drops the cache.

        Otherwise a power cut could revert a record that other state, such as a journal's
        superblock, already depends on.
        """
        try:
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._failed(error) from error

    def save(self, record: ReplicaRecord) -> None:
        """Overwrites the older copy and syncs it.

        Raises:
            StateError: the disk failed or is full; the other copy is intact.
        """
        self._generation += 1
        data = format_.encode_copy(replace(record, device=self._device), self._generation)
        try:
            at = self._generation % format_.COPIES * format_.COPY_BYTES
            if os.pwrite(self._fd, data, at) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._fd)
            if self._is_new:
                sync_directory(self.path)
                self._is_new = False
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StateError:
        return StateError(
            f"replica state {self.path}: {error.strerror}; repair the disk, then start the "
            "applier again: nothing acknowledged is lost"
        )

    def close(self) -> None:
        """Closes the file, which releases the lock."""
        os.close(self._fd)


def utc(seconds: int) -> str:
    """A time of a record, in human-readable form."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
