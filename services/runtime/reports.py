# SPDX-License-Identifier: GPL-2.0-only
"""Sends a process's reports to its volume's monitor.

Once a second from its tick, and immediately when `key` changes, a process sends the present values
of its counters and states (`common.status.reports`), or why it waits. Sending never blocks: without
a monitor, or with a busy one, the report is dropped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable

import zmq

from bdr.common.status.reports import Report, StageValues, encode_report
from bdr.services.runtime import log, sockets
from bdr.services.runtime.loop import Loop

ENDPOINT = "metrics"
"""Name of the monitor's socket in a volume's run directory."""

EVERY_S = 1.0
_GOODBYE_MS = 200


class Reporter:
    """The sending end.

    Args:
        loop: whose context the socket belongs to.
        endpoint: the monitor's ZeroMQ address; None: no reports.
        stage: reader, sender, ...
        values: returns the present values; called once a second. None of a process that waits.
        waits_for: what it lacks, for people.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: str | None,
        *,
        stage: str,
        values: Callable[[], StageValues | None],
        waits_for: str | None = None,
    ) -> None:
        self._stage = stage
        self._name = os.environ.get("SUPERVISOR_PROCESS_NAME", f"{stage}-{os.getpid()}")
        self._values = values
        self._waits_for = waits_for
        self._due_at = 0.0
        self._key: Hashable = None
        self._socket = None
        if endpoint is not None:
            self._socket = sockets.report_pusher(loop.context)
            self._socket.connect(endpoint)

    def tick(self, now_at: float, key: Hashable = None) -> None:
        """Sends a report if a second has passed, or if `key` has changed."""
        if now_at < self._due_at and key == self._key:
            return
        if self._send(is_last=False):
            self._key = key
            self._due_at = now_at + EVERY_S

    def close(self) -> None:
        """Sends the last report; call before the loop is closed."""
        if self._socket is not None:
            self._send(is_last=True)
            self._socket.close(linger=_GOODBYE_MS)
            self._socket = None

    def _send(self, *, is_last: bool) -> bool:
        if self._socket is None:
            return True
        report = Report(
            self._stage,
            self._name,
            os.getpid(),
            time.monotonic(),
            is_last,
            self._values(),
            waits_for=self._waits_for,
            lost_lines=log.lost_lines(),
        )
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode_report(report), zmq.NOBLOCK)
            return True
        return False
