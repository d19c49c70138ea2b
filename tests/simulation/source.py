# SPDX-License-Identifier: GPL-2.0-only
"""The source host: ring and gate as in `kern/include/bdr_ring.h` and `kern/include/bdr_gate.h`.

Headers carry real phases, and payload lives in memory that is overwritten when
its slot is reserved again: who reads a released slot reads a torn batch.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field

import numpy as np

from bdr.common.capture.api import Bitmap, CaptureInfo, CaptureStatus
from bdr.common.ring.layout import (
    COUNT_SHIFT,
    FUA_SHIFT,
    LAST_SHIFT,
    MISSED_NOTHING,
    MISSED_UNKNOWN,
    OP_SHIFT,
    PAYLOAD_BYTES,
    PHASE_SHIFT,
    SECTOR_BYTES,
    SLOT_SECTORS,
    Mode,
    Op,
)
from bdr.common.ring.marks import Mark, Marks
from bdr.common.ring.slots import Headers, phase, published_count, slots_at
from bdr.common.scan.plan import pack_bits


class BrokenRuleError(AssertionError):
    """What must always hold did not."""


@dataclass(slots=True)
class Write:
    """One write of the application."""

    number: int
    op: Op
    sector: int
    sectors: int
    fua: bool
    data: bytes
    has_landed: bool = False
    """The source's disk has completed it, well or not."""
    logged: bool = False
    epoch: int = 0
    first: int = 0
    slots: int = 0
    words: dict[int, int] = field(default_factory=dict)
    """Published headers, by which slot of it."""

    def overlaps(self, other: Write) -> bool:
        """Whether both touch a sector."""
        return (
            self.sector < other.sector + other.sectors and other.sector < self.sector + self.sectors
        )

    @property
    def content(self) -> bytes:
        """What its sectors hold after it."""
        return self.data if self.op is Op.WRITE else bytes(self.sectors * SECTOR_BYTES)

    def apply_to(self, content: bytearray) -> None:
        """Does to `content` what the write does to a disk."""
        at = self.sector * SECTOR_BYTES
        content[at : at + self.sectors * SECTOR_BYTES] = self.content


