# SPDX-License-Identifier: GPL-2.0-only
"""What the journal needs of a disk and of the replica's device; files are one form of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bdr.common.target import witness
from bdr.common.wire.codec import Buffer

Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes, fewer at the end of the file."""


class Disk(Protocol):
    """Where the journal lives."""

    @property
    def path(self) -> str:
        """For messages."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end."""
        ...

    def write(self, offset: int, pieces: list[Buffer]) -> None:
        """Writes the pieces one behind the other; not durable before `sync`."""
        ...

    def sync(self) -> None:
        """Makes every write so far durable."""
        ...


class Device(witness.Device, Protocol):
    """What the journal's jobs are applied to."""

    def sync(self) -> None:
        """Makes everything applied durable."""
        ...
