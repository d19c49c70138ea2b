# SPDX-License-Identifier: GPL-2.0-only
"""What the rest of BDR knows of a capture: a ring, a status and a few requests.

The mapping shows the payload twice, back to back, so a run of slots that wraps
is one piece of memory. See `kern/include/bdr_uapi.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Protocol

from bdr.common.errors import StaleCaptureError
from bdr.common.ring.layout import Mode

if TYPE_CHECKING:
    from bdr.common.ring.slots import Headers


class Role(Enum):
    """What an opener may do: an observer maps and asks, the consumer also changes."""

    OBSERVER = 0
    CONSUMER = 1


class Bitmap(IntEnum):
    """`ACTIVE` collects regions that the ring missed, `RESYNC` those to be repaired."""

    ACTIVE = 0
    RESYNC = 1


@dataclass(frozen=True, slots=True)
class CaptureInfo:
    """What does not change while a capture lives."""

    stream: bytes
    """16 random bytes, new with each capture, and with each other device below it."""
    device_sectors: int
    capacity: int
    """Slots."""
    region_sectors: int
    regions: int
    underlying: str
    """Path of the device or file that the writes go to."""

    def contradiction(self, status: CaptureStatus) -> StaleCaptureError | None:
        """What is wrong with a look, if it is at another capture than this."""
        if status.device_sectors != self.device_sectors:
            return StaleCaptureError.of_size(status.device_sectors, self.device_sectors)
        if status.stream != self.stream:
            return StaleCaptureError.of_stream(status.stream, self.stream)
        return None


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """One consistent look at a capture. Slots are numbers, not indexes."""

    head: int
    tail: int
    unpublished: int
    """Oldest slot that is reserved and not published, or `head`."""
    gap: int | None
    """No unreleased slot below it has missed writes in front of it; None: none has."""
    last_gap: int | None
    """The highest one that has."""
    mode: Mode
    active_regions: int
    resync_regions: int
    unlogged: int
    overflows: int
    missed_writes: int
    failed_writes: int
    device_sectors: int
    stream: bytes
    """Other than in `CaptureInfo` once another device is below."""


class Capture(Protocol):
    """A ring that someone else fills.

    Every method may raise `CaptureGoneError` once the capture was removed. The
    methods that change something need the consumer role (`CaptureError` else).
    """

    info: CaptureInfo

    @property
    def headers(self) -> Headers:
        """Shape (capacity,), read-only, changing under the reader's eyes."""
        ...

    def fileno(self) -> int:
        """A descriptor that polls readable when slot `cursor` is published or the
        mode has changed (consumer only)."""
        ...

    def drain_wakeup(self) -> None:
        """Makes `fileno` unreadable until the next wake-up; call after each."""
        ...

    def header_bytes(self, first: int, count: int) -> memoryview:
        """The headers of slots [first, first + count), copied only where they wrap.

        As lasting as `payload`.
        """
        ...

    def payload(self, first: int, count: int) -> memoryview:
        """The payload of slots [first, first + count): count x 4096 bytes of ring memory.

        The view stays valid memory until `close`; its content changes when the
        slots are released and reused. Never release the view after handing it to
        a socket.
        """
        ...

    def drop_pages(self, first: int, count: int) -> None:
        """Drops the pages of these slots from this process's resident set."""
        ...

    def status(self) -> CaptureStatus:
        """The state of the ring now; for the consumer this also clears a mode change."""
        ...

    def release(self, *, tail: int, cursor: int) -> None:
        """Frees every slot below `tail` and waits for slot `cursor` from now on."""
        ...

    def resume(self) -> int:
        """Leaves OVERFLOW; returns the first slot after the gap.

        Waits for writes in flight that took no slot, then moves the bits of
        `ACTIVE` into `RESYNC`.
        """
        ...

    def read_bitmap(self, bitmap: Bitmap, *, first: int, count: int) -> bytes:
        """Bits of regions [first, first + count), bit 0 of byte 0 first.

        `first` is a multiple of 64; `count` too, unless it ends with the last region.
        """
        ...

    def clear_bitmap(self, *, first: int, count: int) -> None:
        """Clears regions of `RESYNC`."""
        ...

    def mark_bitmap(self, *, first: int, count: int) -> None:
        """Sets regions of `RESYNC`."""
        ...

    def close(self) -> None:
        """Gives up the role and the mapping; views of the payload become invalid."""
        ...
