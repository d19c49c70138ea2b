# SPDX-License-Identifier: GPL-2.0-only
"""Reads one place of the log: what stands there, as a decision table. No I/O here.

The bytes come through a `Read`, so that a file, a device and a simulator's disk are
read by the same code. `classify` names what stands where the next entry would begin
(`Found`), and `VERDICTS` says what follows from it: take it, end the log there, or
refuse the journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bdr.common.errors import InvalidSlotsError
from bdr.common.journal import entry as entry_format
from bdr.common.journal.disk import Read
from bdr.common.journal.entry import HEADER_ENTRY_BYTES, EntryHeader, Kind
from bdr.common.journal.layout import BLOCK_BYTES, Cursor, offset_of, rest_of_lap
from bdr.common.journal.superblock import Superblock
from bdr.common.ring.layout import HEADER_BYTES
from bdr.common.target.extents import Extents, plan
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import BATCH_SLOTS_MAX


class Found(Enum):
    """What stands where the next entry would begin. The value is how to say it."""

    NEXT = "the next entry"
    LAP_END = "the end of a lap"
    LOG_FULL = "the checkpoint again, one lap later"
    NO_HEADER = "no intact header"
    TORN_BODY = "an entry with a torn body"
    OTHER_JOURNAL = "an entry of another journal"
    OLDER_RUN = "an entry of an earlier run"
    OLDER_LAP = "an entry of an older lap"
    NEWER = "an entry that is newer than the superblock"
    MISPLACED = "an intact entry with another sequence than its place has"
    IMPOSSIBLE = "an intact entry with lengths that no writer makes"
    DISCONTINUOUS = "an intact entry that does not continue the stream of the one before"
    OUTSIDE = "an intact entry whose slots reach outside the device"


class Verdict(Enum):
    """What follows from it."""

    TAKE = "take it, go on behind it"
    END = "the log ends here, unless a witness says that it went on"
    REFUSE = "apply nothing"


VERDICTS = {
    Found.NEXT: Verdict.TAKE,
    Found.LAP_END: Verdict.TAKE,
    Found.LOG_FULL: Verdict.END,
    # What a power cut leaves where something was being written, or nothing yet.
    Found.NO_HEADER: Verdict.END,
    Found.TORN_BODY: Verdict.END,
    Found.OTHER_JOURNAL: Verdict.END,
    Found.OLDER_RUN: Verdict.END,
    Found.OLDER_LAP: Verdict.END,
    # What no crash leaves: an old superblock was put back, or there is a bug.
    Found.NEWER: Verdict.REFUSE,
    Found.MISPLACED: Verdict.REFUSE,
    Found.IMPOSSIBLE: Verdict.REFUSE,
    Found.DISCONTINUOUS: Verdict.REFUSE,
    Found.OUTSIDE: Verdict.REFUSE,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An intact entry in its place."""

    slots: int
    record: ReplicaRecord
    """After it."""
    extents: Extents
    payload: memoryview


def classify(header: EntryHeader | None, *, superblock: Superblock, expected: Cursor) -> Found:
    """Names what stands at `expected`, as far as its header shows."""
    if header is None:
        return Found.NO_HEADER
    if header.journal != superblock.journal:
        return Found.OTHER_JOURNAL
    if header.run < superblock.run:
        return Found.OLDER_RUN
    if header.run > superblock.run or header.cursor.position > expected.position:
        return Found.NEWER
    if header.cursor.position < expected.position:
        return Found.OLDER_LAP
    if header.cursor.sequence != expected.sequence:
        return Found.MISPLACED
    rest = rest_of_lap(expected.position, superblock.log_bytes)
    if header.kind is Kind.SKIP:
        is_possible = header.blocks * BLOCK_BYTES == rest and not header.slots
        return Found.LAP_END if is_possible else Found.IMPOSSIBLE
    length = entry_format.entry_bytes(header.slots)
    if header.slots > BATCH_SLOTS_MAX or header.blocks * BLOCK_BYTES != length or length > rest:
        return Found.IMPOSSIBLE
    return Found.NEXT


def continues(header: EntryHeader, before: ReplicaRecord) -> bool:
    """Whether a job may stand behind `before`.

    One with slots goes on where the stream stood, or is the first batch of a source that
    begins elsewhere.
    """
    after, slots = header.record, header.slots
    if after is None or not slots:
        return True
    if after.epoch != before.epoch:
        return False
    if after.stream == before.stream:
        return after.slot in (before.slot, before.slot + slots) or _begins(after, slots)
    return _begins(after, slots)


def _begins(after: ReplicaRecord, slots: int) -> bool:
    match after.recent:
        case (only,):
            place = only.epoch, only.first, only.slots
            return place == (after.epoch, after.slot - slots, slots)
    return False


@dataclass(frozen=True, slots=True)
class Step:
    """What stands at one place."""

    found: Found
    header: EntryHeader | None
    """Where one with a fitting checksum is there; only NEXT and LAP_END may be trusted."""
    entry: Entry | None
    """Where it is NEXT."""

    @property
    def end(self) -> Cursor | None:
        """Where the next entry stands; None where nothing here is taken."""
        if self.header is None or VERDICTS[self.found] is not Verdict.TAKE:
            return None
        return self.header.end


def read_step(read: Read, *, superblock: Superblock, at: Cursor, before: ReplicaRecord) -> Step:
    """Looks at one place, header first.

    Args:
        superblock: of the run that wrote the log.
        at: where, and which sequence is wanted there.
        before: the replica's record in front of it; its device size bounds the slots.
    """
    offset = offset_of(at.position, superblock.log_bytes)
    first = read(offset, BLOCK_BYTES)
    header = entry_format.decode_entry_header(first)
    found = classify(header, superblock=superblock, expected=at)
    if header is None or VERDICTS[found] is not Verdict.TAKE:
        return Step(found, header, None)
    is_skip = header.kind is Kind.SKIP
    length = BLOCK_BYTES if is_skip else header.blocks * BLOCK_BYTES
    rest = read(offset + BLOCK_BYTES, length - BLOCK_BYTES) if length > BLOCK_BYTES else b""
    split = entry_format.meta_bytes(header.slots) - BLOCK_BYTES
    meta = first + rest[:split] if split else first
    payload = memoryview(rest)[split:]
    if (
        len(first) + len(rest) != length
        or entry_format.body_checksum(meta, payload) != header.body_checksum
    ):
        return Step(Found.TORN_BODY, header, None)
    if is_skip:
        return Step(found, header, None)
    if not continues(header, before):
        return Step(Found.DISCONTINUOUS, header, None)
    slots_headers = meta[HEADER_ENTRY_BYTES:][: header.slots * HEADER_BYTES]
    try:
        extents = plan(slots_headers, payload, device_sectors=before.device_sectors)
    except InvalidSlotsError:
        return Step(Found.OUTSIDE, header, None)
    return Step(found, header, Entry(header.slots, header.record_after(before), extents, payload))
