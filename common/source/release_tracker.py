# SPDX-License-Identifier: GPL-2.0-only
"""What the capture was told last: which slots are free, and which slot to wake the reader for."""

from __future__ import annotations

from bdr.common.source.events import Action, Release
from bdr.common.source.order import Order, Waits


class ReleaseTracker:
    """Tells the capture once for a round, and only what is news.

    Args:
        order: of the batches; slots below its tail are free.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._tail = order.tail
        self._armed: int | None = None
        """The slot that the capture wakes the reader for, until it has."""

    def woken(self) -> None:
        """The capture has woken the reader, and will not again until it is asked to."""
        self._armed = None

    def end_round(self, waits_for: Waits) -> list[Action]:
        """Frees what may be, and asks to be woken for the next slot if nothing else will."""
        tail, cursor = self._order.tail, self._order.cursor
        has_to_arm = waits_for is Waits.RING and cursor != self._armed
        if not has_to_arm and tail == self._tail:
            return []
        self._tail, self._armed = tail, cursor
        return [Release(tail, cursor)]
