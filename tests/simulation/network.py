# SPDX-License-Identifier: GPL-2.0-only
"""One direction of one connection: in order, with a delay, until it is cut.

What was in flight at a cut is lost from some message on; what is not lost may
still arrive long after the connection's end was noticed, as it does when a
kernel retransmits. Between connections there is no order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from tests.simulation.clock import Clock

M = TypeVar("M")


class Channel(Generic[M]):
    """Delivers messages to `deliver`, one after the other."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        deliver: Callable[[M], None],
        *,
        delay_s: tuple[float, float],
        duplicates: float = 0.0,
    ) -> None:
        self.is_open = True
        self.is_held = False
        self._clock = clock
        self._rng = rng
        self._deliver = deliver
        self._delay_s = delay_s
        self._duplicates = duplicates
        self._waiting: deque[tuple[float, M]] = deque()
        self._is_planned = False

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, message: M) -> None:
        """Takes a message; nothing says whether it arrives."""
        if not self.is_open:
            return
        due_s = self._clock.now_s + self._rng.uniform(*self._delay_s)
        self._waiting.append((due_s, message))
        if self._duplicates and self._rng.random() < self._duplicates:
            late_s = self._rng.expovariate(2.0)
            self._clock.after(late_s, lambda: self._deliver(message))
        self._plan()

    def hold(self) -> None:
        """A partition: nothing arrives until `let_go`."""
        self.is_held = True

    def let_go(self) -> None:
        """The partition is over."""
        self.is_held = False
        self._plan()

    def cut(self) -> None:
        """The connection ends: a tail of what is in flight is lost."""
        self.is_open = False
        kept = self._rng.randint(0, len(self._waiting))
        while len(self._waiting) > kept:
            self._waiting.pop()

    def _plan(self) -> None:
        if self._waiting and not self._is_planned and not self.is_held:
            self._is_planned = True
            self._clock.after(max(0.0, self._waiting[0][0] - self._clock.now_s), self._arrive)

    def _arrive(self) -> None:
        self._is_planned = False
        if self.is_held or not self._waiting:
            return
        _, message = self._waiting.popleft()
        self._plan()
        self._deliver(message)
