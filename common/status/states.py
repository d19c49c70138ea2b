# SPDX-License-Identifier: GPL-2.0-only
"""The words of a status. No I/O here.

Their values are what users see, in `bdr status`, in JSON and in Prometheus' labels.
"""

from __future__ import annotations

from enum import Enum


class VolumeRole(Enum):
    """Which side of a volume a host is."""

    SOURCE = "source"
    TARGET = "target"


class HealthState(Enum):
    """From good to bad; `common.status.health` says what each means."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RESYNCING = "resyncing"
    BEHIND = "behind"
    UNKNOWN = "unknown"
    BROKEN = "broken"

    @property
    def exit_code(self) -> int:
        """Of `bdr status`."""
        return {"healthy": 0, "broken": 2, "unknown": 2}.get(self.value, 1)


class StageState(Enum):
    """What is known of a process."""

    REPORTING = "reporting"
    STARTING = "starting"
    """Expected, and no report yet."""
    SILENT = "silent"
    STOPPED = "stopped"
    """It has sent its last report, or does not exist any more."""


class ConnectionState(Enum):
    """The conversation of source and target, as one of them sees it."""

    # On the source: the names of `common.source.session.Phase`.
    OFFLINE = "OFFLINE"
    GREETING = "GREETING"
    STREAMING = "STREAMING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    # On the target.
    CONNECTED = "CONNECTED"
    """A session is open."""
    WAITING = "WAITING"
