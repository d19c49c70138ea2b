# SPDX-License-Identifier: GPL-2.0-only
"""The journal's format, version 1: a circular write-ahead log. No I/O here.

```
0            4096         8192
| superblock | superblock | log: log_bytes, a multiple of 4096 ............... |
  copy 0       copy 1
```

A **position** counts the bytes ever logged; it only grows, and stands at offset
`8192 + position mod log_bytes`. An **entry** begins at a multiple of 4096, takes
whole blocks, and never wraps: where it does not fit into the rest of the lap, a
SKIP entry takes that rest and the entry begins at the next lap. (Splitting would
save at most one batch a lap, and cost every reader and writer a second case.)

An entry is a header of 160 bytes with a checksum of its own, the slots' headers,
zeros up to the next block, and the slots' payload. The header's checksum is looked
at first, and nothing in an entry is believed before it. Then the header must say
that it is what is wanted here: this journal, this run, this position, this sequence.
So what is left of older laps, or of an older journal in the same place, is known.

A **run** is the life of one writer. Each opening begins a new one, and so an entry
that stood intact behind a torn one, and was cut with it, can never become the
successor of what is written in its predecessor's place.

The **superblock** says where the log that still counts begins (the checkpoint), and
what the replica's record is there. Its two copies are written in turn; log space is
free only below the checkpoint of the *older* copy, so each copy alone suffices.

`docs/journal.md` has every byte; `common/journal/recovery.py` says what is believed,
`common/journal/engine.py` in which order things are written.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

import xxhash

from bdr.common.ring.layout import HEADER_BYTES, PAYLOAD_BYTES
from bdr.common.target.record import NO_JOURNAL, NO_STREAM, ReplicaRecord
from bdr.common.wire.batch import BATCH_SLOTS_MAX
from bdr.common.wire.codec import NAME_BYTES_MAX, Buffer
from bdr.common.wire.condition import Condition

VERSION = 1
SUPERBLOCK_MAGIC = b"BDRJRNL\0"
ENTRY_MAGIC = b"BDRENTRY"

BLOCK_BYTES = 4096
COPIES = 2
LOG_OFFSET = COPIES * BLOCK_BYTES

_SUPERBLOCK = struct.Struct("<8sI4x16sQ16sQQQQQQ16sQQIII4x64sQQQ")
_HEADER = struct.Struct("<8s16s16sQQQQIIII16sQQ16sQQQ")
HEADER_ENTRY_BYTES = _HEADER.size

_SUPERBLOCK_CHECKSUM = slice(16, 32)
_HEADER_CHECKSUM = slice(8, 24)
_CHECKSUM_BYTES = 16
_POSITION_MAX = 1 << 62

UNSYNCED_BYTES_MAX = 32 << 20
"""A writer syncs at the latest after so much, skips not counted."""


class Kind(IntEnum):
    """What an entry is."""

    JOB = 1
    """A job of the replica: its slots, which may be none, and the record after it."""
    SKIP = 2
    """Nothing: takes the rest of a lap."""


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the log, and the sequence of the entry that stands or will stand there."""

    position: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """Where the log that counts begins."""

    generation: int
    """Counts the superblocks written; copy number = generation mod 2."""
    journal: bytes
    """Random id made with the journal."""
    log_bytes: int
    run: int
    checkpoint: Cursor
    """Everything below it is durable on the device."""
    durable: int
    """Sequence below which every entry was durable when this was written."""
    is_closed: bool
    """A clean stop: the log holds nothing, and the state file has the record."""
    record: ReplicaRecord
    """The replica's record at the checkpoint."""

    def next(
        self,
        *,
        checkpoint: Cursor,
        durable: int,
        record: ReplicaRecord,
        is_closed: bool = False,
    ) -> Superblock:
        """The superblock to be written after this one, in the other copy."""
        return replace(
            self,
            generation=self.generation + 1,
            checkpoint=checkpoint,
            durable=durable,
            record=record,
            is_closed=is_closed,
        )

    @property
    def offset(self) -> int:
        """Where this superblock is written."""
        return self.generation % COPIES * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """What an entry says of itself."""

    kind: Kind
    journal: bytes
    run: int
    cursor: Cursor
    durable: int
    """Sequence below which every entry was durable when this one was written."""
    blocks: int
    """Length of the whole entry."""
    slots: int
    stream: bytes
    slot: int
    epoch: int
    condition: Condition
    body_checksum: bytes
    since_s: int = 0
    at_s: int = 0
    left_bytes: int = 0

    @property
    def end(self) -> Cursor:
        """Where the next entry stands."""
        return Cursor(
            self.cursor.position + self.blocks * BLOCK_BYTES,
            self.cursor.sequence + 1,
        )

    def record(self, before: ReplicaRecord) -> ReplicaRecord:
        """The replica's record when this entry has been applied behind `before`."""
        return replace(
            before,
            stream=self.stream,
            slot=self.slot,
            epoch=self.epoch,
            condition=self.condition,
            since_utc=self.since_s,
            accepted_utc=self.at_s,
            left_bytes=self.left_bytes,
        )


