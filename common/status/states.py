# SPDX-License-Identifier: GPL-2.0-only
"""Enumerations of a status. No I/O here.

Their values are visible in `bdr status`, in JSON and in Prometheus labels.
"""

from __future__ import annotations

from enum import Enum


class VolumeRole(Enum):
    """The side of a volume that a host is."""

    SOURCE = "source"
    TARGET = "target"


class HealthState(Enum):
    """From good to bad; `common.status.health` defines each."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RESYNCING = "resyncing"
    BEHIND = "behind"
    PROMOTED = "promoted"
    UNKNOWN = "unknown"
    BROKEN = "broken"

    @property
    def exit_code(self) -> int:
        """The exit code of `bdr status`."""
        return {"healthy": 0, "broken": 2, "unknown": 2}.get(self.value, 1)


class StageState(Enum):
    """The state of a process."""

    REPORTING = "reporting"
    STARTING = "starting"
    """Expected, without a report yet."""
    WAITING = "waiting"
    """Lacks something of the host, and tries again."""
    SILENT = "silent"
    STOPPED = "stopped"
    """Has sent its last report, or does not exist any more."""


class ConnectionState(Enum):
    """The session of source and target, as seen by one of them."""

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
