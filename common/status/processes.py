# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a volume: expected ones, and their last reports. No I/O here.

A process is known once it was expected or has reported. If the set of expected processes is given,
all others are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bdr.common.status.model import StageStatus
from bdr.common.status.reports import Report
from bdr.common.status.states import StageState

SILENT_AFTER_S = 3.0
"""A process reports every second; without a report for this time it counts as silent."""

IsAlive = Callable[[int], bool]
"""Whether a process with this id exists: a killed process sends no last report."""


@dataclass(slots=True)
class _Known:
    stage: str
    first_at: float
    report: Report | None = None
    pids: int = 0
    """Number of processes that had the name."""


class Processes:
    """Takes reports, and derives the state of each process."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def take(self, report: Report) -> None:
        """Takes a report; ignored if it is of another stage, or older than the last."""
        known = self._known.setdefault(report.name, _Known(report.stage, report.sent_at))
        if known.stage != report.stage:
            return
        if known.report is None or known.report.pid != report.pid:
            known.pids += 1
        elif report.sent_at < known.report.sent_at:
            return
        known.report = report

    def expect(self, stages: Mapping[str, str], now_at: float) -> None:
        """Sets the expected processes: name to stage."""
        kept = {name: known for name, known in self._known.items() if name in stages}
        new = {name: _Known(stage, now_at) for name, stage in stages.items() if name not in kept}
        self._known = kept | new

    def stages(self, now_at: float, is_alive: IsAlive) -> tuple[StageStatus, ...]:
        """The present state of each process, by name."""
        return tuple(
            _stage(name, known, now_at, is_alive) for name, known in sorted(self._known.items())
        )


def _stage(name: str, known: _Known, now_at: float, is_alive: IsAlive) -> StageStatus:
    report = known.report
    age_s = max(0.0, now_at - (report.sent_at if report else known.first_at))
    is_running = report is not None and not report.is_last and is_alive(report.pid)
    if report is not None and not is_running:
        state = StageState.STOPPED
    elif age_s > SILENT_AFTER_S:
        state = StageState.SILENT
    elif report is not None and report.waits_for is not None:
        state = StageState.WAITING
    else:
        state = StageState.REPORTING if report else StageState.STARTING
    return StageStatus(
        name=name,
        stage=known.stage,
        state=state,
        age_s=round(age_s, 3),
        restarts=max(0, known.pids - 1),
        pid=report.pid if report and is_running else None,
        values=report.values if report else None,
        waits_for=report.waits_for if report and state is StageState.WAITING else None,
        lost_lines=report.lost_lines if report else 0,
    )
