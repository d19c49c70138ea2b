# SPDX-License-Identifier: GPL-2.0-only
"""The last release sent to the capture: freed slots, and the slot of the armed wake-up."""

from __future__ import annotations

from bdr.common.source.events import Action, Release
from bdr.common.source.order import Order, Waits


class ReleaseTracker:
    """Issues at most one `Release` per round, and only if something changed.

    Args:
        order: of the batches; slots below its tail are free.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._tail = order.tail
        self._armed: int | None = None
        """The slot of the armed wake-up; None once it has fired."""

    def woken(self) -> None:
        """The wake-up has fired, and is disarmed until the next `Release`."""
        self._armed = None

    def end_round(self, waits_for: Waits) -> list[Action]:
        """Frees durable slots, and arms the wake-up for the next slot if nothing else is
        awaited."""
        tail, cursor = self._order.tail, self._order.cursor
        has_to_arm = waits_for is Waits.RING and cursor != self._armed
        if not has_to_arm and tail == self._tail:
            return []
        self._tail, self._armed = tail, cursor
        status = self._order.status
        return [Release(tail, cursor, status.acknowledged, status.counted)]
