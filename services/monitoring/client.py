# SPDX-License-Identifier: GPL-2.0-only
"""Client of a volume's monitor: its present status, or a subscription."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import zmq

from bdr.common.errors import RetryableError, StatusError
from bdr.common.status.model import VolumeStatus, decode_status

STATUS_ENDPOINT = "status"
"""Name of the monitor's socket in a volume's run directory."""
STATUS_TOPIC = b"status"
EVENT_TOPIC = b"event"


class NoAnswerError(RetryableError):
    """The monitor is not running, or does not answer."""

    exit_code = 2


class Subscriber:
    """A subscription to one monitor.

    Args:
        context: of this process.
        run_dir: of the volume.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: str) -> None:
        self._path = Path(run_dir) / f"{STATUS_ENDPOINT}.sock"
        self.socket = context.socket(zmq.SUB)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 100)
        self.socket.set(zmq.MAXMSGSIZE, 1 << 20)
        self.socket.subscribe(STATUS_TOPIC)
        self.socket.connect(f"ipc://{self._path}")

    def status(self, timeout_s: float) -> VolumeStatus:
        """The next status; the first is sent immediately.

        Raises:
            NoAnswerError: none arrived in time, or one of another version.
        """
        try:
            is_there = self._path.exists()
        except PermissionError as error:
            raise NoAnswerError(
                f"monitor: {self._path} is not permitted to this user; run as root"
            ) from error
        if not is_there:
            raise NoAnswerError(
                f"monitor: found no socket {self._path}; wanted a running monitor: "
                "is the volume started?"
            )
        if not self.socket.poll(int(timeout_s * 1000)):
            raise NoAnswerError(
                f"monitor: no answer on {self._path} within {timeout_s:g} s; it is stopped, "
                "hangs, or has left a stale socket"
            )
        try:
            return decode_status(self.socket.recv_multipart()[-1])
        except StatusError as error:
            raise NoAnswerError(
                f"monitor: its status on {self._path}: {error}; does it run another version "
                "of BDR? Restart it"
            ) from error

    def close(self) -> None:
        """Ends the subscription."""
        self.socket.close(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
