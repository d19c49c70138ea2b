# SPDX-License-Identifier: GPL-2.0-only
"""The last `Release`: which slots are free, what is durable, which wake-up is armed.

The capture outlives this process, and keeps for the next one how many changes of the stream
are durable on the target (`acknowledged`: set before a bit is cleared because of them), and
how many were sent (`counted`: set before they are). So a capture that goes back with the
memory of its host has fewer than the target.
"""

from __future__ import annotations

from bdr.common.source.events import Action, ClearRegions, Release
from bdr.common.source.order import Order, Waits


class ReleaseTracker:
    """Issues at most one `Release` per round, and only if something changed.

    Args:
        order: of the batches; slots below its tail are free.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._tail = order.tail
        self._acknowledged = order.status.acknowledged
        self._counted = order.status.counted
        self._armed: int | None = None
        """The slot of the armed wake-up; None once it has fired."""

    def woken(self) -> None:
        """The wake-up has fired, and is disarmed until the next `Release`."""
        self._armed = None

    def end_round(self, waits_for: Waits) -> list[Action]:
        """Frees durable slots, and arms the wake-up for the next slot if nothing else is
        awaited."""
        has_to_arm = waits_for is Waits.RING and self._order.cursor != self._armed
        is_news = self._order.window.acknowledged > self._acknowledged
        if not has_to_arm and self._order.tail == self._tail and not is_news:
            return []
        return [self._release()]

    @property
    def counted(self) -> int:
        """The bound that the capture has."""
        return self._counted

    def before(self, actions: list[Action]) -> list[Action]:
        """The `Release` that must precede these actions, if any."""
        window = self._order.window
        is_beyond = window.changes > self._counted
        clears = any(isinstance(each, ClearRegions) for each in actions)
        if is_beyond:
            self._counted = window.changes
        if is_beyond or (clears and window.acknowledged > self._acknowledged):
            return [self._release()]
        return []

    def _release(self) -> Release:
        window, cursor = self._order.window, self._order.cursor
        self._tail, self._acknowledged = window.tail, window.acknowledged
        # Arms for the cursor too, whether it is awaited or not: who has woken looks again.
        self._armed = cursor
        return Release(window.tail, cursor, window.acknowledged, self._counted)
