# SPDX-License-Identifier: GPL-2.0-only
"""A ring's memory in this process: headers once, payload twice back to back.

Python's mmap cannot place a mapping at a given address, so this calls mmap(2) directly: it reserves
address space, then maps the file over it with MAP_FIXED. The result is the layout that one mmap of
a `bdr` control device has.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cached_property
from typing import TYPE_CHECKING

from bdr.common.errors import CaptureError
from bdr.common.ring.layout import HEADER_BYTES, PAYLOAD_BYTES

if TYPE_CHECKING:
    from bdr.common.ring.slots import Headers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value


def page_round(size: int) -> int:
    """`size` in bytes, rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class RingMap:
    """Maps a file that holds headers, then payload.

    Args:
        fd: the file; may be closed afterwards.
        capacity: slots.
        headers_offset: where the headers begin in the file, page aligned.
        payload_offset: where the payload begins in the file, page aligned.
        writable: also for stores (producers in this process only).
        doubled: the file itself has the payload twice, as a control device has.

    Raises:
        CaptureError: the file cannot be mapped so.
    """

    def __init__(
        self,
        fd: int,
        *,
        capacity: int,
        headers_offset: int,
        payload_offset: int,
        writable: bool = False,
        doubled: bool = False,
    ) -> None:
        self._capacity = capacity
        headers_bytes = page_round(capacity * HEADER_BYTES)
        payload_bytes = capacity * PAYLOAD_BYTES
        self._bytes = headers_bytes + 2 * payload_bytes
        self._payload_at = headers_bytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._base = _mmap(
            None, self._bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0
        )
        pieces = [
            (0, headers_bytes, headers_offset),
            (headers_bytes, payload_bytes, payload_offset),
            (headers_bytes + payload_bytes, payload_bytes, payload_offset),
        ]
        if doubled:
            pieces = [(0, self._bytes, headers_offset)]
        try:
            for at, size, offset in pieces:
                _mmap(self._base + at, size, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
        except CaptureError:
            self.close()
            raise
        memory = memoryview((ctypes.c_ubyte * self._bytes).from_address(self._base)).cast("B")
        self._memory = memory if writable else memory.toreadonly()

    @cached_property
    def headers(self) -> Headers:
        """Every slot's, shape (capacity,)."""
        # Imported on demand, for processes that decode slots: see `common.ring.layout`.
        import numpy as np  # noqa: PLC0415

        return np.frombuffer(self._memory, np.uint64, self._capacity)

    def header_bytes(self, first: int, count: int) -> memoryview:
        """The headers of slots [first, first + count), copied only where they wrap."""
        index = first % self._capacity
        before_wrap = min(count, self._capacity - index)
        start = index * HEADER_BYTES
        piece = self._memory[start : start + before_wrap * HEADER_BYTES]
        if before_wrap == count:
            return piece
        return memoryview(bytes(piece) + self._memory[: (count - before_wrap) * HEADER_BYTES])

    def payload(self, first: int, count: int) -> memoryview:
        """The payload of slots [first, first + count), contiguous even where they wrap."""
        start = self._payload_at + first % self._capacity * PAYLOAD_BYTES
        return self._memory[start : start + count * PAYLOAD_BYTES]

    def drop_pages(self, first: int, count: int) -> None:
        """Unmaps these slots' pages from this process; the next access maps them again."""
        start = self._payload_at + first % self._capacity * PAYLOAD_BYTES
        _libc.madvise(self._base + start, count * PAYLOAD_BYTES, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps everything. Views returned earlier must not be accessed afterwards."""
        if self._base:
            _libc.munmap(self._base, self._bytes)
            self._base = 0


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int, at: int) -> int:
    result = _libc.mmap(address, size, protection, flags, fd, at)
    if result is None or result == _MAP_FAILED:
        error = ctypes.get_errno()
        raise CaptureError(
            f"cannot map {size} bytes of ring memory at offset {at}: {os.strerror(error)}"
        )
    return int(result)
