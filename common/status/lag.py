# SPDX-License-Identifier: GPL-2.0-only
"""Rates of writing and of acknowledging, from samples of the ring. No I/O, no clock here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 10.0
"""Period of the rates."""


@dataclass(frozen=True, slots=True)
class Rates:
    """At one instant; in slots."""

    written_per_s: float
    acked_per_s: float

    def catch_up_s(self, slots: int) -> float | None:
        """Time until so many slots are acknowledged, at these rates; None if they never are."""
        if not slots:
            return 0.0
        rate = self.acked_per_s - self.written_per_s
        return slots / rate if rate > 0 else None


class RateMeter:
    """Takes a few samples a second; O(1) each."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, *, now_at: float, head: int, tail: int) -> None:
        """Slots below `head` are written, those below `tail` durable."""
        samples = self._samples
        if samples and (head < samples[-1][1] or tail < samples[-1][2]):
            samples.clear()  # another capture with the same path
        samples.append((now_at, head, tail))
        while now_at - samples[0][0] > WINDOW_S and len(samples) > 2:
            samples.popleft()

    @property
    def rates(self) -> Rates:
        """As of the last sample."""
        if not self._samples:
            return Rates(0.0, 0.0)
        (began_at, head, tail), (now_at, last_head, last_tail) = self._samples[0], self._samples[-1]
        elapsed_s = now_at - began_at
        if elapsed_s <= 0:
            return Rates(0.0, 0.0)
        return Rates((last_head - head) / elapsed_s, (last_tail - tail) / elapsed_s)