class Gate:
    """Decides whether a write goes into the ring or only into the bitmap."""

    def __init__(
        self,
        *,
        stream: bytes,
        capacity: int,
        device_sectors: int,
        region_sectors: int,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.stream = stream
        self.headers = np.zeros(capacity, np.uint64)
        self.memory = np.zeros((capacity, PAYLOAD_BYTES), np.uint8)
        self.capacity = capacity
        self.device_sectors = device_sectors
        self.region_sectors = region_sectors
        self.head = 0
        self.tail = 0
        self.unpublished = 0
        self.mode = Mode.STREAM
        self.epoch = 0
        self.unlogged = [0, 0]
        self.active: set[int] = set()
        self.resync: set[int] = set()
        self.gap: int | None = None
        self.last_gap: int | None = None
        self.overflows = 0
        self.missed = 0
        self.failed = 0
        self.marks_of_clock = Marks()
        self.missed_since_ns = MISSED_NOTHING
        self.acknowledged = 0
        self.counted = 0
        self.on_drained: Callable[[], None] | None = None
        self.successor: bytes | None = None
        """The stream of the capture that has taken its place, if it has."""
        self.is_woken = False
        """Whether the consumer's descriptor polls readable."""
        self._on_woken = wake
        self._clock = clock
        self._armed: int | None = None
        """The slot whose publishing wakes the consumer."""

    def copy(self) -> Gate:
        """As it is now, with nothing in flight."""
        copied = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, set | list | np.ndarray):
                setattr(copied, name, value.copy())
        copied.marks_of_clock = deepcopy(self.marks_of_clock)
        copied.on_drained = None
        return copied

    def info(self) -> CaptureInfo:
        return CaptureInfo(
            stream=self.stream,
            device_sectors=self.device_sectors,
            capacity=self.capacity,
            region_sectors=self.region_sectors,
            regions=-(-self.device_sectors // self.region_sectors),
            underlying="",
        )

    def status(self) -> CaptureStatus:
        if not (self.active or self.resync or any(self.unlogged)):
            self.missed_since_ns = MISSED_NOTHING
        return CaptureStatus(
            head=self.head,
            tail=self.tail,
            unpublished=self.published_end(),
            gap=self.gap,
            last_gap=self.last_gap,
            mode=self.mode,
            active_regions=len(self.active),
            resync_regions=len(self.resync),
            unlogged=sum(self.unlogged),
            overflows=self.overflows,
            missed_writes=self.missed,
            failed_writes=self.failed,
            device_sectors=self.device_sectors,
            stream=self.successor or self.stream,
            acknowledged=self.acknowledged,
            counted=self.counted,
            clock_ns=self._clock_ns(),
            marks=self.marks_of_clock.next,
            missed_since_ns=self.missed_since_ns,
        )

    # Writes.

    def admit(self, write: Write) -> None:
        """Reserves slots for a write, or marks its regions only."""
        write.slots = -(-write.sectors // SLOT_SECTORS) if write.op is Op.WRITE else 1
        write.epoch = self.epoch
        write.logged = self.mode is Mode.STREAM and write.slots <= self.capacity - (
            self.head - self.tail
        )
        if write.logged:
            write.first = self.head
            self.marks_of_clock.reserve(self.head, self._clock_ns())
            self.head += write.slots
            self._fill(write)
            return
        # A flush without room is only left out: no region misses anything.
        turned = self.mode is Mode.STREAM and write.sectors > 0
        if turned:
            self.mode = Mode.OVERFLOW
            self.overflows += 1
            if self.gap is None:
                self.gap = self.head
            self.last_gap = self.head
            self._wake()
        self.missed += 1
        self.unlogged[write.epoch & 1] += 1
        if write.sectors and self.missed_since_ns == MISSED_NOTHING:
            self.missed_since_ns = self._clock_ns()
        self.mark(write)

    def mark(self, write: Write) -> None:
        if write.sectors:
            last = (write.sector + write.sectors - 1) // self.region_sectors
            self.active.update(range(write.sector // self.region_sectors, last + 1))

    def publish(self, write: Write, *, failed: bool, slots: range) -> None:
        """Stores the headers of `slots` (offsets into the write), last first."""
        if failed and write.sectors:
            self.mark(write)
            self.missed_since_ns = MISSED_UNKNOWN
        op = Op.NOP if failed else write.op
        for i in reversed(slots):
            slot = write.first + i
            done = i * SLOT_SECTORS
            sectors = min(max(write.sectors - done, 1), SLOT_SECTORS)
            word = (
                (write.sector + done)
                | (sectors - 1) << COUNT_SHIFT
                | op << OP_SHIFT
                | write.fua << FUA_SHIFT
                | (i == write.slots - 1) << LAST_SHIFT
                | phase(slot, self.capacity) << PHASE_SHIFT
            )
            self.headers[slot % self.capacity] = write.words[i] = word
        self._wake_if_published()

    def leave(self, write: Write) -> None:
        """Ends an unlogged write."""
        self.mark(write)
        self.unlogged[write.epoch & 1] -= 1
        if self.on_drained and self.is_drained():
            drained, self.on_drained = self.on_drained, None
            drained()

    # The consumer.

    def release(self, tail: int, cursor: int, *, acknowledged: int, counted: int) -> None:
        if not self.tail <= tail <= self.head:
            raise BrokenRuleError(f"release {tail}: wanted {self.tail} to {self.head}")
        if tail > self.published_end():
            raise BrokenRuleError(f"release {tail}: slot {self.published_end()} is unpublished")
        if not self.acknowledged <= acknowledged <= counted or counted < self.counted:
            raise BrokenRuleError(
                f"release acknowledged {acknowledged}, counted {counted}: wanted no less than "
                f"{self.acknowledged} and {self.counted}"
            )
        self.acknowledged, self.counted = acknowledged, counted
        self.tail = tail
        self.marks_of_clock.release(tail)
        if self.gap is not None and self.gap < tail:
            assert self.last_gap is not None
            self.gap = tail if self.last_gap >= tail else None
            self.last_gap = self.last_gap if self.last_gap >= tail else None
        self._armed = cursor
        self._wake_if_published()

    def _wake(self) -> None:
        self.is_woken = True
        self._on_woken()

    def _wake_if_published(self) -> None:
        slot = self._armed
        if slot is not None and slot < self.head and self.is_published(slot):
            self._armed = None
            self._wake()

    def begin_resume(self) -> None:
        self.mode = Mode.STREAM
        self.epoch += 1

    def is_drained(self) -> bool:
        return self.unlogged[(self.epoch & 1) ^ 1] == 0

    def merge(self) -> None:
        self.resync |= self.active
        self.active.clear()

    def mark_regions(self, first: int, count: int) -> None:
        """Into `resync`, by BITMAP_MARK."""
        self.missed_since_ns = MISSED_UNKNOWN
        self.resync.update(range(first, first + count))

    def clear_regions(self, first: int, count: int) -> None:
        """Out of `resync`, by BITMAP_CLEAR."""
        self.resync.difference_update(range(first, first + count))

    def marks(self) -> list[Mark]:
        """See `Capture.marks`."""
        return self.marks_of_clock.table()

    def _clock_ns(self) -> int:
        """Never 0."""
        return 1 + int(self._clock() * 1e9)

    # The mapping; with `slots`, `payload` and `read_bitmap` it is a node's `Ring`.

    def published(self, first: int, limit: int) -> int:
        return published_count(self.headers, cursor=first, limit=limit)

    def slots(self, first: int, count: int) -> Headers:
        return slots_at(self.headers, first=first, count=count)

    def payload(self, first: int, count: int) -> bytes:
        return self.payload_at(first, count)

    def read_bitmap(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        bits = self.resync if bitmap is Bitmap.RESYNC else self.active
        return pack_bits(np.array([first + i in bits for i in range(count)], np.bool_))

    def is_published(self, slot: int) -> bool:
        return int(self.headers[slot % self.capacity]) >> PHASE_SHIFT == phase(slot, self.capacity)

    def published_end(self) -> int:
        slot = max(self.unpublished, self.tail)
        while slot < self.head and self.is_published(slot):
            slot += 1
        self.unpublished = slot
        return slot

    def headers_at(self, first: int, count: int) -> bytes:
        return slots_at(self.headers, first=first, count=count).tobytes()

    def payload_at(self, first: int, count: int) -> bytes:
        index = first % self.capacity
        if index + count <= self.capacity:
            return self.memory[index : index + count].tobytes()
        before = self.memory[index:].tobytes()
        return before + self.memory[: index + count - self.capacity].tobytes()

    def _fill(self, write: Write) -> None:
        data = write.data
        if write.op is not Op.WRITE:
            data = write.sectors.to_bytes(8, "little")
        for i in range(write.slots):
            piece = data[i * PAYLOAD_BYTES : (i + 1) * PAYLOAD_BYTES]
            row = self.memory[(write.first + i) % self.capacity]
            row[: len(piece)] = np.frombuffer(piece, np.uint8)
