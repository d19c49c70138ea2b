# SPDX-License-Identifier: GPL-2.0-only
"""What the source was, at each of its slots: the truth that replicas are judged by."""

from __future__ import annotations

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Op
from tests.simulation.source import BrokenRuleError, Write

SNAPSHOT_WRITES = 64


class Moment:
    """The source after some writes.

    Of a write that failed each sector may have come by a scan, or not at all: `may_be` has
    what such sectors may hold, besides what `content` has.
    """

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = bytearray(content)
        self.may_be: dict[int, set[bytes]] = {}

    def copy(self) -> Moment:
        copied = Moment(self.content)
        copied.may_be = {sector: set(values) for sector, values in self.may_be.items()}
        return copied

    def replay(self, write: Write, landed: Write | None) -> None:
        """Does a write; `landed` is what of a failed one has reached the disk."""
        if landed is None:
            for sector in range(write.sector, write.sector + write.sectors):
                self.may_be.pop(sector, None)
            write.apply_to(self.content)
            return
        content = landed.content
        for at in range(landed.sectors):
            sector = landed.sector + at
            values = self.may_be.setdefault(sector, {self.sector(sector)})
            values.add(content[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES])

    def sector(self, number: int) -> bytes:
        """What a sector holds."""
        return bytes(self.content[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])

    def differs_from(self, found: bytes | bytearray) -> list[int]:
        """Sectors in which `found` is not what the source was."""
        if found == self.content:
            return []
        return [
            sector
            for sector in differing(found, self.content)
            if bytes(found[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])
            not in self.may_be.get(sector, ())
        ]


class History:
    """Of one stream: its writes, in the order of their admission.

    Args:
        began: the source's content when the stream began.
    """

    def __init__(self, began: bytes) -> None:
        self.writes: list[tuple[int, Write]] = []
        """With the head before each."""
        self.slots: list[tuple[Write, int]] = []
        """Slot number -> its write, and which slot of it."""
        self.landed: dict[int, Write] = {}
        """Writes that failed, by number, to what of them has landed."""
        self.gaps: list[int] = []
        """Slots before which writes were missed."""
        self._snapshots = {0: Moment(began)}
        self._at = 0
        """So many writes are in `_moment`."""
        self._moment = Moment(began)

    def copy(self) -> History:
        """As it is now; the two go on apart."""
        copied = History(b"")
        copied.writes = list(self.writes)
        copied.slots = list(self.slots)
        copied.landed = dict(self.landed)
        copied.gaps = list(self.gaps)
        copied._snapshots = {at: moment.copy() for at, moment in self._snapshots.items()}
        copied._at, copied._moment = self._at, self._moment.copy()
        return copied

    def admit(self, head: int, write: Write) -> None:
        """The ring took it, or missed it."""
        self.writes.append((head, write))
        if write.logged:
            self.slots.extend((write, i) for i in range(write.slots))
        elif write.sectors:
            self.gaps.append(head)

    def payload(self, slot: int) -> bytes:
        """What the payload of a published slot begins with."""
        write, i = self.slots[slot]
        if write.op is Op.WRITE:
            return write.data[i * PAYLOAD_BYTES : (i + 1) * PAYLOAD_BYTES]
        return write.sectors.to_bytes(8, "little")

    def word(self, slot: int) -> int | None:
        """The header of a published slot; None if it is not published."""
        write, i = self.slots[slot] if slot < len(self.slots) else (None, 0)
        return write.words.get(i) if write is not None and write.has_landed else None

    def at(self, slot: int) -> Moment:
        """The source after every slot below `slot`, and what was missed before the last."""
        if slot and slot < len(self.slots):
            write, i = self.slots[slot]
            if i:
                raise BrokenRuleError(f"slot {slot} is in the middle of write {write.number}")
        if self._at and not self._is_in(self._at - 1, slot):
            self._at = max(at for at in self._snapshots if not at or self._is_in(at - 1, slot))
            self._moment = self._snapshots[self._at].copy()
        while self._at < len(self.writes) and self._is_in(self._at, slot):
            _, write = self.writes[self._at]
            self._moment.replay(write, self.landed.get(write.number))
            self._at += 1
            if not self._at % SNAPSHOT_WRITES:
                self._snapshots[self._at] = self._moment.copy()
        return self._moment

    def missed_at(self, slot: int) -> list[Write]:
        """Writes that were missed right before `slot`, in their order."""
        return [
            write
            for head, write in self.writes[self._at_of(slot) :]
            if head == slot and not write.logged and write.sectors
        ]

    def _at_of(self, slot: int) -> int:
        self.at(slot)
        return self._at

    def _is_in(self, at: int, slot: int) -> bool:
        head, write = self.writes[at]
        return write.first + write.slots <= slot if write.logged else head < slot


def differing(one: bytes | bytearray, other: bytes | bytearray) -> list[int]:
    """Sectors that differ."""
    if one == other:
        return []
    return [
        at // SECTOR_BYTES
        for at in range(0, len(one), SECTOR_BYTES)
        if one[at : at + SECTOR_BYTES] != other[at : at + SECTOR_BYTES]
    ]
