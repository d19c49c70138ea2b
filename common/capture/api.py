# SPDX-License-Identifier: GPL-2.0-only
"""Interface of a capture: a ring, a status and a few requests.

The payload is mapped twice, back to back, so a run of slots that wraps is contiguous in memory. See
`kern/include/bdr_uapi.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Protocol

from bdr.common.errors import StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES, Mode
from bdr.common.ring.marks import Mark

if TYPE_CHECKING:
    from bdr.common.ring.slots import Headers


class Role(Enum):
    """An observer maps the ring and reads the status; the consumer also changes the capture."""

    OBSERVER = 0
    CONSUMER = 1


class Bitmap(IntEnum):
    """`ACTIVE`: regions of writes that the ring does not have; `RESYNC`: regions to repair."""

    ACTIVE = 0
    RESYNC = 1


@dataclass(frozen=True, slots=True)
class CaptureInfo:
    """Constant for the lifetime of a capture."""

    stream: bytes
    """16 random bytes, new for each capture and for each underlying device."""
    device_sectors: int
    capacity: int
    """Slots."""
    region_sectors: int
    regions: int
    underlying: str
    """Path of the device or file that the writes go to."""

    def contradiction(self, status: CaptureStatus) -> StaleCaptureError | None:
        """The error if a status belongs to another capture than this, else None."""
        if status.device_sectors != self.device_sectors:
            return StaleCaptureError.of_size(status.device_sectors, self.device_sectors)
        if status.stream != self.stream:
            return StaleCaptureError.of_stream(status.stream, self.stream)
        return None


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """A consistent snapshot of a capture. Slots are numbers, not indexes."""

    head: int
    tail: int
    unpublished: int
    """Oldest slot that is reserved and not published, or `head`."""
    gap: int | None
    """Lower bound of the first unreleased slot that missed writes precede; None: there is none."""
    last_gap: int | None
    """The highest slot that missed writes precede."""
    mode: Mode
    active_regions: int
    resync_regions: int
    unlogged: int
    overflows: int
    missed_writes: int
    failed_writes: int
    device_sectors: int
    stream: bytes
    """Differs from `CaptureInfo` once the underlying device was replaced."""
    acknowledged: int
    """As of the last `Capture.release` of this stream; 0 before the first."""
    counted: int
    """Likewise."""
    clock_ns: int
    """When it looked: CLOCK_BOOTTIME of the capture's host, with the resolution of a tick."""
    marks: int
    """Number of the next mark of the clock; another one is news for `Capture.marks`."""
    missed_since_ns: int
    """The clock at the oldest write that the bitmaps stand for. `MISSED_NOTHING`: they are
    empty; `MISSED_UNKNOWN`: regions were marked for another reason, too."""

    @property
    def dirty_regions(self) -> int:
        """Marks in both bitmaps; a region with two counts twice."""
        return self.active_regions + self.resync_regions

    def dirty_bytes(self, *, region_sectors: int) -> int:
        """Bytes of the dirty regions, which will be compared; at most those of the device."""
        sectors = min(self.dirty_regions * region_sectors, self.device_sectors)
        return sectors * SECTOR_BYTES


class Capture(Protocol):
    """A ring whose producer is the kernel or another process.

    Every method may raise `CaptureGoneError` once the capture was removed. Methods that change the
    capture need the consumer role (`CaptureError` otherwise).
    """

    info: CaptureInfo

    @property
    def headers(self) -> Headers:
        """Shape (capacity,), read-only, changed concurrently by the producer."""
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

        Valid as long as `payload`.
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
        """The present state; for the consumer this also clears the mode-change condition."""
        ...

    def release(self, *, tail: int, cursor: int, acknowledged: int = 0, counted: int = 0) -> None:
        """Frees every slot below `tail`, and arms the wake-up for slot `cursor`.

        The two counters are kept by the capture as long as this stream lasts, so that a
        consumer that is started again finds them in `status`. They count the markers and
        resync batches that the target has accepted. Neither decreases.

        Args:
            acknowledged: how many of them the target has made durable, set before a region
                is cleared because of them; at most `counted`.
            counted: an upper bound of them, set before such a batch is sent.

        Raises:
            CaptureError: the tail or the cursor is not in the ring, a slot below the tail is
                in flight, or a counter decreases.
            StaleCaptureError: another stream has begun since the last `status`.
        """
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

    def marks(self) -> list[Mark]:
        """When slots were reserved: pairs of slot and clock in ns, both increasing.

        Slots from a mark's slot on were reserved at its clock or later, those below it at
        its clock or earlier. Every slot that is not released has a mark at or below it. A
        clock is one of `CaptureStatus.clock_ns`. At most 4096; see `kern/include/bdr_marks.h`.
        """
        ...

    def close(self) -> None:
        """Releases the role and the mapping; views of the payload become invalid."""
        ...
