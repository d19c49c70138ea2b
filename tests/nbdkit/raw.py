# SPDX-License-Identifier: GPL-2.0-only
"""A client of the control socket that is not bound to its rules."""

from __future__ import annotations

import os
import socket

from bdr.common.capture import abi
from bdr.common.capture.api import Role
from tests.nbdkit.server import DEADLINE_S, Server


class Raw:
    """A client that sends what it likes."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(server.ring)
        self.fds: list[int] = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)
        self.socket.close()

    def send(self, packet: bytes) -> int:
        """The error of the answer."""
        self.socket.send(packet)
        answer, fds, _, _ = socket.recv_fds(self.socket, 1 << 17, 4)
        self.fds += fds
        error, reserved = abi.REPLY.unpack_from(answer)
        assert reserved == 0
        if error:
            assert len(answer) == abi.REPLY.size
        return int(error)

    def ask(self, code: int, argument: bytes = b"") -> int:
        return self.send(abi.REQUEST.pack(code, 0) + argument)

    def open(self, role: Role, version: int = abi.ABI_VERSION) -> int:
        return self.ask(abi.IOC_OPEN, abi.OPEN.pack(version, role.value))
