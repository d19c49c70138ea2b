# SPDX-License-Identifier: GPL-2.0-only
"""Batches that came before their turn."""

from __future__ import annotations

from bdr.common.wire.batch import Batch


class ReorderBuffer:
    """Bounded by how far ahead a batch may be, and by its bytes.

    Args:
        batches: how far ahead of the next batch one may be and still wait.
        size: bytes of those that wait.
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
        """Number of the first that waits."""
        return min(self._waiting, default=None)

    def put(self, batch: Batch, *, wanted: int) -> bool:
        """Keeps a batch until its turn; whether there was room.

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
        """The batch of this number, if it waits here."""
        batch = self._waiting.pop(number, None)
        if batch is not None:
            self._size -= batch.size
        return batch

    def clear(self) -> None:
        """Nothing waits any more."""
        self._waiting.clear()
        self._size = 0