class Copy(Enum):
    """What one copy of the superblock turned out to be."""

    INTACT = "intact"
    BLANK = "blank"
    DAMAGED = "damaged"
    """Bears the magic, but not the checksum that fits: torn, or rotten."""
    OTHER_VERSION = "of another version"
    FOREIGN = "not a journal's"
    """Bytes without the magic."""


# Arithmetic of the circle.


def log_bytes_of(size_bytes: int) -> int:
    """How much log fits into a file or device of this size."""
    return max(0, (size_bytes - LOG_OFFSET) // BLOCK_BYTES * BLOCK_BYTES)


def offset_of(position: int, log_bytes: int) -> int:
    """Where in the file a position stands."""
    return LOG_OFFSET + position % log_bytes


def rest_of_lap(position: int, log_bytes: int) -> int:
    """Bytes from a position to the end of its lap, never 0."""
    return log_bytes - position % log_bytes


def meta_bytes(slots: int) -> int:
    """Length of the header, the slots' headers and the zeros behind them."""
    return _round_up(HEADER_ENTRY_BYTES + slots * HEADER_BYTES)


def entry_bytes(slots: int) -> int:
    """Length of an entry of so many slots."""
    return meta_bytes(slots) + slots * PAYLOAD_BYTES


def skip_bytes(position: int, slots: int, log_bytes: int) -> int:
    """Length of the SKIP that an entry of so many slots needs before it; 0 for none."""
    rest = rest_of_lap(position, log_bytes)
    return rest if entry_bytes(slots) > rest else 0


def _round_up(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


ENTRY_BYTES_MAX = entry_bytes(BATCH_SLOTS_MAX)
LOG_BYTES_MIN = 4 * BLOCK_BYTES
"""Less makes no circle. What a service takes at least is more."""


# Superblock.


def encode_superblock(superblock: Superblock) -> bytes:
    """One copy, `BLOCK_BYTES` long."""
    record = superblock.record
    volume = record.volume.encode()
    block = bytearray(BLOCK_BYTES)
    _SUPERBLOCK.pack_into(
        block,
        0,
        SUPERBLOCK_MAGIC,
        VERSION,
        bytes(_CHECKSUM_BYTES),
        superblock.generation,
        superblock.journal,
        superblock.log_bytes,
        superblock.run,
        superblock.checkpoint.position,
        superblock.checkpoint.sequence,
        superblock.durable,
        record.device_sectors,
        record.stream,
        record.slot,
        record.epoch,
        int(record.condition),
        int(superblock.is_closed),
        len(volume),
        volume,
        record.since_utc,
        record.accepted_utc,
        record.left_bytes,
    )
    block[_SUPERBLOCK_CHECKSUM] = _checksum(block)
    return bytes(block)


def inspect_superblock(block: bytes) -> tuple[Copy, Superblock | None]:
    """What one copy is, and its content where it is intact."""
    if not block.strip(b"\0"):
        return Copy.BLANK, None
    if len(block) != BLOCK_BYTES or not block.startswith(SUPERBLOCK_MAGIC):
        return Copy.FOREIGN, None
    zeroed = bytearray(block)
    zeroed[_SUPERBLOCK_CHECKSUM] = bytes(_CHECKSUM_BYTES)
    if _checksum(zeroed) != block[_SUPERBLOCK_CHECKSUM]:
        return Copy.DAMAGED, None
    # Magic, version and checksum stand where they stand in every version.
    if found_version(block) != VERSION:
        return Copy.OTHER_VERSION, None
    superblock = _unpack_superblock(block)
    return (Copy.DAMAGED, None) if superblock is None else (Copy.INTACT, superblock)


def found_version(block: bytes) -> int:
    """The version that a copy with magic and checksum claims."""
    return int.from_bytes(block[8:12], "little")


def _unpack_superblock(block: bytes) -> Superblock | None:
    (
        _,
        _,
        _,
        generation,
        journal,
        log_bytes,
        run,
        position,
        sequence,
        durable,
        device_sectors,
        stream,
        slot,
        epoch,
        condition,
        is_closed,
        volume_bytes,
        volume,
        since_s,
        at_s,
        left_bytes,
    ) = _SUPERBLOCK.unpack_from(block)
    if (
        log_bytes < LOG_BYTES_MIN
        or log_bytes % BLOCK_BYTES
        or position % BLOCK_BYTES
        or position >= _POSITION_MAX
        or volume_bytes > NAME_BYTES_MAX
        or is_closed > 1
        or journal == NO_JOURNAL
    ):
        return None
    try:
        name = volume[:volume_bytes].decode()
        known_condition = Condition(condition)
    except ValueError:
        return None
    return Superblock(
        generation=generation,
        journal=journal,
        log_bytes=log_bytes,
        run=run,
        checkpoint=Cursor(position, sequence),
        durable=durable,
        is_closed=bool(is_closed),
        record=ReplicaRecord(
            volume=name,
            device_sectors=device_sectors,
            stream=stream,
            slot=slot,
            epoch=epoch,
            condition=known_condition,
            clean=True,
            since_utc=since_s,
            accepted_utc=at_s,
            left_bytes=left_bytes,
        ),
    )


# Entries.


def encode_entry(
    *,
    superblock: Superblock,
    cursor: Cursor,
    durable: int,
    record: ReplicaRecord,
    headers: Buffer,
    payload: Buffer,
) -> bytes:
    """The part of a JOB entry that stands before its payload.

    Args:
        superblock: of the run that writes it.
        cursor: where it will stand; it must fit into the rest of the lap.
        record: the replica's record after the job.
        headers: 8 bytes a slot.
        payload: 4096 bytes a slot; hashed, not copied.
    """
    slots = len(headers) // HEADER_BYTES
    meta = bytearray(meta_bytes(slots))
    meta[HEADER_ENTRY_BYTES : HEADER_ENTRY_BYTES + len(headers)] = headers
    _seal(
        meta,
        payload,
        EntryHeader(
            kind=Kind.JOB,
            journal=superblock.journal,
            run=superblock.run,
            cursor=cursor,
            durable=durable,
            blocks=entry_bytes(slots) // BLOCK_BYTES,
            slots=slots,
            stream=record.stream,
            slot=record.slot,
            epoch=record.epoch,
            condition=record.condition,
            body_checksum=b"",
            since_s=record.since_utc,
            at_s=record.accepted_utc,
            left_bytes=record.left_bytes,
        ),
    )
    return bytes(meta)


def encode_skip(*, superblock: Superblock, cursor: Cursor, durable: int, length: int) -> bytes:
    """The first block of a SKIP entry of this length; what stands in the rest is no matter."""
    meta = bytearray(BLOCK_BYTES)
    _seal(
        meta,
        b"",
        EntryHeader(
            kind=Kind.SKIP,
            journal=superblock.journal,
            run=superblock.run,
            cursor=cursor,
            durable=durable,
            blocks=length // BLOCK_BYTES,
            slots=0,
            stream=NO_STREAM,
            slot=0,
            epoch=0,
            condition=Condition.CONSISTENT,
            body_checksum=b"",
        ),
    )
    return bytes(meta)


def _seal(meta: bytearray, payload: Buffer, header: EntryHeader) -> None:
    """Writes the header into `meta`, with both checksums."""
    _HEADER.pack_into(
        meta,
        0,
        ENTRY_MAGIC,
        bytes(_CHECKSUM_BYTES),
        header.journal,
        header.run,
        header.cursor.sequence,
        header.cursor.position,
        header.durable,
        int(header.kind),
        header.slots,
        header.blocks,
        int(header.condition),
        header.stream,
        header.slot,
        header.epoch,
        body_checksum(meta, payload),
        header.since_s,
        header.at_s,
        header.left_bytes,
    )
    meta[_HEADER_CHECKSUM] = _checksum(meta[:HEADER_ENTRY_BYTES])


def decode_entry_header(data: Buffer) -> EntryHeader | None:
    """The header that `data` begins with, or None where its checksum does not fit.

    Nothing is compared with what is wanted here: that is recovery's part.
    """
    head = bytearray(data[:HEADER_ENTRY_BYTES])
    if len(head) != HEADER_ENTRY_BYTES or not head.startswith(ENTRY_MAGIC):
        return None
    checksum = bytes(head[_HEADER_CHECKSUM])
    head[_HEADER_CHECKSUM] = bytes(_CHECKSUM_BYTES)
    if _checksum(head) != checksum:
        return None
    (
        _,
        _,
        journal,
        run,
        sequence,
        position,
        durable,
        kind,
        slots,
        blocks,
        condition,
        stream,
        slot,
        epoch,
        body,
        since_s,
        at_s,
        left_bytes,
    ) = _HEADER.unpack(head)
    try:
        return EntryHeader(
            kind=Kind(kind),
            journal=journal,
            run=run,
            cursor=Cursor(position, sequence),
            durable=durable,
            blocks=blocks,
            slots=slots,
            stream=stream,
            slot=slot,
            epoch=epoch,
            condition=Condition(condition),
            body_checksum=body,
            since_s=since_s,
            at_s=at_s,
            left_bytes=left_bytes,
        )
    except ValueError:
        return None  # no writer of this version makes such a kind or condition


def body_checksum(meta: Buffer | bytearray, payload: Buffer) -> bytes:
    """xxh3-128 over all that follows the entry's header."""
    digest = xxhash.xxh3_128(memoryview(meta)[HEADER_ENTRY_BYTES:])
    digest.update(payload)
    return digest.digest()


def _checksum(data: bytes | bytearray) -> bytes:
    return xxhash.xxh3_128(data).digest()
