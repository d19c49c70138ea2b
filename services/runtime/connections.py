# SPDX-License-Identifier: GPL-2.0-only
"""The TCP connections of a process: ends those that are dead, counts what they receive.

libzmq owns the descriptors, and its thread may close one at any time: each is used through a
duplicate, and only if that is still the socket that it was.

Source: `struct tcp_info` in linux/tcp.h, SO_COOKIE in socket(7).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Hashable, Iterator

from bdr.common.wire.connection import Life, LifeSettings, TcpInfo

EVERY_S = 1.0
"""Time between two examinations."""
STANDSTILL_S = 5.0
"""A longer one means that this process was suspended."""

_SO_COOKIE = 57
_TCP_INFO = struct.Struct("=24x I 24x II 60x QQ 8x I")
"""unacked, last_data_recv and last_ack_recv in ms, bytes_acked, bytes_received, notsent_bytes."""


class Connections:
    """See the module's docstring. A connection is known by its socket of ZeroMQ and descriptor."""

    def __init__(self, settings: LifeSettings | None = None) -> None:
        self._settings = settings or LifeSettings()
        self._open: dict[tuple[Hashable, int], tuple[int, Life]] = {}
        """With the cookie that identifies each."""
        self._received_bytes: dict[Hashable, int] = {}
        """Of connections that are closed."""
        self._due_at = 0.0
        self._examined_at = 0.0

    def opened(self, owner: Hashable, fd: int) -> None:
        """A connection of `owner` was accepted or established."""
        with contextlib.suppress(OSError), _borrowed(fd) as borrowed:
            self._open[owner, fd] = (_cookie(borrowed), Life(self._settings))

    def closed(self, owner: Hashable, fd: int) -> None:
        """A connection was closed."""
        found = self._open.pop((owner, fd), None)
        if found is not None:
            before = self._received_bytes.get(owner, 0)
            self._received_bytes[owner] = before + found[1].received_bytes

    def forget(self, owner: Hashable) -> None:
        """The socket is closed."""
        self._open = {key: value for key, value in self._open.items() if key[0] is not owner}
        self._received_bytes.pop(owner, None)

    def received_bytes(self, owner: Hashable) -> int:
        """Bytes that the connections of `owner` have received, as of the last examination."""
        return self._received_bytes.get(owner, 0) + sum(
            life.received_bytes for key, (_, life) in self._open.items() if key[0] is owner
        )

    def examine(self, now_at: float) -> None:
        """Shuts down what is dead, which libzmq sees as any other end; call it in each round."""
        if now_at < self._due_at:
            return
        stood_still_s = now_at - self._examined_at
        self._examined_at, self._due_at = now_at, now_at + EVERY_S
        for (owner, fd), (cookie, life) in list(self._open.items()):
            if stood_still_s > STANDSTILL_S:
                life.postpone(stood_still_s)
            try:
                with _borrowed(fd) as borrowed:
                    if _cookie(borrowed) != cookie:
                        self.closed(owner, fd)
                    elif life.is_dead(_info(borrowed), now_at):
                        borrowed.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Closed, or ended by itself: its event is under way.
                self.closed(owner, fd)


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    duplicate = socket.socket(fileno=os.dup(fd))
    try:
        yield duplicate
    finally:
        duplicate.close()


def _cookie(borrowed: socket.socket) -> int:
    return int.from_bytes(borrowed.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def _info(borrowed: socket.socket) -> TcpInfo:
    raw = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    # Older kernels have less of it.
    whole = raw.ljust(_TCP_INFO.size, b"\0")
    unacked, data_ms, ack_ms, acked, received, unsent = _TCP_INFO.unpack(whole)
    return TcpInfo(
        is_waiting=bool(unacked or unsent),
        heard_s=min(data_ms, ack_ms) / 1000,
        acked_bytes=acked,
        received_bytes=received,
    )
