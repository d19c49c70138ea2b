# SPDX-License-Identifier: GPL-2.0-only
"""The device below a capture, read by scanners.

Two ways to read, by what the capture is; the wrong one reads what is not there:

- The kernel module sends writes below as bios, past the page cache of the device
  below. Buffered reads of that device could give what was cached before: O_DIRECT,
  and nothing else.
- The nbdkit plugin writes its file through the page cache. Buffered reads share that
  cache, so they see each write as soon as the plugin has; O_DIRECT would write back
  what is dirty before each read, and tmpfs has none.
"""

from __future__ import annotations

import errno
import os
import stat

from common.errors import DeviceError
from common.ring import SECTOR_BYTES


class SourceDevice:
    """Opens a device or file for reading.

    Args:
        path: the device below.
        chardev: the capture's path, which tells what kind it is.
        sectors: what the capture says of its size.

    Raises:
        DeviceError: missing, unreadable, or smaller than the capture.
    """

    def __init__(self, path: str, *, chardev: str, sectors: int) -> None:
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
        found = os.lseek(self._fd, 0, os.SEEK_END) // SECTOR_BYTES
        if found < sectors:
            os.close(self._fd)
            raise DeviceError(
                f"underlying device {path!r}: found {found} sectors, wanted {sectors} as the "
                "capture has; is it another device?"
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
