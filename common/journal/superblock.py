# SPDX-License-Identifier: GPL-2.0-only
"""The superblock's bytes, version 2: where the log that still counts begins. No I/O here.

It holds the **checkpoint**, below which everything is durable on the device, and the
replica's record and witness there. Its two copies are written in turn; log space is free only below
the checkpoint of the *older* copy, so each copy alone suffices to recover.

A **run** is the life of one writer. Each opening begins a new one, and so an entry
that stood intact behind a torn one, and was cut with it, can never become the
successor of what is written in its predecessor's place.

`docs/journal.md` has every byte; `common/journal/superblock_choice.py` decides which
copy counts, `common/journal/run.py` writes the first two of a run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum

from bdr.common.journal.layout import (
    BLOCK_BYTES,
    CHECKSUM_BYTES,
    COPIES,
    LOG_BYTES_MIN,
    Cursor,
    checksum,
)
from bdr.common.target.record import (
    NO_JOURNAL,
    RECORD_BYTES_MAX,
    ReplicaRecord,
    decode_record,
    encode_record,
)
from bdr.common.target.witness import WITNESS_BYTES_MAX, Witness

VERSION = 2
SUPERBLOCK_MAGIC = b"BDRJRNL\0"

_SUPERBLOCK = struct.Struct("<8sI4x16sQ16sQQQQQIII4x")
_WITNESS_OFFSET = 2048
"""Behind the record."""
assert _SUPERBLOCK.size + RECORD_BYTES_MAX <= _WITNESS_OFFSET
assert _WITNESS_OFFSET + WITNESS_BYTES_MAX <= BLOCK_BYTES
_CHECKSUM = slice(16, 32)
_POSITION_MAX = 1 << 62


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
    witness: bytes = b""
    """Encoded: of the device at the checkpoint."""

    def next(
        self,
        *,
        checkpoint: Cursor,
        durable: int,
        record: ReplicaRecord,
        witness: bytes,
        is_closed: bool = False,
    ) -> Superblock:
        """The superblock to be written after this one, in the other copy."""
        return replace(
            self,
            generation=self.generation + 1,
            checkpoint=checkpoint,
            durable=durable,
            record=record,
            witness=witness,
            is_closed=is_closed,
        )

    @property
    def offset(self) -> int:
        """Where this superblock is written."""
        return self.generation % COPIES * BLOCK_BYTES


class Copy(Enum):
    """What one copy of the superblock turned out to be."""

    INTACT = "intact"
    BLANK = "blank"
    DAMAGED = "damaged"
    """Bears the magic, but not the checksum that fits: torn, or rotten."""
    OTHER_VERSION = "of another version"
    FOREIGN = "not a journal's"
    """Bytes without the magic."""


def encode_superblock(superblock: Superblock) -> bytes:
    """One copy, `BLOCK_BYTES` long."""
    record = encode_record(superblock.record)
    block = bytearray(BLOCK_BYTES)
    _SUPERBLOCK.pack_into(
        block,
        0,
        SUPERBLOCK_MAGIC,
        VERSION,
        bytes(CHECKSUM_BYTES),
        superblock.generation,
        superblock.journal,
        superblock.log_bytes,
        superblock.run,
        superblock.checkpoint.position,
        superblock.checkpoint.sequence,
        superblock.durable,
        int(superblock.is_closed),
        len(record),
        len(superblock.witness),
    )
    block[_SUPERBLOCK.size : _SUPERBLOCK.size + len(record)] = record
    witness = superblock.witness
    block[_WITNESS_OFFSET : _WITNESS_OFFSET + len(witness)] = witness
    block[_CHECKSUM] = checksum(block)
    return bytes(block)


def inspect_superblock(block: bytes) -> tuple[Copy, Superblock | None]:
    """What one copy is, and its content where it is intact."""
    if not block.strip(b"\0"):
        return Copy.BLANK, None
    if len(block) != BLOCK_BYTES or not block.startswith(SUPERBLOCK_MAGIC):
        return Copy.FOREIGN, None
    zeroed = bytearray(block)
    zeroed[_CHECKSUM] = bytes(CHECKSUM_BYTES)
    if checksum(zeroed) != block[_CHECKSUM]:
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
        is_closed,
        record_bytes,
        witness_bytes,
    ) = _SUPERBLOCK.unpack_from(block)
    witness = block[_WITNESS_OFFSET : _WITNESS_OFFSET + witness_bytes]
    record = decode_record(block[_SUPERBLOCK.size : _SUPERBLOCK.size + record_bytes])
    if (
        record is None
        or record_bytes > RECORD_BYTES_MAX
        or witness_bytes > WITNESS_BYTES_MAX
        or Witness.decode(witness) is None
        or log_bytes < LOG_BYTES_MIN
        or log_bytes % BLOCK_BYTES
        or position % BLOCK_BYTES
        or position >= _POSITION_MAX
        or is_closed > 1
        or journal == NO_JOURNAL
    ):
        return None
    return Superblock(
        generation=generation,
        journal=journal,
        log_bytes=log_bytes,
        run=run,
        checkpoint=Cursor(position, sequence),
        durable=durable,
        is_closed=bool(is_closed),
        record=record,
        witness=witness,
    )
