# SPDX-License-Identifier: GPL-2.0-only
"""Buffer for batches that arrive out of order."""

from __future__ import annotations

from bdr.common.wire.batch import Batch


class ReorderBuffer:
    """Bounded by batch numbers and by bytes.

    Args:
        batches: most batches that one may be ahead of the next.
        size: most bytes of buffered batches.
    """

    def __init__(self, *, batches: int, size: int) -> None:
        self._batches_max = batches
        self._size_max = size
        self._size = 0
        self._waiting: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    @property
    def lowest(self) -> int | None:
        """Lowest buffered batch number."""
        return min(self._waiting, default=None)

    def put(self, batch: Batch, *, wanted: int) -> bool:
        """Buffers a batch; returns whether there was room.

        Args:
            wanted: number of the next batch in order.
        """
        ahead = batch.header.number - wanted
        if ahead > self._batches_max or self._size + batch.size > self._size_max:
            return False
        self._waiting[batch.header.number] = batch
        self._size += batch.size
        return True

    def take(self, number: int) -> Batch | None:
        """Removes and returns the batch of this number, if it is buffered."""
        batch = self._waiting.pop(number, None)
        if batch is not None:
            self._size -= batch.size
        return batch

    def clear(self) -> None:
        """Drops all batches."""
        self._waiting.clear()
        self._size = 0
