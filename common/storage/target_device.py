# SPDX-License-Identifier: GPL-2.0-only
"""The target's device or file: opened exclusively, written, zeroed, synced.

Discards and zeroes use fallocate(2), after which the range reads as zeros on block devices and
files, so that a replica reads like its source. If the device supports neither, zeros are written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES, Op
from bdr.common.storage.device_identity import identity_of_number
from bdr.common.storage.locking import lock_exclusively
from bdr.common.storage.transfer import read_all, write_all
from bdr.common.target.extents import Extents
from bdr.common.wire.codec import Buffer

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)
_ZEROS = memoryview(bytes(1 << 20))
_ZERO_BYTES_MAX = 256 << 20
"""Per call: where the kernel writes zeros itself, the call is not interruptible."""
_BLKSSZGET = 0x1268

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class TargetDevice:
    """A block device or a file of fixed size, opened exclusively.

    Args:
        path: must exist; a file is not created, nor its size changed.

    Attributes:
        sectors: of 512 bytes.
        identity: identifier of a block device (a disk's serial, an LVM volume's UUID), which
            detects a replaced disk; "" if it has none.

    Raises:
        DeviceError: missing, neither device nor file, or in use (mounted, opened exclusively,
            backing a loop device, or locked by another applier).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._can_punch = True
        self._can_zero = True
        self._block_bytes = 1
        try:
            is_block = stat.S_ISBLK(os.stat(path).st_mode)
            # On a block device O_EXCL fails while it is mounted or held by a driver.
            exclusive = os.O_EXCL if is_block else 0
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | exclusive)
        except OSError as error:
            found = "in use (mounted, or held by another program)"
            raise DeviceError(
                f"target {path}: found it "
                f"{found if error.errno == errno.EBUSY else f'unusable: {error.strerror}'}; wanted "
                "a block device or file that exists and that nothing else uses"
            ) from error
        try:
            self.identity = ""
            if is_block:
                self._block_bytes = _logical_block_bytes(self._fd)
                self.identity = identity_of_number(os.fstat(self._fd).st_rdev)
            else:
                self._check_file()
            self._lock()
            self.sectors = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR_BYTES
            if not self.sectors:
                raise DeviceError(f"target {path}: found a size of 0; wanted the source's size")
            self._drop_page_cache()
        except BaseException:
            os.close(self._fd)
            raise

    def apply(self, extents: Extents, payload: Buffer) -> None:
        """Applies the extents in order. Not durable before `sync`.

        Raises:
            DeviceError: the device failed; earlier extents stay applied.
        """
        view = memoryview(payload)
        fd = self._fd
        pwrite = os.pwrite
        try:
            for op, offset, length, source in zip(
                extents.op, extents.offset, extents.length, extents.source, strict=True
            ):
                if op == Op.WRITE:
                    written = pwrite(fd, view[source : source + length], offset)
                    if written != length:
                        rest = view[source + written : source + length]
                        write_all(fd, rest, offset + written)
                elif op == Op.DISCARD:
                    self._zero(offset, length, free=True)
                else:
                    self._zero(offset, length, free=False)
        except OSError as error:
            raise DeviceError(
                f"target {self.path}: writing {length} bytes at {offset}: {error.strerror}; "
                "wanted a device with free space that does not fail; nothing acknowledged is lost"
            ) from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer with applied data, durable or not; thread-safe.

        Raises:
            DeviceError: the device failed, or is too short.
        """
        try:
            read_all(self._fd, buffer, offset)
        except OSError as error:
            raise DeviceError(
                f"target {self.path}: reading {len(buffer)} bytes at {offset}: {error.strerror}; "
                "check the device"
            ) from error

    def sync(self) -> None:
        """Makes everything applied durable.

        Raises:
            DeviceError: the device failed; unsynced data may be lost.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise DeviceError(
                f"target {self.path}: fdatasync: {error.strerror}; wanted a device with free "
                "space that does not fail; nothing acknowledged is lost"
            ) from error

    def close(self) -> None:
        """Closes the device, which releases the lock."""
        os.close(self._fd)

    def _drop_page_cache(self) -> None:
        """Syncs what an earlier process left in the page cache, then drops the cache.

        A page counts as clean after its write-back failed. A scan that read it would find data
        equal that is not on the disk.
        """
        self.sync()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _check_file(self) -> None:
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            raise DeviceError(f"target {self.path}: wanted a block device or a regular file")
        for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                behind = os.stat(loop.read_text().rstrip("\n"))
            except OSError:
                continue  # detached meanwhile, or its file is gone
            if (behind.st_dev, behind.st_ino) == (info.st_dev, info.st_ino):
                raise DeviceError(
                    f"target {self.path}: found it behind /dev/{loop.parent.parent.name}; detach "
                    "that with `losetup -d`, or name the loop device as target"
                )

    def _lock(self) -> None:
        if not lock_exclusively(self._fd):
            raise DeviceError(
                f"target {self.path}: found it locked by another applier; wanted it for this one "
                "alone: stop the other"
            )

    def _zero(self, offset: int, length: int, *, free: bool) -> None:
        """Zeros a range: whole blocks by the device, in bounded calls; partial blocks by writing
        zeros."""
        end = offset + length
        first = min(-(-offset // self._block_bytes) * self._block_bytes, end)
        last = max(end // self._block_bytes * self._block_bytes, first)
        self._write_zeros(offset, first - offset)
        for at in range(first, last, _ZERO_BYTES_MAX):
            self._zero_blocks(at, min(_ZERO_BYTES_MAX, last - at), free=free)
        self._write_zeros(last, end - last)

    def _zero_blocks(self, offset: int, length: int, *, free: bool) -> None:
        if free and self._can_punch:
            if self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
                return
            self._can_punch = False
        if self._can_zero:
            if self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length):
                return
            self._can_zero = False
        if self._can_punch:
            # tmpfs supports holes, but not ZERO_RANGE.
            if self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length):
                return
            self._can_punch = False
        self._write_zeros(offset, length)

    def _write_zeros(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, len(_ZEROS)):
            write_all(self._fd, _ZEROS[: offset + length - at], at)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Returns whether the device supports it; raises OSError if it does and failed."""
        while _libc.fallocate(self._fd, mode, offset, length):
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True


def _logical_block_bytes(fd: int) -> int:
    """Granularity of a block device's ranges."""
    (size,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)
