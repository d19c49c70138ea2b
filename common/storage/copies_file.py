# SPDX-License-Identifier: GPL-2.0-only
"""A small file of two copies, written in turn; see `common.copies`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from bdr.common.copies import FILE_BYTES, Copies, Kept, place_of
from bdr.common.errors import StateDiskError
from bdr.common.storage.locking import lock_exclusively, sync_directory


class CopiesFile:
    """Opens or creates the file, for this process alone.

    Args:
        kind: of its content.

    Raises:
        StateDiskError: it cannot be opened, or another process has it.
    """

    def __init__(self, path: str, kind: Copies) -> None:
        self.path = path
        self._kind = kind
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDiskError(
                f"{kind.what} {path}: {error.strerror}; wanted a file in an existing, writable "
                "directory"
            ) from error
        if not lock_exclusively(self._fd):
            os.close(self._fd)
            raise StateDiskError(
                f"{kind.what} {path}: found it locked by another process of BDR; wanted one of "
                "its own for each volume"
            )
        self._generation = 0

    def load(self) -> Kept | None:
        """The copy that counts; None where nothing was ever durable.

        Raises:
            StateError: damaged.
            StateDiskError: the disk failed.
        """
        self._drop_page_cache()
        try:
            data = os.pread(self._fd, FILE_BYTES, 0)
        except OSError as error:
            raise self._failed(error) from error
        kept = self._kind.choose(data, where=self.path)
        self._generation = kept.generation if kept else 0
        return kept

    def _drop_page_cache(self) -> None:
        """Makes what a killed process left durable, and forgets what is cached of it.

        Else a copy could be believed that a power cut takes back, or the file with its name,
        when others, such as a journal's superblock, were built on it already.
        """
        try:
            os.fdatasync(self._fd)
            sync_directory(self.path)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._failed(error) from error

    def save(self, values: Mapping[str, Any]) -> None:
        """Writes the older copy anew and syncs it.

        Raises:
            StateDiskError: the disk failed or is full; the other copy is intact.
        """
        self._generation += 1
        data = self._kind.encode(values, self._generation)
        try:
            if os.pwrite(self._fd, data, place_of(self._generation)) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StateDiskError:
        return StateDiskError(
            f"{self._kind.what} {self.path}: {error.strerror}; wanted a disk with free "
            "space that does not fail; nothing acknowledged is lost"
        )

    def close(self) -> None:
        """Releases the file."""
        os.close(self._fd)
