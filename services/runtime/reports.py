# SPDX-License-Identifier: GPL-2.0-only
"""How a process tells its volume's monitor how it is doing.

Once a second from its tick, and at once when `key` changes, a process pushes the
present values of its counters and states. The counters are absolute, so a lost
report loses nothing; nothing waits: without a monitor, or with a busy one, the
report is dropped.

A report is a msgpack map:

========= =======================================================================
version   1
stage     reader, sender, ...
name      the process's own name, such as db-sender-2
pid       its process id
sent_s    CLOCK_MONOTONIC of its sending: comparable within a host
is_last   true: the process is ending in an orderly way
values    map of name to number, text or nothing; documented in docs/metrics.md
========= =======================================================================
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import zmq

from bdr.services.runtime import sockets
from bdr.services.runtime.loop import Loop

ENDPOINT = "metrics"
"""Name of the monitor's socket in a volume's run directory."""

VERSION = 1
EVERY_S = 1.0
REPORT_BYTES_MAX = 64 * 1024
_GOODBYE_MS = 200

Value = int | float | str | bool | None
Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Report:
    """What one process said."""

    stage: str
    name: str
    pid: int
    sent_s: float
    is_last: bool
    values: Values


def encode(report: Report) -> bytes:
    """As it crosses the socket."""
    data: bytes = msgpack.packb(
        {
            "version": VERSION,
            "stage": report.stage,
            "name": report.name,
            "pid": report.pid,
            "sent_s": report.sent_s,
            "is_last": report.is_last,
            "values": dict(report.values),
        }
    )
    return data


def decode(data: bytes) -> Report | None:
    """A report, or None where the bytes are none of this version."""
    try:
        raw: Any = msgpack.unpackb(data, raw=False)
        if raw["version"] != VERSION:
            return None
        values = raw["values"]
        report = Report(
            stage=raw["stage"],
            name=raw["name"],
            pid=raw["pid"],
            sent_s=raw["sent_s"],
            is_last=raw["is_last"],
            values=values,
        )
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None
    is_typed = (
        isinstance(report.stage, str)
        and isinstance(report.name, str)
        and isinstance(report.pid, int)
        and isinstance(report.sent_s, int | float)
        and isinstance(values, dict)
        and all(
            isinstance(name, str) and (value is None or isinstance(value, int | float | str))
            for name, value in values.items()
        )
    )
    return report if is_typed else None


class Reporter:
    """A process's end.

    Args:
        loop: whose context the socket is made in.
        endpoint: the monitor's ZeroMQ address; None for no reports.
        stage: reader, sender, ...
        values: takes the present values; called once a second.
    """

    def __init__(
        self, loop: Loop, endpoint: str | None, *, stage: str, values: Callable[[], Values]
    ) -> None:
        self._stage = stage
        self._name = os.environ.get("SUPERVISOR_PROCESS_NAME", f"{stage}-{os.getpid()}")
        self._values = values
        self._due_s = 0.0
        self._key: Hashable = None
        self._socket = None
        if endpoint is not None:
            self._socket = sockets.report_pusher(loop.context)
            self._socket.connect(endpoint)

    def tick(self, now_s: float, key: Hashable = None) -> None:
        """Reports if a second has passed, or if `key` differs from the last time."""
        if now_s < self._due_s and key == self._key:
            return
        if self._send(is_last=False):
            self._key = key
            self._due_s = now_s + EVERY_S

    def close(self) -> None:
        """Reports for the last time; call before the loop is closed."""
        if self._socket is not None:
            self._send(is_last=True)
            self._socket.close(linger=_GOODBYE_MS)
            self._socket = None

    def _send(self, *, is_last: bool) -> bool:
        if self._socket is None:
            return True
        report = Report(
            self._stage, self._name, os.getpid(), time.monotonic(), is_last, self._values()
        )
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode(report), zmq.NOBLOCK)
            return True
        return False
