# SPDX-License-Identifier: GPL-2.0-only
"""The capture of the nbdkit plugin `bdr`: requests over a Unix socket.

A request packet is `struct bdr_request` and its argument, a reply packet is `struct bdr_reply` and
its result. The reply to the first request, OPEN, has two descriptors: the ring's memory, and an
eventfd for wake-ups. See `kern/include/bdr_uapi.h`.

`fileno` is an epoll descriptor over the eventfd and the socket, so a poller
wakes up when the server ends, too: `drain_wakeup` then raises.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, CaptureInfo, CaptureStatus, Role
from bdr.common.errors import CaptureError, CaptureGoneError
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.ring.mapping import RingMap
from bdr.common.ring.marks import MARK, Mark, decode_marks

if TYPE_CHECKING:
    from bdr.common.ring.slots import Headers

_REPLY_BYTES_MAX = abi.REPLY.size + abi.BITMAP_CHUNK_REGIONS // 8

OBSERVER_WAITS_S = 3.0
_HINTS = {
    errno.EPERM: "an observer may not change it",
    errno.ERANGE: "out of range",
    errno.EUSERS: "too many clients are connected",
    errno.EPROTONOSUPPORT: f"its ABI version is not {abi.ABI_VERSION}",
    errno.ENOTTY: "unknown request",
}


class NbdCapture:
    """Implements `common.capture.api.Capture` for the plugin whose `ring=` is `path`.

    Raises:
        CaptureError: no server of this ABI version listens at `path`, or the consumer role is
            taken.
    """

    def __init__(self, path: str, role: Role) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if role is Role.OBSERVER:
            # An observer reports a server that does not answer, instead of blocking.
            self._socket.settimeout(OBSERVER_WAITS_S)
        self._wakeup = -1
        self._epoll: select.epoll | None = None
        try:
            self._connect()
            memory, self._wakeup = self._open(role)
            try:
                self.info, payload_offset = self._info()
                self._ring = self._map(memory, self.info, payload_offset)
            finally:
                os.close(memory)
                self._epoll = select.epoll()
            self._epoll.register(self._wakeup, select.EPOLLIN)
            self._epoll.register(self._socket, select.EPOLLRDHUP)
        except BaseException:
            self._close_descriptors()
            raise

    def fileno(self) -> int:
        return self._open_epoll().fileno()

    def drain_wakeup(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        if any(fd == self._socket.fileno() for fd, _ in self._open_epoll().poll(0)):
            raise self._gone("the server closed the connection")

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
        return abi.decode_status(self._request(abi.IOC_STATUS, wanted=abi.STATUS.size))

    def release(self, *, tail: int, cursor: int, acknowledged: int = 0, counted: int = 0) -> None:
        self._request(abi.IOC_RELEASE, abi.RELEASE.pack(tail, cursor, acknowledged, counted))

    def resume(self) -> int:
        (slot,) = abi.RESUME.unpack(self._request(abi.IOC_RESUME, wanted=abi.RESUME.size))
        return int(slot)

    def read_bitmap(self, bitmap: Bitmap, *, first: int, count: int) -> bytes:
        chunks = []
        for at in range(first, first + count, abi.BITMAP_CHUNK_REGIONS):
            regions = min(abi.BITMAP_CHUNK_REGIONS, first + count - at)
            words = -(-regions // 64)
            chunks.append(
                self._request(
                    abi.IOC_BITMAP_READ,
                    abi.BITMAP.pack(at, regions, bitmap, 0, 0),
                    wanted=words * 8,
                )
            )
        return b"".join(chunks)[: -(-count // 8)]

    def clear_bitmap(self, *, first: int, count: int) -> None:
        self._request(abi.IOC_BITMAP_CLEAR, abi.BITMAP.pack(first, count, Bitmap.RESYNC, 0, 0))

    def mark_bitmap(self, *, first: int, count: int) -> None:
        self._request(abi.IOC_BITMAP_MARK, abi.BITMAP.pack(first, count, Bitmap.RESYNC, 0, 0))

    def marks(self) -> list[Mark]:
        request = abi.MARKS.pack(0, 0, 0)
        raw = self._request(abi.IOC_MARKS_READ, request, wanted=None)
        if len(raw) % MARK.size:
            raise CaptureError(
                f"capture {self._path}: its answer to MARKS_READ has {len(raw)} bytes, wanted "
                f"a multiple of {MARK.size}"
            )
        return decode_marks(raw)

    def close(self) -> None:
        self._close_descriptors()
        self._ring.close()

    def _connect(self) -> None:
        try:
            self._socket.connect(self._path)
        except OSError as error:
            raise CaptureError(
                f"capture {self._path}: {error.strerror}; wanted the ring= socket of a running "
                "nbdkit with the plugin bdr: is the device attached?"
            ) from error

    def _open(self, role: Role) -> tuple[int, int]:
        """Sends OPEN; returns the descriptors of the memory and of the eventfd."""
        request = abi.OPEN.pack(abi.ABI_VERSION, role.value)
        self._send(abi.IOC_OPEN, request)
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._socket, _REPLY_BYTES_MAX, 2)
        except OSError as error:
            raise self._gone(error) from error
        try:
            self._check(abi.IOC_OPEN, request, packet, wanted=0)
            if len(descriptors) != 2:
                raise CaptureError(
                    f"capture {self._path}: its answer to OPEN came with {len(descriptors)} "
                    "descriptors, wanted 2 (out of file descriptors?)"
                )
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        memory, wakeup = descriptors
        return memory, wakeup

    def _info(self) -> tuple[CaptureInfo, int]:
        try:
            return abi.decode_info(self._request(abi.IOC_INFO, wanted=abi.INFO.size))
        except ValueError as error:
            raise CaptureError(f"capture {self._path}: {error}") from error

    def _map(self, memory: int, info: CaptureInfo, payload_offset: int) -> RingMap:
        """Maps the ring after checking the file's size: an access beyond its end is SIGBUS."""
        wanted = payload_offset + info.capacity * PAYLOAD_BYTES
        found = os.fstat(memory).st_size
        if found < wanted:
            raise CaptureError(
                f"capture {self._path}: its memory has {found} bytes, wanted {wanted} for "
                f"{info.capacity} slots"
            )
        return RingMap(
            memory, capacity=info.capacity, headers_offset=0, payload_offset=payload_offset
        )

    def _request(self, code: int, argument: bytes = b"", *, wanted: int | None = 0) -> bytes:
        """One request and its result, which must have `wanted` bytes; None: any number."""
        self._send(code, argument)
        try:
            packet = self._socket.recv(_REPLY_BYTES_MAX)
        except OSError as error:
            raise self._gone(error) from error
        return self._check(code, argument, packet, wanted=wanted)

    def _send(self, code: int, argument: bytes) -> None:
        try:
            self._socket.send(abi.REQUEST.pack(code, 0) + argument)
        except OSError as error:
            raise self._gone(error) from error

    def _check(self, code: int, argument: bytes, packet: bytes, *, wanted: int | None) -> bytes:
        if not packet:
            raise self._gone("the server closed the connection")
        name = abi.REQUEST_NAMES[code]
        if len(packet) < abi.REPLY.size:
            raise CaptureError(f"capture {self._path}: its answer to {name} is not a BDR packet")
        error, _ = abi.REPLY.unpack_from(packet)
        if error:
            raise CaptureError(
                f"capture {self._path}: {name}{_values(code, argument)} refused: "
                f"{_hint(code, error)}"
            ) from OSError(error, os.strerror(error))
        result = packet[abi.REPLY.size :]
        if wanted is not None and len(result) != wanted:
            raise CaptureError(
                f"capture {self._path}: its answer to {name} has {len(result)} bytes, "
                f"wanted {wanted}"
            )
        return result

    def _gone(self, why: str | OSError) -> CaptureGoneError:
        # A timeout is an OSError without strerror.
        why = (why.strerror or str(why)) if isinstance(why, OSError) else why
        return CaptureGoneError(f"capture {self._path}: gone ({why}); is its nbdkit running?")

    def _open_epoll(self) -> select.epoll:
        if self._epoll is None:
            raise CaptureError(f"capture {self._path}: closed")
        return self._epoll

    def _close_descriptors(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._wakeup >= 0:
            os.close(self._wakeup)
            self._wakeup = -1
        self._socket.close()


def _hint(code: int, error: int) -> str:
    if error == errno.EBUSY:
        if code == abi.IOC_OPEN:
            return "another process is the consumer (a reader that still runs?)"
        return "a slot below the tail is still in flight"
    return _HINTS.get(error, os.strerror(error))


def _values(code: int, argument: bytes) -> str:
    """The request's arguments, as an error message shows them."""
    if code == abi.IOC_RELEASE:
        names = "tail={} cursor={} acknowledged={} counted={}"
        return " " + names.format(*abi.RELEASE.unpack(argument))
    if code in (abi.IOC_BITMAP_READ, abi.IOC_BITMAP_CLEAR, abi.IOC_BITMAP_MARK):
        first, count, *_ = abi.BITMAP.unpack(argument)
        return f" first={first} count={count}"
    return ""
