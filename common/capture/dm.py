# SPDX-License-Identifier: GPL-2.0-only
"""The capture of the kernel module: ioctls and one mapping of a control device.

The kernel checks every argument again. Its errno becomes a `CaptureError`, or a
`CaptureGoneError` once the target was removed; memory that is mapped stays.

poll() of the control device checks the ring itself, so there is no wake-up to drain; a change of
mode stays readable until the consumer requests the status.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
from typing import TYPE_CHECKING, NoReturn

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, CaptureInfo, CaptureStatus, Role
from bdr.common.errors import CaptureError, CaptureGoneError, StaleCaptureError
from bdr.common.ring.layout import MARKS_MAX
from bdr.common.ring.mapping import RingMap
from bdr.common.ring.marks import MARK, Mark, decode_marks

if TYPE_CHECKING:
    from bdr.common.ring.slots import Headers

_HINTS = {
    errno.EBUSY: "a slot below the tail is still in flight",
    errno.EPERM: "an observer may not change it",
    errno.ERANGE: "out of range",
    errno.ENOTTY: "unknown request: not the control device of a `bdr` target?",
}
_OPEN_HINTS = {
    errno.EBUSY: "another process is the consumer (a reader that still runs?)",
    errno.EPERM: "root is required (CAP_SYS_ADMIN)",
    errno.EAGAIN: "its table is loaded but not active yet: dmsetup resume",
}


class DmCapture:
    """Implements `common.capture.api.Capture` for the control device at `path`.

    Raises:
        CaptureError: no control device of this ABI, or the consumer role is taken.
    """

    def __init__(self, path: str, role: Role) -> None:
        self._path = path
        access = os.O_RDWR if role is Role.CONSUMER else os.O_RDONLY
        try:
            self._fd = os.open(path, access | os.O_CLOEXEC)
        except OSError as error:
            self._refuse("open", error, _OPEN_HINTS)
        try:
            self.info, payload_offset = self._info()
            self._ring = RingMap(
                self._fd,
                capacity=self.info.capacity,
                headers_offset=0,
                payload_offset=payload_offset,
                doubled=True,
            )
        except BaseException:
            os.close(self._fd)
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, 0)

    def fileno(self) -> int:
        return self._fd

    def drain_wakeup(self) -> None:
        if self._poll.poll(0):
            raise self._gone()

    @property
    def headers(self) -> Headers:
        return self._ring.headers

    def header_bytes(self, first: int, count: int) -> memoryview:
        return self._ring.header_bytes(first, count)

    def payload(self, first: int, count: int) -> memoryview:
        return self._ring.payload(first, count)

    def drop_pages(self, first: int, count: int) -> None:
        self._ring.drop_pages(first, count)

    def status(self) -> CaptureStatus:
        return abi.decode_status(self._read_struct(abi.IOC_STATUS, abi.STATUS.size))

    def release(self, *, tail: int, cursor: int, acknowledged: int = 0, counted: int = 0) -> None:
        self._write_struct(
            abi.IOC_RELEASE,
            abi.RELEASE.pack(tail, cursor, acknowledged, counted),
            f"tail={tail} cursor={cursor} acknowledged={acknowledged} counted={counted}",
        )

    def resume(self) -> int:
        (slot,) = abi.RESUME.unpack(self._read_struct(abi.IOC_RESUME, abi.RESUME.size))
        return int(slot)

    def read_bitmap(self, bitmap: Bitmap, *, first: int, count: int) -> bytes:
        chunks = []
        for at in range(first, first + count, abi.BITMAP_CHUNK_REGIONS):
            regions = min(abi.BITMAP_CHUNK_REGIONS, first + count - at)
            buffer = (ctypes.c_ubyte * (-(-regions // 8)))()
            self._bitmap(abi.IOC_BITMAP_READ, bitmap, at, regions, ctypes.addressof(buffer))
            chunks.append(bytes(buffer))
        return b"".join(chunks)

    def clear_bitmap(self, *, first: int, count: int) -> None:
        self._bitmap(abi.IOC_BITMAP_CLEAR, Bitmap.RESYNC, first, count, 0)

    def mark_bitmap(self, *, first: int, count: int) -> None:
        self._bitmap(abi.IOC_BITMAP_MARK, Bitmap.RESYNC, first, count, 0)

    def marks(self) -> list[Mark]:
        buffer = (ctypes.c_ubyte * (MARKS_MAX * MARK.size))()
        request = bytearray(abi.MARKS.pack(ctypes.addressof(buffer), 0, 0))
        try:
            fcntl.ioctl(self._fd, abi.IOC_MARKS_READ, request)
        except OSError as error:
            self._refuse(abi.REQUEST_NAMES[abi.IOC_MARKS_READ], error)
        _, count, _ = abi.MARKS.unpack(request)
        return decode_marks(bytes(buffer)[: count * MARK.size])

    def close(self) -> None:
        os.close(self._fd)
        self._ring.close()

    def _info(self) -> tuple[CaptureInfo, int]:
        try:
            return abi.decode_info(self._read_struct(abi.IOC_INFO, abi.INFO.size))
        except ValueError as error:
            raise CaptureError(
                f"capture {self._path}: {error}; load the module that belongs to this BDR"
            ) from error

    def _bitmap(self, code: int, bitmap: Bitmap, first: int, count: int, buffer: int) -> None:
        request = abi.BITMAP.pack(first, count, bitmap, 0, buffer)
        self._write_struct(code, request, f"first={first} count={count}")

    def _read_struct(self, code: int, size: int) -> bytes:
        """A request whose result is a structure of `size` bytes."""
        buffer = bytearray(size)
        try:
            fcntl.ioctl(self._fd, code, buffer)
        except OSError as error:
            self._refuse(abi.REQUEST_NAMES[code], error)
        return bytes(buffer)

    def _write_struct(self, code: int, request: bytes, values: str) -> None:
        """A request with a structure as argument; `values` are shown if it is refused."""
        try:
            fcntl.ioctl(self._fd, code, request)
        except OSError as error:
            self._refuse(f"{abi.REQUEST_NAMES[code]} {values}", error)

    def _refuse(self, what: str, error: OSError, hints: dict[int, str] = _HINTS) -> NoReturn:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise self._gone() from error
        if error.errno == errno.ESTALE:
            raise StaleCaptureError(
                f"capture {self._path}: {what} refused: another device is below it since it was "
                "looked at"
            ) from error
        hint = hints.get(error.errno or 0, os.strerror(error.errno or 0))
        raise CaptureError(f"capture {self._path}: {what} refused: {hint}") from error

    def _gone(self) -> CaptureGoneError:
        return CaptureGoneError(f"capture {self._path}: gone, its target was removed")
