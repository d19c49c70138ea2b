# SPDX-License-Identifier: GPL-2.0-only
"""For how long a target has not heard its source."""

from __future__ import annotations

import math

STANDSTILL_S = 1.0
"""A clock that jumps by more has stood still with its process: ticks come more often."""


class Silence:
    """Counts from the first tick: a source of before may come back."""

    def __init__(self) -> None:
        self._now_at = 0.0
        self._heard_at = math.inf

    @property
    def seconds(self) -> float:
        """Since the source was heard, as of the last tick."""
        return self._now_at - self._heard_at

    def tick(self, now_at: float) -> None:
        """Time passes. A suspended process must not count its own pause."""
        stood_still_s = now_at - self._now_at
        if stood_still_s > STANDSTILL_S:
            self._heard_at += stood_still_s
        self._now_at = now_at
        self._heard_at = min(self._heard_at, now_at)

    def heard(self) -> None:
        """Something came of it."""
        self._heard_at = self._now_at
