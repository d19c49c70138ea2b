# SPDX-License-Identifier: GPL-2.0-only
"""The underlying device of a capture, read by scanners.

The capture determines how to read; the wrong way returns stale data:

- The kernel module submits bios to the underlying device, bypassing its page cache. Buffered reads
  could return stale cached data, so O_DIRECT is required. A table reload may change the underlying
  device, so a configured path is compared with the module's.
- The nbdkit plugin writes its file through the page cache. Buffered reads share that
  cache, so they see each write as soon as the plugin has made it; O_DIRECT would force write-back
  before each read, and tmpfs does not support it.
"""

from __future__ import annotations

import os
import stat

from bdr.common.capture.api import CaptureInfo
from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.storage.transfer import read_all


class SourceDevice:
    """Opens a device or file for reading.

    Args:
        underdev: the underlying device, if configured.
        chardev: the capture's path, whose file type determines its kind.
        info: of the capture.

    Raises:
        DeviceError: missing, unreadable, not that of the capture, or smaller.
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
        # If its path does not exist in this mount namespace, the configuration counts.
        if os.path.exists(below) and os.stat(below).st_rdev != os.fstat(self._fd).st_rdev:
            raise DeviceError(
                f"underlying device {self.path!r}: the module's is {below!r}; "
                "wanted the same device: correct underdev"
            )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills the buffer, which is page aligned.

        Raises:
            OSError: a part cannot be read.
        """
        read_all(self._fd, buffer, offset)

    def close(self) -> None:
        """Closes the device."""
        os.close(self._fd)
