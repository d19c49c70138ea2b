# SPDX-License-Identifier: GPL-2.0-only
"""A ring without a device, filled at memory speed.

For tests and benchmarks: the producer and the consumer are in the process that calls `create`;
senders and scanners attach to the file by its path, read-only, as to any capture. Put the file on
tmpfs.

File layout: one page of description, the headers, the payload.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time

import numpy as np

from bdr.common.capture.api import Bitmap, CaptureInfo, CaptureStatus
from bdr.common.errors import CaptureError
from bdr.common.ring.layout import (
    CAPACITY_MAX,
    CAPACITY_MIN,
    HEADER_BYTES,
    MISSED_NOTHING,
    MISSED_UNKNOWN,
    PAYLOAD_BYTES,
    REGION_SECTORS_DEFAULT,
    WRITE_SLOTS_MAX,
    Mode,
)
from bdr.common.ring.mapping import RingMap, page_round
from bdr.common.ring.marks import Mark, Marks
from bdr.common.ring.slots import Headers, published_count, stamp

_PAGE_BYTES = 4096
_DESCRIPTION = struct.Struct("<8s16sQQQ")
_MAGIC = b"BDRMEM01"


class MemoryCapture:
    """Implements `common.capture.api.Capture`; `create` also lets this process produce."""

    def __init__(self, path: str, info: CaptureInfo, ring: RingMap, *, owner: bool) -> None:
        self.info = info
        self.headers: Headers = ring.headers
        self._path = path
        self._ring = ring
        self._owner = owner
        self._head = 0
        self._tail = 0
        self._acknowledged = 0
        self._counted = 0
        self._marks = Marks()
        self._missed_since_ns = MISSED_NOTHING
        self._armed = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._resync = np.zeros(info.regions, np.bool_)

    @classmethod
    def create(
        cls,
        path: str,
        *,
        capacity: int,
        device_sectors: int,
        underlying: str = "",
        region_sectors: int = REGION_SECTORS_DEFAULT,
    ) -> MemoryCapture:
        """Creates the ring file at `path`; this process is its producer and consumer."""
        if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
            raise CaptureError(f"capacity {capacity}: wanted {CAPACITY_MIN} to {CAPACITY_MAX}")
        info = CaptureInfo(
            stream=os.urandom(16),
            device_sectors=device_sectors,
            capacity=capacity,
            region_sectors=region_sectors,
            regions=-(-device_sectors // region_sectors),
            underlying=underlying,
        )
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            payload_offset = _PAGE_BYTES + page_round(capacity * HEADER_BYTES)
            os.ftruncate(fd, payload_offset + capacity * PAYLOAD_BYTES)
            os.pwrite(
                fd,
                _DESCRIPTION.pack(_MAGIC, info.stream, device_sectors, capacity, region_sectors),
                0,
            )
            ring = _map(fd, capacity, writable=True)
        finally:
            os.close(fd)
        return cls(path, info, ring, owner=True)

    @classmethod
    def attach(cls, path: str) -> MemoryCapture:
        """Maps a ring that another process made, as an observer."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(fd, _DESCRIPTION.size, 0)
            if len(raw) != _DESCRIPTION.size or not raw.startswith(_MAGIC):
                raise CaptureError(
                    f"capture {path}: found a regular file that is no in-memory ring; wanted the "
                    "control device of a `bdr` target, or the ring= socket of the nbdkit plugin"
                )
            _, stream, device_sectors, capacity, region_sectors = _DESCRIPTION.unpack(raw)
            ring = _map(fd, capacity, writable=False)
        finally:
            os.close(fd)
        info = CaptureInfo(
            stream=stream,
            device_sectors=device_sectors,
            capacity=capacity,
            region_sectors=region_sectors,
            regions=-(-device_sectors // region_sectors),
            underlying="",
        )
        return cls(path, info, ring, owner=False)

    # The producer's side.

    def produce(self, headers: Headers, payload: bytes | memoryview | None = None) -> int:
        """Publishes slots, waiting for room; returns the number of the first.

        Args:
            headers: from `common.ring.slots.encode`, shape (slots,), at most the capacity.
            payload: slots x 4096 bytes; None leaves what the ring memory holds,
                which costs no copy.
        """
        count = len(headers)
        with self._room:
            self._room.wait_for(lambda: self._head - self._tail + count <= self.info.capacity)
            first = self._head
            self._head += count
            self._marks.reserve(first, _clock_ns())
        if payload is not None:
            self._ring.payload(first, count)[:] = payload
        stamped = stamp(headers, first=first, capacity=self.info.capacity)
        index = first % self.info.capacity
        before_wrap = min(count, self.info.capacity - index)
        # The last part first, as every capture publishes.
        self.headers[: count - before_wrap] = stamped[before_wrap:]
        self.headers[index : index + before_wrap] = stamped[:before_wrap]
        with self._lock:
            armed, self._armed = self._armed, False
        if armed:
            os.eventfd_write(self._wakeup, 1)
        return first

    def wait_released(self, slot: int, timeout_s: float) -> bool:
        """Waits until every slot below `slot` is released: durable on the replica."""
        with self._room:
            return self._room.wait_for(lambda: self._tail >= slot, timeout_s)

    # The consumer's side.

    def fileno(self) -> int:
        return self._wakeup

    def drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)

    def header_bytes(self, first: int, count: int) -> memoryview:
        return self._ring.header_bytes(first, count)

    def payload(self, first: int, count: int) -> memoryview:
        return self._ring.payload(first, count)

    def drop_pages(self, first: int, count: int) -> None:
        self._ring.drop_pages(first, count)

    def status(self) -> CaptureStatus:
        with self._lock:
            if not self._resync.any():
                self._missed_since_ns = MISSED_NOTHING
            return CaptureStatus(
                head=self._head,
                tail=self._tail,
                unpublished=self._head,
                gap=None,
                last_gap=None,
                mode=Mode.STREAM,
                active_regions=0,
                resync_regions=int(self._resync.sum()),
                unlogged=0,
                overflows=0,
                missed_writes=0,
                failed_writes=0,
                device_sectors=self.info.device_sectors,
                stream=self.info.stream,
                acknowledged=self._acknowledged,
                counted=self._counted,
                clock_ns=_clock_ns(),
                marks=self._marks.next,
                missed_since_ns=self._missed_since_ns,
            )

    def release(self, *, tail: int, cursor: int, acknowledged: int = 0, counted: int = 0) -> None:
        self._need_owner()
        with self._room:
            if not self._tail <= tail <= self._head:
                raise CaptureError(f"release {tail}: wanted {self._tail} to {self._head}")
            if not self._acknowledged <= acknowledged <= counted or counted < self._counted:
                raise CaptureError(
                    f"release acknowledged={acknowledged} counted={counted}: wanted no less than "
                    f"{self._acknowledged} and {self._counted}, the first at most the second"
                )
            self._tail = tail
            self._marks.release(tail)
            self._acknowledged, self._counted = acknowledged, counted
            self._armed = True
            self._room.notify_all()
        if published_count(self.headers, cursor=cursor, limit=WRITE_SLOTS_MAX):
            os.eventfd_write(self._wakeup, 1)

    def resume(self) -> int:
        self._need_owner()
        return self._head

    def read_bitmap(self, bitmap: Bitmap, *, first: int, count: int) -> bytes:
        bits = self._resync if bitmap is Bitmap.RESYNC else np.zeros_like(self._resync)
        return np.packbits(bits[first : first + count], bitorder="little").tobytes()

    def clear_bitmap(self, *, first: int, count: int) -> None:
        self._need_owner()
        self._resync[first : first + count] = False

    def mark_bitmap(self, *, first: int, count: int) -> None:
        self._need_owner()
        with self._lock:
            self._resync[first : first + count] = True
            self._missed_since_ns = MISSED_UNKNOWN

    def marks(self) -> list[Mark]:
        with self._lock:
            return self._marks.table()

    def close(self) -> None:
        os.close(self._wakeup)
        self._ring.close()
        if self._owner:
            os.unlink(self._path)

    def _need_owner(self) -> None:
        if not self._owner:
            raise CaptureError(f"capture {self._path}: an observer may not change it")


def _clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _map(fd: int, capacity: int, *, writable: bool) -> RingMap:
    return RingMap(
        fd,
        capacity=capacity,
        headers_offset=_PAGE_BYTES,
        payload_offset=_PAGE_BYTES + page_round(capacity * HEADER_BYTES),
        writable=writable,
    )
