# SPDX-License-Identifier: GPL-2.0-only
"""What a process does after a `HostError`: it waits, reports why, and begins anew.

What the host lacks, such as a device, a port or space, may come late or come back, and no
operator should have to start a process then. It waits longer after each failure, up to
`PAUSES_S[-1]`; after a time without one, as short as at first. It begins anew by replacing its own
program: nothing of the failed attempt remains, and supervisord and the monitor see one process.

How long to try is decided where the process is started, by the variable `RETRY`. Without it a
process ends with the error's code, as in a test or by hand.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import NoReturn

from bdr.common.errors import AddressError, HostError
from bdr.common.host.programs import RETRY, RetryMode
from bdr.services.runtime import log, reports, sockets
from bdr.services.runtime.loop import Loop, nothing
from bdr.services.runtime.reports import Reporter

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""After the first failure in succession, the second, ...; the last one from then on."""
STEADY_S = 60.0
"""A process that has worked for this time had no failure in succession."""
TICK_MS = 250
_FAILURES = "BDR_FAILURES"
_HAS_WORKED = "BDR_HAS_WORKED"
"""Variables of a process that has begun anew."""


def is_allowed(*, has_worked: bool) -> bool:
    """Whether this process waits after a `HostError`.

    Args:
        has_worked: it had everything that it needs.
    """
    mode = os.environ.get(RETRY)
    if mode == RetryMode.AFTER_START.value:
        return has_worked or _HAS_WORKED in os.environ
    return mode == RetryMode.ALWAYS.value


def wait_and_begin_anew(
    error: HostError, *, stage: str, run_dir: str | None, worked_s: float | None
) -> NoReturn:
    """Waits and replaces this program by itself; exits with 0 on SIGTERM.

    Args:
        error: why.
        run_dir: of the volume, where its monitor is; None: there is none.
        worked_s: how long the process had everything that it needs; None: never.
    """
    failures = 0 if (worked_s or 0.0) >= STEADY_S else int(os.environ.get(_FAILURES, "0"))
    pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
    log.logger().warning(
        "waiting", error=type(error).__name__, reason=str(error), retry_after_s=pause_s
    )
    if not _Wait(error, stage=stage, run_dir=run_dir).run(pause_s):
        sys.exit(0)
    log.flush()
    variables = os.environ | {_FAILURES: str(failures + 1)}
    if worked_s is not None:
        variables[_HAS_WORKED] = "1"
    # Descriptors, locks and threads end here: every descriptor of a process is close-on-exec.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


class _Wait:
    """The reports of a process that waits."""

    def __init__(self, error: HostError, *, stage: str, run_dir: str | None) -> None:
        endpoint = None
        if run_dir is not None:
            with contextlib.suppress(AddressError):
                endpoint = sockets.endpoint(run_dir, reports.ENDPOINT)
        self._loop = Loop()
        self._reporter = Reporter(
            self._loop, endpoint, stage=stage, values=lambda: None, waits_for=str(error)
        )
        self._until_at = 0.0
        self._is_due = False

    def run(self, pause_s: float) -> bool:
        """Returns true when the time has passed, false after a signal."""
        self._until_at = time.monotonic() + pause_s
        self._loop.end_on_signals()
        self._loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=nothing)
        if not self._is_due:
            self._reporter.close()
        self._loop.close()
        return self._is_due

    def _on_tick(self, now_at: float) -> None:
        self._reporter.tick(now_at)
        if now_at >= self._until_at:
            self._is_due = True
            self._loop.stop()
