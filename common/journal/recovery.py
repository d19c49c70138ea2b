# SPDX-License-Identifier: GPL-2.0-only
"""What a journal is believed: recovery as two decision tables. No I/O here.

The bytes come through a `Read`, so that a file, a device and a simulator's disk are
read by the same code. Nothing here writes, and nothing is handed out for applying
before the whole log that counts has been looked at.

**Superblock.** `choose` looks at both copies; each is INTACT, BLANK, DAMAGED,
OTHER_VERSION or FOREIGN. See `_CHOICES`.

**Log.** From the checkpoint on, `classify` names what stands where the next entry
would begin (`Found`), and `VERDICTS` says what follows from it: take it, end the log
there, or refuse the journal. At an end there is one more question: was the entry that
is missing durable once? It was, if the superblock or any intact entry behind the place
says so: whoever writes an entry writes into it up to where the log was durable then.
Then this is no torn tail but a hole in what was acknowledged, and the journal is
refused. Only the last group of entries has no witness behind it.

An unsynced group is at most `UNSYNCED_BYTES_MAX` long, so a witness, if there is one,
stands within `WITNESS_BYTES` behind the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from bdr.common.errors import InvalidSlotsError, StateError
from bdr.common.journal import format as journal_format
from bdr.common.journal.format import (
    BLOCK_BYTES,
    COPIES,
    ENTRY_MAGIC,
    HEADER_ENTRY_BYTES,
    LOG_OFFSET,
    UNSYNCED_BYTES_MAX,
    Copy,
    Cursor,
    EntryHeader,
    Kind,
    Superblock,
)
from bdr.common.ring.layout import HEADER_BYTES
from bdr.common.target.extents import Extents, plan
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord
from bdr.common.wire.batch import BATCH_SLOTS_MAX

Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes, fewer at the end of the file."""

WITNESS_BYTES = 2 * UNSYNCED_BYTES_MAX
_READ_BYTES = 4 << 20
BLANK_BYTES = 1 << 20
"""Of zeros, where a journal may begin: whatever else may be there is known by its start."""
_ENTRY_MAGIC_WORD = int.from_bytes(ENTRY_MAGIC, "little")


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

WHAT_TO_DO = (
    "if the disk can be mended or the right journal named, do that and start the applier again; "
    "otherwise delete the journal and the state file, and let the source scan"
)


