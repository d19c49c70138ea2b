# SPDX-License-Identifier: GPL-2.0-only
"""The condition for opening scanners' leases.

After regions were marked or merged, everything that the ring held at that time must first be
durable on the target. That position is a slot; once the cursor has reached it, the number of the
last dispatched batch.
"""

from __future__ import annotations

from bdr.common.source.order import Order


class Hold:
    """See the module's docstring."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._slot = 0
        self._batch: int | None = None
        """The batch that must be durable; None while the cursor is below `_slot`."""

    def begin(self) -> None:
        """Starts a hold: batches may have been lost, or regions were marked."""
        self._slot = self._order.head
        self._batch = None

    def update(self) -> None:
        """Records the batch once the cursor has reached the slot."""
        if self._batch is None and self._order.cursor >= self._slot:
            self._batch = self._order.dispatched

    @property
    def is_over(self) -> bool:
        """Whether everything is durable on the target."""
        return self._batch is not None and self._order.durable >= self._batch
