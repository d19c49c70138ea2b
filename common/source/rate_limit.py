# SPDX-License-Identifier: GPL-2.0-only
"""Limits the rate of a scan. No clock here: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScanRateSettings:
    """Rates of a scan."""

    rate: float | None = None
    """Bytes of the device per second; None: unlimited."""
    behind_slots: int = 4096
    """While more slots than this wait to be dispatched, live replication has priority."""
    floor: float = 16 << 20
    """Bytes per second of a scan meanwhile."""
    burst_s: float = 0.25
    """Unused tokens are kept for this time."""


class ScanRateLimit:
    """A token bucket whose rate falls while live replication is behind."""

    def __init__(self, settings: ScanRateSettings) -> None:
        self.settings = settings
        self._tokens = 0.0
        self._refilled_at: float | None = None

    def rate(self, *, behind_slots: int) -> float | None:
        """Bytes per second now; None: unlimited."""
        settings = self.settings
        if behind_slots <= settings.behind_slots:
            return settings.rate
        return settings.floor if settings.rate is None else min(settings.floor, settings.rate)

    def may_take(self, *, now_at: float, behind_slots: int) -> bool:
        """Whether work may be taken now; if so, the caller passes its size to `take`."""
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
        """Consumes `size` bytes; may overdraw, which lengthens the next wait."""
        self._tokens -= size
