# SPDX-License-Identifier: GPL-2.0-only
"""The source host: ring and gate as in `kern/bdr_ring.h` and `kern/bdr_gate.h`.

Headers carry real phases, and payload lives in memory that is overwritten when
its slot is reserved again: who reads a released slot reads a torn batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.ring.layout import (
    COUNT_SHIFT,
    FUA_SHIFT,
    LAST_SHIFT,
    OP_SHIFT,
    PAYLOAD_BYTES,
    PHASE_SHIFT,
    SECTOR_BYTES,
    SLOT_SECTORS,
    Mode,
    Op,
)
from bdr.common.ring.slots import phase, slots_at

STREAM = bytes(range(16))


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
    asked_at: int
    """When the application submitted it: a count, as `done_at`."""
    done_at: int | None = None
    has_landed: bool = False
    """The source's disk has completed it, well or not."""
    logged: bool = False
    epoch: int = 0
    first: int = 0
    slots: int = 0

    def overlaps(self, other: Write) -> bool:
        """Whether both touch a sector."""
        return (
            self.sector < other.sector + other.sectors and other.sector < self.sector + self.sectors
        )

    def apply_to(self, content: bytearray) -> None:
        """Does to `content` what the write does to a disk."""
        at = self.sector * SECTOR_BYTES
        if self.op is Op.WRITE:
            content[at : at + len(self.data)] = self.data
        elif self.op in (Op.DISCARD, Op.WRITE_ZEROES):
            content[at : at + self.sectors * SECTOR_BYTES] = bytes(self.sectors * SECTOR_BYTES)


class Gate:
    """Decides whether a write goes into the ring or only into the bitmap."""

    def __init__(self, *, capacity: int, device_sectors: int, region_sectors: int) -> None:
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
        self.on_drained: Callable[[], None] | None = None

    def info(self) -> CaptureInfo:
        return CaptureInfo(
            stream=STREAM,
            device_sectors=self.device_sectors,
            capacity=self.capacity,
            region_sectors=self.region_sectors,
            regions=-(-self.device_sectors // self.region_sectors),
            underlying="",
        )

    def status(self) -> CaptureStatus:
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
            stream=STREAM,
        )

    # Writes.

    def admit(self, write: Write) -> bool:
        """True when this write turned the mode to OVERFLOW."""
        write.slots = -(-write.sectors // SLOT_SECTORS) if write.op is Op.WRITE else 1
        write.epoch = self.epoch
        write.logged = self.mode is Mode.STREAM and write.slots <= self.capacity - (
            self.head - self.tail
        )
        if write.logged:
            write.first = self.head
            self.head += write.slots
            self._fill(write)
            return False
        # A flush without room is only left out: no region misses anything.
        turned = self.mode is Mode.STREAM and write.sectors > 0
        if turned:
            self.mode = Mode.OVERFLOW
            self.overflows += 1
            if self.gap is None:
                self.gap = self.head
            self.last_gap = self.head
        self.missed += 1
        self.unlogged[write.epoch & 1] += 1
        self.mark(write)
        return turned

    def mark(self, write: Write) -> None:
        if write.sectors:
            last = (write.sector + write.sectors - 1) // self.region_sectors
            self.active.update(range(write.sector // self.region_sectors, last + 1))

    def publish(self, write: Write, *, failed: bool, slots: range) -> None:
        """Stores the headers of `slots` (offsets into the write), last first."""
        if failed:
            self.mark(write)
        op = Op.NOP if failed else write.op
        for i in reversed(slots):
            slot = write.first + i
            done = i * SLOT_SECTORS
            sectors = min(max(write.sectors - done, 1), SLOT_SECTORS)
            self.headers[slot % self.capacity] = (
                (write.sector + done)
                | (sectors - 1) << COUNT_SHIFT
                | op << OP_SHIFT
                | write.fua << FUA_SHIFT
                | (i == write.slots - 1) << LAST_SHIFT
                | phase(slot, self.capacity) << PHASE_SHIFT
            )

    def leave(self, write: Write) -> None:
        """Ends an unlogged write."""
        self.mark(write)
        self.unlogged[write.epoch & 1] -= 1
        if self.on_drained and self.is_drained():
            drained, self.on_drained = self.on_drained, None
            drained()

    # The consumer.

    def release(self, tail: int) -> None:
        if not self.tail <= tail <= self.head:
            raise BrokenRuleError(f"release {tail}: wanted {self.tail} to {self.head}")
        if tail > self.published_end():
            raise BrokenRuleError(f"release {tail}: slot {self.published_end()} is unpublished")
        self.tail = tail
        if self.gap is not None and self.gap < tail:
            assert self.last_gap is not None
            self.gap = tail if self.last_gap >= tail else None
            self.last_gap = self.last_gap if self.last_gap >= tail else None

    def begin_resume(self) -> None:
        self.mode = Mode.STREAM
        self.epoch += 1

    def is_drained(self) -> bool:
        return self.unlogged[(self.epoch & 1) ^ 1] == 0

    def merge(self) -> None:
        self.resync |= self.active
        self.active.clear()

    def mark_all(self) -> None:
        """Every region into `resync`, by BITMAP_MARK."""
        self.resync.update(range(self.info().regions))

    # The mapping.

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


class Shadow:
    """What a device holds that has had every slot below some number, and nothing else."""

    SNAPSHOT_SLOTS = 64

    def __init__(self, size: int) -> None:
        self.writes: list[tuple[Write, int]] = []
        """Slot number -> its write, and which slot of it; grows as slots are reserved."""
        self.failed: set[int] = set()
        """Writes (by number) that were published as NOP."""
        self._snapshots = {0: bytes(size)}
        self._slot = 0
        self._content = bytearray(size)

    def reserve(self, write: Write) -> None:
        self.writes.extend((write, i) for i in range(write.slots))

    def replay(self, content: bytearray, *, first: int, end: int) -> None:
        """Does slots [first, end) to `content`."""
        for slot in range(first, end):
            write, i = self.writes[slot]
            if write.number in self.failed:
                continue
            if write.op is not Op.WRITE:
                write.apply_to(content)
                continue
            piece = write.data[i * PAYLOAD_BYTES : (i + 1) * PAYLOAD_BYTES]
            at = write.sector * SECTOR_BYTES + i * PAYLOAD_BYTES
            content[at : at + len(piece)] = piece

    def at(self, slot: int) -> bytearray:
        """The content after every slot below `slot`, all of which are published."""
        if slot < self._slot:
            self._slot = slot - slot % self.SNAPSHOT_SLOTS
            self._content = bytearray(self._snapshots[self._slot])
        while self._slot < slot:
            end = min(slot, self._slot - self._slot % self.SNAPSHOT_SLOTS + self.SNAPSHOT_SLOTS)
            self.replay(self._content, first=self._slot, end=end)
            self._slot = end
            if end % self.SNAPSHOT_SLOTS == 0:
                self._snapshots.setdefault(end, bytes(self._content))
        return self._content
