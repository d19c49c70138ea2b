# SPDX-License-Identifier: GPL-2.0-only
"""The device below a capture, read by scanners.

Two ways to read, by what the capture is; the wrong one reads what is not there:

- The kernel module sends writes below as bios, past the page cache of the device
  below. Buffered reads of that device could give what was cached before: O_DIRECT,
  and nothing else. A table may put another device below: what a user has named is
  compared with what the module says.
- The nbdkit plugin writes its file through the page cache. Buffered reads share that
  cache, so they see each write as soon as the plugin has; O_DIRECT would write back
  what is dirty before each read, and tmpfs has none.
"""

from __future__ import annotations

import errno
import os
import stat

from bdr.common.capture.api import CaptureInfo
from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES


class SourceDevice:
    """Opens a device or file for reading.

    Args:
        underdev: the device below, if the user has named it.
        chardev: the capture's path, which tells what kind it is.
        info: what the capture says of the device.

    Raises:
        DeviceError: missing, unreadable, another one, or smaller than the capture.
    """

    def __init__(self, underdev: str | None, *, chardev: str, info: CaptureInfo) -> None:
        path, sectors = underdev or info.underlying, info.device_sectors
        self.path = path
        is_direct = stat.S_ISCHR(os.stat(chardev).st_mode)
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if is_direct else 0)
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise DeviceError(
                f"underlying device {path!r}: {error.strerror}; wanted the device that the capture "
                "writes to: name it with --underdev"
            ) from error
        try:
            if is_direct:
                self._check_is_below(info.underlying)
            found = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR_BYTES
            if found < sectors:
                raise DeviceError(
                    f"underlying device {path!r}: found {found} sectors, wanted {sectors} as the "
                    "capture has; is it another device?"
                )
        except BaseException:
            os.close(self._fd)
            raise

    def _check_is_below(self, below: str) -> None:
        # Where it has another name here, the user's word counts.
        if os.path.exists(below) and os.stat(below).st_rdev != os.fstat(self._fd).st_rdev:
            raise DeviceError(
                f"underlying device {self.path!r}: the module says that {below!r} is below; "
                "wanted the same device: correct underdev"
            )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer, which is page aligned.

        Raises:
            OSError: a part of it cannot be read.
        """
        done = os.preadv(self._fd, [buffer], offset)
        while 0 < done < len(buffer):
            more = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not more:
                break
            done += more
        if done < len(buffer):
            raise OSError(errno.EIO, "it ends before")

    def close(self) -> None:
        """Gives the device free."""
        os.close(self._fd)
