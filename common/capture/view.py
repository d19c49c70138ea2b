# SPDX-License-Identifier: GPL-2.0-only
"""Read-only view of a capture's memory, for a source's node."""

from __future__ import annotations

from bdr.common.capture.api import Bitmap, Capture
from bdr.common.ring.marks import Mark
from bdr.common.ring.slots import Headers, published_count, slots_at


class RingView:
    """Implements `common.source.ring.Ring`; reading has no effect."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def published(self, first: int, limit: int) -> int:
        """Slots from `first` on, at most `limit`, that are published and whole writes."""
        return published_count(self._capture.headers, cursor=first, limit=limit)

    def slots(self, first: int, count: int) -> Headers:
        """The headers of published slots."""
        return slots_at(self._capture.headers, first=first, count=count)

    def payload(self, first: int, count: int) -> memoryview:
        """The payload of published slots."""
        return self._capture.payload(first, count)

    def read_bitmap(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        """Bits of regions; see `Capture.read_bitmap`."""
        return self._capture.read_bitmap(bitmap, first=first, count=count)

    def marks(self) -> list[Mark]:
        """When slots were reserved; see `Capture.marks`."""
        return self._capture.marks()
