# SPDX-License-Identifier: GPL-2.0-only
"""Time since a target last had something from its source: a message, or bytes of batches."""

from __future__ import annotations

import math

STANDSTILL_S = 1.0
"""A larger step between two ticks means that the process was suspended."""


class Silence:
    """Counts from the first tick, so that the source of an earlier process can reconnect."""

    def __init__(self) -> None:
        self._now_at = 0.0
        self._heard_at = math.inf

    @property
    def seconds(self) -> float:
        """Time since the last of them, as of the last tick; negative before the first tick."""
        return self._now_at - self._heard_at

    def tick(self, now_at: float) -> None:
        """Advances the time. A suspended process must not count its own pause."""
        stood_still_s = now_at - self._now_at
        if stood_still_s > STANDSTILL_S:
            self._heard_at += stood_still_s
        self._now_at = now_at
        self._heard_at = min(self._heard_at, now_at)

    def heard(self) -> None:
        """Something arrived."""
        self._heard_at = self._now_at
