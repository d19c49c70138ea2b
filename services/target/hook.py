# SPDX-License-Identifier: GPL-2.0-only
"""Runs the hook before a usable replica is changed to something else, in a thread of its own."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence

from bdr.common.errors import BdrError
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.events import HookEnded, RunHook
from bdr.common.target.hook import HookOutcome
from bdr.services.runtime import user_command
from bdr.services.runtime.workers import Tasks, Workers
from bdr.services.target.store import StoreWorker

_KILLED_S = 5.0
"""A command that is not gone so long after a SIGKILL hangs in the kernel, and is left there."""


def environment(action: RunHook, *, target: str) -> dict[str, str]:
    """The environment of the command."""
    record = action.record
    facts = {
        "EVENT": "before-resync",
        "VOLUME": record.volume,
        "ROLE": "target",
        "TARGET": target,
        "CAUSE": action.cause.value,
        "CONDITION": record.condition.name,
        "SOURCE": record.source.hex(),
        "STREAM": record.stream.hex(),
        "SLOT": record.slot,
        "CHANGES": record.changes,
        "AS_OF_UTC": record.as_of_utc,
    }
    return user_command.environment(facts)


class Hook:
    """Takes actions from the applier's loop, and returns events to it.

    Args:
        command: program and arguments.
        timeout_s: after this time it is killed.
        device: of the replica.
        worker: applies its jobs.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        device: TargetDevice,
        worker: StoreWorker,
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._device = device
        self._worker = worker
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closing = False
        self._starting = threading.Lock()
        self._workers = Workers(self._run, threads=1, name="hook")

    def fileno(self) -> int:
        """Polls readable when the command has ended."""
        return self._workers.fileno()

    def put(self, action: RunHook) -> None:
        """Queues a run; never blocks."""
        self._workers.put(action)

    def ended(self) -> list[HookEnded]:
        """Runs that have ended since the last call."""
        return list(self._workers.results())

    def close(self) -> None:
        """Kills the command, and ends the thread."""
        with self._starting:
            self._is_closing = True
            if self._process is not None:
                user_command.kill(self._process)
        self._workers.discard()
        self._workers.close()

    def _run(self, actions: Tasks[RunHook]) -> Iterator[HookEnded]:
        for action in actions:
            try:
                self._worker.wait_applied()
                # A snapshot of the device does not have what is in the page cache only.
                self._device.sync()
                yield self._call(environment(action, target=self._device.path))
            except (BdrError, OSError) as error:
                yield HookEnded(HookOutcome.FAILED, str(error))

    def _call(self, variables: dict[str, str]) -> HookEnded:
        with self._starting:
            if self._is_closing:
                return HookEnded(HookOutcome.FAILED, "the applier stops")
            self._process = process = user_command.start(self._command, variables)
        try:
            code = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            user_command.kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILLED_S)
            return HookEnded(HookOutcome.TIMED_OUT, f"killed after {self._timeout_s:g} s")
        finally:
            with self._starting:
                self._process = None
        if code:
            return HookEnded(HookOutcome.FAILED, f"exit code {code}")
        return HookEnded(HookOutcome.GOOD, "")
