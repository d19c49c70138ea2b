# SPDX-License-Identifier: GPL-2.0-only
"""The sockets between the processes: addresses, options, limits.

The high-water mark of the applier is only a safeguard: batches in flight are bounded by the
reader's window, which is smaller. So a busy receiver still reads, and its connections live. The
marks of senders and descriptors are small: what waits there delays what another sender could send.

There are no heartbeats of ZeroMQ: a connection lives while TCP moves bytes, see `connections`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

import zmq

from bdr.common.errors import AddressError
from bdr.common.wire.batch import BATCH_FRAME_BYTES_MAX
from bdr.common.wire.codec import MESSAGE_BYTES_MAX
from bdr.services.runtime.loop import Socket

DATA_RCVHWM = 256
DATA_SNDHWM = 8
CONTROL_HWM = 64
REPORT_HWM = 4
REPORTS_RCVHWM = 64
DESCRIPTOR_HWM = 2
"""Small, so that few batches queue up for a slow sender."""

REPORT_BYTES_MAX = 64 * 1024
_CURVE_OVERHEAD_BYTES = 64
_IPC_PATH_BYTES_MAX = 107


_Options = Mapping[zmq.SocketOption, int]

_KEEPALIVE_IDLE_S, _KEEPALIVE_S, _KEEPALIVE_PROBES = 10, 5, 4
"""A connection without traffic ends when its peer has not answered for `SILENT_S`."""
HANDSHAKE_MS = 30_000
"""A handshake takes a few round trips, of seconds each behind a full queue."""

_NOTICE_DEAD_PEERS: _Options = {
    zmq.HEARTBEAT_IVL: 0,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: _KEEPALIVE_IDLE_S,
    zmq.TCP_KEEPALIVE_INTVL: _KEEPALIVE_S,
    zmq.TCP_KEEPALIVE_CNT: _KEEPALIVE_PROBES,
    zmq.IPV6: 1,
}
_FROM_NETWORK: _Options = {
    zmq.LINGER: 0,
    zmq.BACKLOG: 1024,
    **_NOTICE_DEAD_PEERS,
}
_OVER_NETWORK: _Options = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 3000,
    zmq.CONNECT_TIMEOUT: HANDSHAKE_MS,
    **_NOTICE_DEAD_PEERS,
}
_WITHIN_HOST: _Options = {
    zmq.LINGER: 0,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
}
_CONTROL: _Options = {
    zmq.SNDHWM: CONTROL_HWM,
    zmq.RCVHWM: CONTROL_HWM,
    zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX + _CURVE_OVERHEAD_BYTES,
}


def data_receiver(context: zmq.Context[Socket]) -> Socket:
    """The applier's PULL socket for batches."""
    most = {zmq.RCVHWM: DATA_RCVHWM, zmq.MAXMSGSIZE: BATCH_FRAME_BYTES_MAX + _CURVE_OVERHEAD_BYTES}
    return _made(context, zmq.PULL, _FROM_NETWORK, most)


def data_sender(context: zmq.Context[Socket]) -> Socket:
    """A sender's PUSH socket for batches."""
    return _made(context, zmq.PUSH, _OVER_NETWORK, {zmq.SNDHWM: DATA_SNDHWM})


def control_server(context: zmq.Context[Socket]) -> Socket:
    """The applier's ROUTER socket."""
    return _made(context, zmq.ROUTER, _FROM_NETWORK, _CONTROL, {zmq.ROUTER_MANDATORY: 1})


def control_client(context: zmq.Context[Socket]) -> Socket:
    """The reader's DEALER socket."""
    return _made(context, zmq.DEALER, _OVER_NETWORK, _CONTROL)


def descriptor_pusher(context: zmq.Context[Socket]) -> Socket:
    """The reader's PUSH socket towards the senders."""
    return _made(context, zmq.PUSH, _WITHIN_HOST, {zmq.SNDHWM: DESCRIPTOR_HWM})


def descriptor_puller(context: zmq.Context[Socket]) -> Socket:
    """A sender's PULL socket from the reader."""
    return _made(context, zmq.PULL, _WITHIN_HOST, {zmq.RCVHWM: DESCRIPTOR_HWM})


