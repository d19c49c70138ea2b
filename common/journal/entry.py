# SPDX-License-Identifier: GPL-2.0-only
"""An entry's bytes, version 2. No I/O here.

An entry is a header of 2048 bytes with a checksum of its own, the slots' headers,
zeros up to the next block, and the slots' payload. The header's checksum is looked
at first, and nothing in an entry is believed before it. Then the header must say
that it is what is wanted here: this journal, this run, this position, this sequence.
So what is left of older laps, or of an older journal in the same place, is known.

An entry never wraps: where it does not fit into the rest of the lap, a SKIP entry
takes that rest and the entry begins at the next lap. (Splitting would save at most one
batch a lap, and cost every reader and writer a second case.)

`docs/journal.md` has every byte; `common/journal/entry_reader.py` says which entries
are valid in their place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

import xxhash

from bdr.common.journal.layout import (
    BLOCK_BYTES,
    CHECKSUM_BYTES,
    Cursor,
    checksum,
    rest_of_lap,
    round_up,
)
from bdr.common.journal.superblock import Superblock
from bdr.common.ring.layout import HEADER_BYTES, PAYLOAD_BYTES
from bdr.common.target.record import (
    RECORD_BYTES_MAX,
    ReplicaRecord,
    decode_record,
    encode_record,
)
from bdr.common.wire.codec import Buffer

ENTRY_MAGIC = b"BDRENTRY"

_HEADER = struct.Struct("<8s16s16sQQQQIIII16s")
HEADER_ENTRY_BYTES = 2048
"""Its fields, and behind them the replica's record."""
_CHECKSUM = slice(8, 24)
assert _HEADER.size + RECORD_BYTES_MAX <= HEADER_ENTRY_BYTES


class Kind(IntEnum):
    """What an entry is."""

    JOB = 1
    """A job of the replica: its slots, which may be none, and the record after it."""
    SKIP = 2
    """Nothing: takes the rest of a lap."""


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
    record: ReplicaRecord | None
    """After it; None for a SKIP."""
    body_checksum: bytes

    @property
    def end(self) -> Cursor:
        """Where the next entry stands."""
        return Cursor(
            self.cursor.position + self.blocks * BLOCK_BYTES,
            self.cursor.sequence + 1,
        )

    def record_after(self, before: ReplicaRecord) -> ReplicaRecord:
        """The replica's record when this entry has been applied behind `before`.

        What says where the record is kept, and of which device, stays as it was.
        """
        if self.record is None:
            return before
        return replace(
            self.record,
            volume=before.volume,
            device_sectors=before.device_sectors,
            device=before.device,
            journal=before.journal,
            clean=before.clean,
        )


def meta_bytes(slots: int) -> int:
    """Length of the header, the slots' headers and the zeros behind them."""
    return round_up(HEADER_ENTRY_BYTES + slots * HEADER_BYTES)


def entry_bytes(slots: int) -> int:
    """Length of an entry of so many slots."""
    return meta_bytes(slots) + slots * PAYLOAD_BYTES


def skip_bytes(position: int, slots: int, log_bytes: int) -> int:
    """Length of the SKIP that an entry of so many slots needs before it; 0 for none."""
    rest = rest_of_lap(position, log_bytes)
    return rest if entry_bytes(slots) > rest else 0


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
            record=record,
            body_checksum=b"",
        ),
    )
    return bytes(meta)


def encode_skip(*, superblock: Superblock, cursor: Cursor, durable: int, length: int) -> bytes:
    """The first block of a SKIP entry of this length; the content of the rest is ignored."""
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
            record=None,
            body_checksum=b"",
        ),
    )
    return bytes(meta)


def _seal(meta: bytearray, payload: Buffer, header: EntryHeader) -> None:
    """Writes the header into `meta`, with both checksums."""
    record = b"" if header.record is None else encode_record(header.record)
    _HEADER.pack_into(
        meta,
        0,
        ENTRY_MAGIC,
        bytes(CHECKSUM_BYTES),
        header.journal,
        header.run,
        header.cursor.sequence,
        header.cursor.position,
        header.durable,
        int(header.kind),
        header.slots,
        header.blocks,
        len(record),
        body_checksum(meta, payload),
    )
    meta[_HEADER.size : _HEADER.size + len(record)] = record
    meta[_CHECKSUM] = checksum(meta[:HEADER_ENTRY_BYTES])


def decode_entry_header(data: Buffer) -> EntryHeader | None:
    """The header that `data` begins with, or None where its checksum does not fit.

    Nothing is compared with what is wanted here: that is recovery's part.
    """
    head = bytearray(data[:HEADER_ENTRY_BYTES])
    if len(head) != HEADER_ENTRY_BYTES or not head.startswith(ENTRY_MAGIC):
        return None
    found = bytes(head[_CHECKSUM])
    head[_CHECKSUM] = bytes(CHECKSUM_BYTES)
    if checksum(head) != found:
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
        record_bytes,
        body,
    ) = _HEADER.unpack_from(head)
    record = decode_record(bytes(head[_HEADER.size : _HEADER.size + record_bytes]))
    if kind not in (Kind.JOB, Kind.SKIP) or (record is None) != (kind == Kind.SKIP):
        return None  # no writer of this version makes such a kind or record
    return EntryHeader(
        kind=Kind(kind),
        journal=journal,
        run=run,
        cursor=Cursor(position, sequence),
        durable=durable,
        blocks=blocks,
        slots=slots,
        record=record,
        body_checksum=body,
    )


def body_checksum(meta: Buffer | bytearray, payload: Buffer) -> bytes:
    """xxh3-128 over all that follows the entry's header."""
    digest = xxhash.xxh3_128(memoryview(meta)[HEADER_ENTRY_BYTES:])
    digest.update(payload)
    return digest.digest()
