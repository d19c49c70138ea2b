# SPDX-License-Identifier: GPL-2.0-only
"""Simulated time: a heap of things to do. Nothing here looks at a real clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Thing = Callable[[], None]


class Clock:
    """Runs things in the order of their time; of one time, in the order of their planning."""

    def __init__(self) -> None:
        self.now_at = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Thing]] = []
        self._planned = 0

    def after(self, delay_s: float, thing: Thing) -> None:
        """Plans `thing` for `delay_s` from now."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now_at + delay_s, self._planned, thing))

    def step(self) -> None:
        """Moves on to the next thing and does it."""
        self.now_at, _, thing = heapq.heappop(self._heap)
        self.steps += 1
        thing()


class Process:
    """A part that can be killed: what was planned for it dies with it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.alive = True

    def after(self, delay_s: float, thing: Thing) -> None:
        """Plans `thing`, unless the process is dead by then."""
        self.clock.after(delay_s, lambda: thing() if self.alive else None)

    def kill(self) -> None:
        """As SIGKILL does."""
        self.alive = False
