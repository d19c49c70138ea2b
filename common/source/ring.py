# SPDX-License-Identifier: GPL-2.0-only
"""What a source's node reads of its capture."""

from __future__ import annotations

from typing import Protocol

from bdr.common.capture.api import Bitmap
from bdr.common.ring.marks import Mark
from bdr.common.ring.slots import Headers
from bdr.common.wire.codec import Buffer


class Ring(Protocol):
    """The capture's present memory; reading it has no side effects."""

    def published(self, first: int, limit: int) -> int:
        """Slots from `first` on, at most `limit`, that are published and whole writes."""
        ...

    def slots(self, first: int, count: int) -> Headers:
        """The headers of published slots."""
        ...

    def payload(self, first: int, count: int) -> Buffer:
        """The payload of published slots."""
        ...

    def read_bitmap(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        """Bits of regions; see `Capture.read_bitmap`."""
        ...

    def marks(self) -> list[Mark]:
        """When slots were reserved; see `Capture.marks`."""
        ...