def event_publisher(context: zmq.Context[Socket]) -> Socket:
    """The reader's PUB socket for events."""
    return _made(context, zmq.PUB, _WITHIN_HOST, {zmq.SNDHWM: 1000})


def request_server(context: zmq.Context[Socket]) -> Socket:
    """The reader's ROUTER socket for scanners, or for commands."""
    return _made(context, zmq.ROUTER, _WITHIN_HOST)


def request_client(context: zmq.Context[Socket]) -> Socket:
    """A scanner's or command's DEALER socket to the reader of its host."""
    return _made(context, zmq.DEALER, _WITHIN_HOST, {zmq.IMMEDIATE: 1})


def report_pusher(context: zmq.Context[Socket]) -> Socket:
    """A process's PUSH socket to its monitor.

    Without a monitor nothing is queued: reports would be outdated.
    """
    return _made(context, zmq.PUSH, _WITHIN_HOST, {zmq.SNDHWM: REPORT_HWM, zmq.IMMEDIATE: 1})


def report_puller(context: zmq.Context[Socket]) -> Socket:
    """A monitor's PULL socket for reports."""
    most = {zmq.RCVHWM: REPORTS_RCVHWM, zmq.MAXMSGSIZE: REPORT_BYTES_MAX}
    return _made(context, zmq.PULL, _WITHIN_HOST, most)


def event_subscriber(context: zmq.Context[Socket]) -> Socket:
    """A monitor's SUB socket for all events of the reader."""
    made = _made(context, zmq.SUB, _WITHIN_HOST)
    made.subscribe(b"")
    return made


def status_publisher(context: zmq.Context[Socket]) -> Socket:
    """A monitor's XPUB socket, which shows each new subscriber."""
    return _made(context, zmq.XPUB, _WITHIN_HOST, {zmq.XPUB_VERBOSE: 1})


def _made(context: zmq.Context[Socket], kind: int, *options: _Options) -> Socket:
    made = context.socket(kind)
    for each in options:
        for option, value in each.items():
            made.set(option, value)
    return made


def is_readable(socket: Socket) -> bool:
    """Whether a message can be received without blocking."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def is_writable(socket: Socket) -> bool:
    """Whether a message can be sent without blocking."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLOUT)


def bind(server: Socket, endpoint: str) -> None:
    """Binds, with an error that states the cause.

    Raises:
        AddressError: the port is in use, or the address is not this host's.
    """
    try:
        server.bind(endpoint)
    except zmq.ZMQError as error:
        found = {
            errno.EADDRINUSE: "found it in use by another program",
            errno.EADDRNOTAVAIL: "found that no interface of this host has the address",
            errno.ENODEV: "found that no interface of this host has the address",
            errno.EACCES: "found it not permitted to this user",
        }.get(error.errno or 0, f"found: {error.strerror}")
        raise AddressError(
            f"cannot listen on {endpoint}: {found}; wanted a free port on an address of this host"
        ) from error


def endpoint(run_dir: str | Path, name: str) -> str:
    """The ZeroMQ address of an ipc socket in a volume's run directory.

    Raises:
        AddressError: the path is longer than a Unix socket's may be.
    """
    path = os.path.abspath(Path(run_dir) / f"{name}.sock")
    if len(os.fsencode(path)) > _IPC_PATH_BYTES_MAX:
        raise AddressError(
            f"socket path {path}: found {len(path)} characters, wanted at most "
            f"{_IPC_PATH_BYTES_MAX}; choose a shorter --run-dir"
        )
    return f"ipc://{path}"


class RunDirectory:
    """The directory of a volume's ipc sockets on this host, mode 0700; created if missing."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AddressError(
                f"run directory {path}: {error.strerror}; wanted a directory that this user may "
                "write"
            ) from error

    def endpoint(self, name: str) -> str:
        """See `endpoint`, for this directory."""
        return endpoint(self.path, name)

    def claim(self, stage: str) -> int:
        """Locks the stage for this process: a second bind would silently take over its sockets.

        Returns:
            A descriptor that holds the lock while it is open.

        Raises:
            AddressError: another process of the stage runs.
        """
        path = self.path / f"{stage}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise AddressError(
                f"{path}: found it locked by another {stage} of this volume; wanted only one: "
                "stop the other"
            ) from error
        return fd
