# SPDX-License-Identifier: GPL-2.0-only
"""The file or block device of a journal: opened exclusively, preallocated, synced."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import stat

from bdr.common.errors import StateDiskError, StateError
from bdr.common.storage.locking import lock_exclusively, sync_directory
from bdr.common.storage.transfer import write_all
from bdr.common.wire.codec import Buffer


class JournalFile:
    """Opens or creates the journal's file, exclusively.

    Args:
        path: a block device, or a file in an existing directory.
        is_read_only: for inspection; it must exist, and may be in use.

    Raises:
        StateDiskError: it cannot be opened, or is in use.
        StateError: it is neither a block device nor a regular file.
    """

    def __init__(self, path: str, *, is_read_only: bool = False) -> None:
        self.path = path
        self.is_in_use = False
        try:
            self.is_block = os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)
            flags = os.O_CLOEXEC
            if is_read_only:
                flags |= os.O_RDONLY
            else:
                # On a block device O_EXCL fails while it is mounted or held by a driver.
                flags |= os.O_RDWR | (os.O_EXCL if self.is_block else os.O_CREAT)
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            found = "in use (mounted, or held by another program)"
            raise StateDiskError(
                f"journal {path}: found it "
                f"{found if error.errno == errno.EBUSY else f'unusable: {error.strerror}'}; wanted "
                "a file in an existing, writable directory, or a block device of its own"
            ) from error
        try:
            if not self.is_block and not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise StateError(f"journal {path}: wanted a block device or a regular file")
            self._lock(is_read_only)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self, is_read_only: bool) -> None:
        if not is_read_only:
            if not lock_exclusively(self._fd):
                raise StateDiskError(
                    f"journal {self.path}: found it locked by another applier, or named as target "
                    "or state file too; wanted one of its own for each volume"
                )
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_in_use = True
        else:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # so that an applier can start meanwhile

    @property
    def size_bytes(self) -> int:
        """Size of the file or device."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def allocate(self, size_bytes: int) -> None:
        """Extends a file to this size and preallocates its space; a device must have it.

        Raises:
            StateDiskError: there is not enough space.
            StateError: the device is too small.
        """
        if self.is_block:
            if self.size_bytes < size_bytes:
                raise StateError(
                    f"journal {self.path}: found a device of {self.size_bytes} bytes; wanted at "
                    f"least {size_bytes}; name a bigger one, or a smaller --journal-size"
                )
            return
        before = self.size_bytes
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
            os.fsync(self._fd)
            sync_directory(self.path)
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise StateDiskError(
                f"journal {self.path}: allocating {size_bytes} bytes: {error.strerror}; free "
                "space, or set a path with more space, or a smaller --journal-size"
            ) from error

    def cut(self, size_bytes: int) -> None:
        """Frees the space after `size_bytes` of a file."""
        if not self.is_block and self.size_bytes > size_bytes:
            os.ftruncate(self._fd, size_bytes)
            os.fsync(self._fd)

    def drop_page_cache(self) -> None:
        """Syncs what a killed process left in the page cache, then drops the cache.

        Without the sync, a power cut could revert entries that are about to be applied. Without
        dropping the cache, pages whose write-back failed could be read as if they were on the disk.
        """
        self.sync()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        """Reads `length` bytes; fewer only at the end of the file."""
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length and (
                more := os.pread(self._fd, length - len(data), offset + len(data))
            ):
                data += more
        except OSError as error:
            raise self._failed(f"reading {length} bytes at {offset}", error) from error
        return data

    def write(self, offset: int, pieces: list[Buffer]) -> None:
        """Writes the buffers contiguously, without copying them."""
        try:
            written = os.pwritev(self._fd, pieces, offset)
            total = sum(map(len, pieces))
            if written < total:
                rest = memoryview(b"".join(pieces))[written:]
                write_all(self._fd, rest, offset + written)
        except OSError as error:
            raise self._failed(f"writing at {offset}", error) from error

    def sync(self) -> None:
        """fdatasync(2)."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed("fdatasync", error) from error

    def twin(self) -> JournalFile:
        """The same file by another descriptor, for another thread.

        Linux reports a failed write-back once per open descriptor: of two threads that sync the
        same descriptor, only one would get the error.
        """
        twin = copy.copy(self)
        try:
            twin._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("open", error) from error
        return twin

    def close(self) -> None:
        """Closes the file, which releases the lock."""
        os.close(self._fd)

    def _failed(self, what: str, error: OSError) -> StateDiskError:
        return StateDiskError(
            f"journal {self.path}: {what}: {error.strerror}; wanted a disk with free space that "
            "does not fail; nothing acknowledged is lost"
        )