class JournalRefusedError(StateError):
    """The journal is not to be believed; nothing of it was applied."""

    def __init__(self, where: str, found: str, wanted: str, to_do: str = WHAT_TO_DO) -> None:
        super().__init__(f"journal {where}: found {found}; wanted {wanted}; {to_do}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An intact entry in its place."""

    header: EntryHeader
    record: ReplicaRecord
    """After it."""
    extents: Extents
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a journal that is believed holds."""

    superblock: Superblock
    copies: tuple[Copy, ...]
    end: Cursor
    """Behind the last entry that counts."""
    ended_by: Found
    record: ReplicaRecord
    """After the last entry that counts."""
    jobs: int
    slots: int

    @property
    def log_bytes_used(self) -> int:
        """From the checkpoint to the end."""
        return self.end.position - self.superblock.checkpoint.position

    @property
    def is_torn(self) -> bool:
        """Whether something had begun at the end, that is cut off."""
        return self.ended_by is Found.TORN_BODY


# State file and journal.


class Truth(Enum):
    """Which of the two has the replica's record, where both are sound."""

    JOURNAL = "the journal: the state file says that it is in use"
    STATE = "the state file: no journal is in use"
    MISSING = "neither: the state file says that a journal is in use, and here is none"
    ANOTHER = "neither: the state file says that another journal is in use"
    UNCLAIMED = "neither: the journal is in use, and the state file does not say so"


def truth(owner: bytes, superblock: Superblock | None) -> Truth:
    """Decides between the two, so that no old journal is ever replayed.

    Args:
        owner: id of the journal that the state file says is in use, or NO_JOURNAL.
        superblock: of the journal that was named, None for a blank one.
    """
    if owner == NO_JOURNAL:
        is_free = superblock is None or superblock.is_closed
        return Truth.STATE if is_free else Truth.UNCLAIMED
    if superblock is None:
        return Truth.MISSING
    return Truth.JOURNAL if superblock.journal == owner else Truth.ANOTHER


# Superblock.

_NEWEST, _NONE, _UNREADABLE, _VERSION, _STRANGE = range(5)
_CHOICES: tuple[tuple[Copy, int], ...] = (
    # The first kind that any of the two copies is decides.
    (Copy.OTHER_VERSION, _VERSION),  # another BDR's: it may mean the intact one differently
    (Copy.INTACT, _NEWEST),  # each intact copy suffices, whatever became of the other
    (Copy.DAMAGED, _UNREADABLE),
    (Copy.FOREIGN, _STRANGE),
    (Copy.BLANK, _NONE),
)


def choose(read: Read, *, where: str) -> tuple[Superblock | None, tuple[Copy, ...]]:
    """The superblock that counts, or None where both copies are blank.

    Raises:
        JournalRefusedError: something is there, and it is no superblock of this version.
    """
    blocks = [read(at * BLOCK_BYTES, BLOCK_BYTES) for at in range(COPIES)]
    inspected = [journal_format.inspect_superblock(block) for block in blocks]
    copies = tuple(copy for copy, _ in inspected)
    choice = next(choice for copy, choice in _CHOICES if copy in copies)
    if choice == _NONE and read(0, BLANK_BYTES).strip(b"\0"):
        choice = _STRANGE  # such as btrfs's, whose superblock stands at 64 KiB
    if choice == _NONE:
        return None, copies
    if choice == _NEWEST:
        intact = [superblock for _, superblock in inspected if superblock is not None]
        return max(intact, key=lambda superblock: superblock.generation), copies
    if choice == _VERSION:
        version = journal_format.found_version(blocks[copies.index(Copy.OTHER_VERSION)])
        raise JournalRefusedError(
            where,
            f"format version {version}",
            f"version {journal_format.VERSION}",
            "start it once with the BDR that wrote it and stop that cleanly, or delete the "
            "journal and the state file, and let the source scan",
        )
    states = " and ".join(f"copy {at} {copy.value}" for at, copy in enumerate(copies))
    if choice == _UNREADABLE:
        raise JournalRefusedError(where, f"superblock {states}", "one intact copy")
    raise JournalRefusedError(
        where,
        f"bytes that are no journal (superblock {states})",
        "a journal, or a file or device that begins with zeros",
        "name another path; if nothing of value is there, zero its first MiB",
    )


# Log.


def classify(header: EntryHeader | None, *, superblock: Superblock, expected: Cursor) -> Found:
    """Names what stands at `expected`, as far as its header tells."""
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
    rest = journal_format.rest_of_lap(expected.position, superblock.log_bytes)
    if header.kind is Kind.SKIP:
        is_possible = header.blocks * BLOCK_BYTES == rest and not header.slots
        return Found.LAP_END if is_possible else Found.IMPOSSIBLE
    length = journal_format.entry_bytes(header.slots)
    if header.slots > BATCH_SLOTS_MAX or header.blocks * BLOCK_BYTES != length or length > rest:
        return Found.IMPOSSIBLE
    return Found.NEXT


def continues(header: EntryHeader, before: ReplicaRecord) -> bool:
    """Whether a job may stand behind `before`: one with slots never changes the stream."""
    if not header.slots:
        return True
    return (
        header.stream == before.stream
        and header.epoch == before.epoch
        and header.slot in (before.slot, before.slot + header.slots)
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What stands at one place."""

    found: Found
    header: EntryHeader | None
    """Where one with a fitting checksum is there; only NEXT and LAP_END may be trusted."""
    entry: Entry | None
    """Where it is NEXT."""


def read_step(read: Read, *, superblock: Superblock, at: Cursor, before: ReplicaRecord) -> Step:
    """Looks at one place, header first.

    Args:
        superblock: of the run that wrote the log.
        at: where, and which sequence is wanted there.
        before: the replica's record in front of it; its device size bounds the slots.
    """
    offset = journal_format.offset_of(at.position, superblock.log_bytes)
    first = read(offset, BLOCK_BYTES)
    header = journal_format.decode_entry_header(first)
    found = classify(header, superblock=superblock, expected=at)
    if header is None or VERDICTS[found] is not Verdict.TAKE:
        return Step(found, header, None)
    is_skip = header.kind is Kind.SKIP
    length = BLOCK_BYTES if is_skip else header.blocks * BLOCK_BYTES
    rest = read(offset + BLOCK_BYTES, length - BLOCK_BYTES) if length > BLOCK_BYTES else b""
    split = journal_format.meta_bytes(header.slots) - BLOCK_BYTES
    meta = first + rest[:split] if split else first
    payload = memoryview(rest)[split:]
    if (
        len(first) + len(rest) != length
        or journal_format.body_checksum(meta, payload) != header.body_checksum
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
    return Step(found, header, Entry(header, header.record(before), extents, payload))


def recover(
    read: Read, *, where: str, size_bytes: int, volume: str, device_sectors: int
) -> Recovery | None:
    """Looks at the whole journal, and says what of it counts; None for a blank one.

    Args:
        where: the journal's path, for messages.
        size_bytes: of the file or device.
        volume: whose journal it must be.
        device_sectors: size of the device that it would be applied to.

    Raises:
        JournalRefusedError: damaged, foreign, or of another version, volume or size.
    """
    superblock, copies = choose(read, where=where)
    if superblock is None:
        return None
    record = superblock.record
    if record.volume != volume:
        raise JournalRefusedError(
            where,
            f"that of volume {record.volume!r}",
            f"that of {volume!r}",
            "name another journal",
        )
    if record.device_sectors > device_sectors:
        raise JournalRefusedError(
            where,
            f"a replica of {record.device_sectors} sectors",
            f"at most {device_sectors}, the size of the target",
            "name the right target; if it was shrunk, delete the journal and the state file, "
            "and let the source scan",
        )
    wanted_bytes = LOG_OFFSET + superblock.log_bytes
    if size_bytes < wanted_bytes:
        raise JournalRefusedError(
            where, f"{size_bytes} bytes: it was truncated", f"at least {wanted_bytes}"
        )
    return _scan(
        read,
        where=where,
        superblock=superblock,
        copies=copies,
        record=replace(record, device_sectors=device_sectors),
    )


def _scan(
    read: Read,
    *,
    where: str,
    superblock: Superblock,
    copies: tuple[Copy, ...],
    record: ReplicaRecord,
) -> Recovery:
    at = superblock.checkpoint
    jobs = slots = 0
    while True:
        if at.position - superblock.checkpoint.position >= superblock.log_bytes:
            step = Step(Found.LOG_FULL, None, None)
            break
        step = read_step(read, superblock=superblock, at=at, before=record)
        if VERDICTS[step.found] is not Verdict.TAKE or step.header is None:
            break
        if step.entry is not None:
            record = step.entry.record
            jobs += 1
            slots += step.header.slots
        at = step.header.end
    place = f"{step.found.value} at sequence {at.sequence}, position {at.position}"
    if VERDICTS[step.found] is Verdict.REFUSE:
        raise JournalRefusedError(where, place, "the next entry, or the log's end")
    if _is_hole(read, superblock=superblock, at=at):
        raise JournalRefusedError(
            where,
            f"{place}, although that entry was acknowledged as durable once",
            "it intact: the disk lost or changed it",
        )
    return Recovery(
        superblock=superblock,
        copies=copies,
        end=at,
        ended_by=step.found,
        record=record,
        jobs=jobs,
        slots=slots,
    )


def _is_hole(read: Read, *, superblock: Superblock, at: Cursor) -> bool:
    """Whether a witness says that the entry missing at `at` was durable once."""
    if superblock.durable > at.sequence:
        return True
    lap_end = superblock.checkpoint.position + superblock.log_bytes
    limit = min(at.position + WITNESS_BYTES, lap_end)
    position = at.position
    while position < limit:
        length = min(
            _READ_BYTES,
            limit - position,
            journal_format.rest_of_lap(position, superblock.log_bytes),
        )
        data = read(journal_format.offset_of(position, superblock.log_bytes), length)
        words = np.frombuffer(data, "<u8", count=len(data) // 8)[:: BLOCK_BYTES // 8]
        for block in np.flatnonzero(words == _ENTRY_MAGIC_WORD).tolist():
            header = journal_format.decode_entry_header(
                data[block * BLOCK_BYTES :][:HEADER_ENTRY_BYTES]
            )
            if (
                header is not None
                and header.journal == superblock.journal
                and header.run == superblock.run
                and header.cursor.position == position + block * BLOCK_BYTES
                and header.durable > at.sequence
            ):
                return True
        position += length
    return False


def replay(read: Read, recovery: Recovery) -> Iterator[Entry]:
    """The jobs that count, in order, to be applied to the device again.

    Raises:
        JournalRefusedError: the disk gives other bytes than a moment ago.
    """
    superblock = recovery.superblock
    at = superblock.checkpoint
    record = replace(superblock.record, device_sectors=recovery.record.device_sectors)
    while at < recovery.end:
        step = read_step(read, superblock=superblock, at=at, before=record)
        if VERDICTS[step.found] is not Verdict.TAKE or step.header is None:
            raise JournalRefusedError(
                f"at sequence {at.sequence}", step.found.value, "the entry that was there before"
            )
        if step.entry is not None:
            record = step.entry.record
            yield step.entry
        at = step.header.end
