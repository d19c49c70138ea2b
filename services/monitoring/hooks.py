# SPDX-License-Identifier: GPL-2.0-only
"""Runs the configured command on events.

One at a time and in order, without blocking the caller: a command that exceeds the timeout is
killed, and events that cannot be queued are counted.
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Sequence

from bdr.common.status.model import HookCounts, VolumeStatus
from bdr.services.monitoring.events import Event
from bdr.services.runtime import user_command

TIMEOUT_S = 30.0
QUEUE_MAX = 64


def environment(event: Event, status: VolumeStatus) -> dict[str, str]:
    """The environment of a hook."""
    lag, condition = status.lag, status.replica.condition
    facts = {
        "EVENT": event.name,
        "VOLUME": status.volume,
        "ROLE": status.role.value,
        "TIME": status.time_utc.isoformat(timespec="milliseconds"),
        "HEALTH": status.health.value,
        "REASONS": "; ".join(status.reasons),
        "SECONDS_BEHIND": status.seconds_behind,
        "BYTES_BEHIND": lag.bytes if lag else None,
        "RPO_SECONDS": status.rpo_s,
        "CONDITION": condition.name if condition is not None else None,
        **{f"FACT_{name.upper()}": value for name, value in event.facts.items()},
    }
    return user_command.environment(facts)


class Hooks:
    """Runs a command for each event.

    Args:
        command: program and arguments; None: no command.

    Attributes:
        run: commands that exited with 0.
        failed: commands that could not be started, failed, or were killed.
        dropped: events that exceeded the queue.
    """

    def __init__(self, command: Sequence[str] | None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._queue: deque[dict[str, str]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._began_at = 0.0
        self.run = 0
        self.failed = 0
        self.dropped = 0

    @property
    def counts(self) -> HookCounts:
        """All three counts."""
        return HookCounts(run=self.run, failed=self.failed, dropped=self.dropped)

    def put(self, event: Event, status: VolumeStatus) -> None:
        """Queues the command for this event."""
        if self._command is None:
            return
        if len(self._queue) >= QUEUE_MAX:
            self.dropped += 1
            return
        self._queue.append(environment(event, status))

    def tick(self) -> None:
        """Checks the running command, and starts the next; never blocks."""
        process = self._process
        if process is not None:
            code = process.poll()
            if code is None:
                if time.monotonic() - self._began_at > self._timeout_s:
                    user_command.kill(process)
                return
            self._process = None
            if code == 0:
                self.run += 1
            else:
                self.failed += 1
        while self._queue and self._process is None:
            self._start(self._queue.popleft())

    def close(self) -> None:
        """Kills the running command; drops the queue."""
        if self._process is not None:
            user_command.kill(self._process)
            self._process.wait()
            self._process = None

    def _start(self, variables: dict[str, str]) -> None:
        assert self._command is not None
        try:
            self._process = user_command.start(self._command, variables)
            self._began_at = time.monotonic()
        except OSError:
            self.failed += 1
