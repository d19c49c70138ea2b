# SPDX-License-Identifier: GPL-2.0-only
"""The file or block device that a journal lives in: opened alone, preallocated, synced."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import stat

from bdr.common.errors import StateError
from bdr.common.storage.locking import lock_exclusively, sync_directory
from bdr.common.wire.codec import Buffer


class JournalFile:
    """Opens or creates the journal's file, for this process alone.

    Args:
        path: a block device, or a file in an existing directory.
        is_read_only: to look at it only; then it must exist, and may be in use.

    Raises:
        StateError: it cannot be opened, or something else uses it.
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
            raise StateError(
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
                raise StateError(
                    f"journal {self.path}: found it locked by another applier, or named as target "
                    "or state file too; wanted one of its own for each volume"
                )
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_in_use = True
        else:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # an applier that starts meanwhile is right to

    @property
    def size_bytes(self) -> int:
        """Size of the file or device."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def allocate(self, size_bytes: int) -> None:
        """Makes a file that big, with its space set aside; a device must be that big.

        Raises:
            StateError: there is not so much room.
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
            raise StateError(
                f"journal {self.path}: setting {size_bytes} bytes aside: {error.strerror}; make "
                "room, name a path with more room, or a smaller --journal-size"
            ) from error

    def cut(self, size_bytes: int) -> None:
        """Gives the space behind `size_bytes` of a file free."""
        if not self.is_block and self.size_bytes > size_bytes:
            os.ftruncate(self._fd, size_bytes)
            os.fsync(self._fd)

    def drop_page_cache(self) -> None:
        """Makes what a killed process left durable, and forgets what is cached of it.

        Without the sync, a power cut could take back what is about to be applied.
        Without the forgetting, pages that once failed to reach the disk could pass
        for what is on it.
        """
        self.sync()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file."""
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
        """Writes the pieces one behind the other, without copying them."""
        try:
            written = os.pwritev(self._fd, pieces, offset)
            total = sum(map(len, pieces))
            if written < total:
                self._write_rest(offset, pieces, written)
        except OSError as error:
            raise self._failed(f"writing at {offset}", error) from error

    def sync(self) -> None:
        """fdatasync(2)."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed("fdatasync", error) from error

    def twin(self) -> JournalFile:
        """The same file by a descriptor of its own, for another thread.

        Linux tells of a write-back that failed once a descriptor: of two threads that sync
        by one of them, only one would learn that what was written did not reach the disk.
        """
        twin = copy.copy(self)
        try:
            twin._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("open", error) from error
        return twin

    def close(self) -> None:
        """Gives it free."""
        os.close(self._fd)

    def _write_rest(self, offset: int, pieces: list[Buffer], written: int) -> None:
        rest = memoryview(b"".join(pieces))[written:]
        offset += written
        while rest:
            count = os.pwrite(self._fd, rest, offset)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[count:]
            offset += count

    def _failed(self, what: str, error: OSError) -> StateError:
        return StateError(
            f"journal {self.path}: {what}: {error.strerror}; mend the disk or make room, then "
            "start the applier again: nothing acknowledged is lost"
        )
