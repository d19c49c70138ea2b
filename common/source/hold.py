# SPDX-License-Identifier: GPL-2.0-only
"""Until when no scanner's lease may be opened.

When regions were marked or merged, the target must first have everything that the ring held
then. That is known as a slot; once the cursor has reached it, as the batch that was the last
to be dispatched.
"""

from __future__ import annotations

from bdr.common.source.order import Order


class Hold:
    """See the module's text."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._slot = 0
        self._batch: int | None = None
        """That must be durable; None while the cursor is not yet at `_slot`."""

    def begin(self) -> None:
        """Batches may have been lost, or regions were marked: from now on."""
        self._slot = self._order.head
        self._batch = None

    def update(self) -> None:
        """Notes whether the cursor has come so far."""
        if self._batch is None and self._order.cursor >= self._slot:
            self._batch = self._order.dispatched

    @property
    def is_over(self) -> bool:
        """Whether the target has everything."""
        return self._batch is not None and self._order.durable >= self._batch
