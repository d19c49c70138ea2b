# SPDX-License-Identifier: GPL-2.0-only
"""How fast a scan may go. No clock here: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScanRateSettings:
    """How fast a scan may go."""

    rate: float | None = None
    """Bytes of the device a second; None for as fast as it goes."""
    behind_slots: int = 4096
    """While so many slots wait to be dispatched, live replication comes first."""
    floor: float = 16 << 20
    """Bytes a second that a scan gets even then."""
    burst_s: float = 0.25
    """What was not used is kept for so long."""


class ScanRateLimit:
    """A token bucket whose rate falls while live replication is behind."""

    def __init__(self, settings: ScanRateSettings) -> None:
        self.settings = settings
        self._tokens = 0.0
        self._refilled_at: float | None = None

    def rate(self, *, behind_slots: int) -> float | None:
        """Bytes a second now; None for no limit."""
        settings = self.settings
        if behind_slots <= settings.behind_slots:
            return settings.rate
        return settings.floor if settings.rate is None else min(settings.floor, settings.rate)

    def may_take(self, *, now_at: float, behind_slots: int) -> bool:
        """Whether some work may be taken now; then `take` must say how much it was."""
        rate = self.rate(behind_slots=behind_slots)
        passed_s = now_at - self._refilled_at if self._refilled_at is not None else 0.0
        self._refilled_at = now_at
        if rate is None:
            self._tokens = 0.0
            return True
        burst = rate * self.settings.burst_s
        self._tokens = min(burst, self._tokens + passed_s * rate)
        return self._tokens >= 0

    def take(self, size: int) -> None:
        """`size` bytes were taken; more than there were, the next wait is longer."""
        self._tokens -= size
