# SPDX-License-Identifier: GPL-2.0-only
"""A small NBD client of the tests' own: several requests in flight, no helpers.

Newstyle handshake with NBD_OPT_GO, simple replies. Source: the NBD protocol's
proto.md. Not thread safe: a thread has a client of its own.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Self

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")

_OPT_GO = 7
_REP_ACK = 1
_REP_INFO = 3
_INFO_EXPORT = 0
_INFO_BLOCK_SIZE = 3

READ, WRITE, DISCONNECT, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE, FAST_ZERO = 1 << 0, 1 << 1, 1 << 4

# The protocol has numbers of its own; those that differ from Linux'.
_ERRORS = {108: errno.ESHUTDOWN, 95: errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Reply:
    error: int
    """0 or an errno."""
    data: bytes


class NbdClient:
    """One connection to the server on the Unix socket `path`."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._next_cookie = 1
        self._reads: dict[int, int] = {}
        self._replies: dict[int, Reply] = {}
        self.size = 0
        self.block_sizes = (0, 0, 0)
        try:
            self._socket.connect(path)
            self._handshake()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """Sends a request; returns the cookie to wait for."""
        cookie = self._next_cookie
        self._next_cookie += 1
        if command == READ:
            self._reads[cookie] = length
        request = _REQUEST.pack(
            0x25609513, flags, command, cookie, offset, len(data) if data else length
        )
        self._socket.sendall(request + data)
        return cookie

    def wait(self, cookie: int) -> Reply:
        """The reply to a request, in whatever order they come."""
        while cookie not in self._replies:
            self._receive()
        return self._replies.pop(cookie)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        self._do(WRITE, offset, data=data, flags=flags)

    def read(self, offset: int, length: int) -> bytes:
        return self._do(READ, offset, length).data

    def flush(self) -> None:
        self._do(FLUSH)

    def trim(self, offset: int, length: int, *, flags: int = 0) -> None:
        self._do(TRIM, offset, length, flags=flags)

    def zero(self, offset: int, length: int, *, flags: int = 0) -> None:
        self._do(ZERO, offset, length, flags=flags)

    def close(self) -> None:
        """Says goodbye, so that the server has finished every request."""
        try:
            self.submit(DISCONNECT)
            while self._socket.recv(4096):
                pass
        except OSError:
            pass
        self._socket.close()

    def _do(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Reply:
        reply = self.wait(self.submit(command, offset, length, flags=flags, data=data))
        if reply.error:
            raise OSError(reply.error, f"NBD command {command} at {offset}")
        return reply

    def _handshake(self) -> None:
        magic, kind, _ = _GREETING.unpack(self._exactly(_GREETING.size))
        assert (magic, kind) == (b"NBDMAGIC", b"IHAVEOPT")
        self._socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        wanted = struct.pack(">IHH", 0, 1, _INFO_BLOCK_SIZE)
        self._socket.sendall(_OPTION.pack(b"IHAVEOPT", _OPT_GO, len(wanted)) + wanted)
        while True:
            _, _, reply, length = _OPTION_REPLY.unpack(self._exactly(_OPTION_REPLY.size))
            body = self._exactly(length)
            if reply == _REP_ACK:
                return
            assert reply == _REP_INFO, f"server refused: {reply:#x} {body!r}"
            (kind_of_info,) = struct.unpack_from(">H", body)
            if kind_of_info == _INFO_EXPORT:
                (self.size,) = struct.unpack_from(">Q", body, 2)
            elif kind_of_info == _INFO_BLOCK_SIZE:
                self.block_sizes = struct.unpack_from(">III", body, 2)

    def _receive(self) -> None:
        magic, error, cookie = _REPLY.unpack(self._exactly(_REPLY.size))
        assert magic == 0x67446698
        length = self._reads.pop(cookie, 0)
        data = self._exactly(length) if not error else b""
        self._replies[cookie] = Reply(_ERRORS.get(error, error), data)

    def _exactly(self, length: int) -> bytes:
        chunks = []
        while length:
            chunk = self._socket.recv(length)
            if not chunk:
                raise ConnectionError("the NBD server closed the connection")
            chunks.append(chunk)
            length -= len(chunk)
        return b"".join(chunks)
