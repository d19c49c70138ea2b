# SPDX-License-Identifier: GPL-2.0-only
"""A target's persistent record of its replica, and its format. No I/O here.

It stands in the state file (see `common.copies`) and in the journal's superblocks and
entries, as one msgpack map; `_TYPES` has the names on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import msgpack

from bdr.common.copies import Copies
from bdr.common.wire.batch import RECENT_BATCHES, AcceptedBatch
from bdr.common.wire.codec import (
    FLAG,
    GENERATION,
    GENERATION_BYTES,
    ID,
    ID_BYTES,
    NAME_BYTES_MAX,
    STREAM,
    STREAM_BYTES,
    TEXT,
    U64,
    FieldType,
    member,
)
from bdr.common.wire.condition import Condition

COPIES = Copies(b"BDRREC02", "replica state")
RECORD_BYTES_MAX = 1920
"""Of an encoded record."""
NO_STREAM = bytes(STREAM_BYTES)
NO_SOURCE = NO_TARGET = NO_JOURNAL = bytes(ID_BYTES)
NO_GENERATION = bytes(GENERATION_BYTES)
ANY_SOURCE = b"\xff" * ID_BYTES
JOURNAL_ID_BYTES = ID_BYTES


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """The replica's position in its source's stream, as of the last sync."""

    volume: str
    device_sectors: int
    stream: bytes = NO_STREAM
    """Zeros: the replica has no position."""
    slot: int = 0
    """Every slot below it is durable on the device."""
    epoch: int = 0
    """Last epoch; the next one is higher, which identifies batches of earlier sessions."""
    condition: Condition = Condition.INCONSISTENT
    clean: bool = True
    """The device has no writes beyond `slot`: after a clean stop, or a journal's replay."""
    journal: bytes = NO_JOURNAL
    """Id of the journal in use, whose record is newer than the state file's."""
    since_utc: int = 0
    """Since when the condition holds: seconds since 1970, UTC; 0 if that is not known."""
    as_of_utc: int = 0
    """The source's wall clock up to which the replica lacks nothing, in the same unit."""
    left_bytes: int = 0
    """Bytes that its source has not compared yet, as last reported, while a scan is needed."""
    promoted_utc: int = 0
    """When the device was promoted, in the same unit; 0: it is a replica."""
    device: str = ""
    """What the device calls itself, if it does: see `common.storage.target_device`."""
    target: bytes = NO_TARGET
    """The target's id, made with the record."""
    source: bytes = NO_SOURCE
    """The id of the source whose replica it is; zeros before the first."""
    generation: bytes = NO_GENERATION
    """The newest identifier that this source has sent."""
    changes: int = 0
    """Markers and resync batches of the stream that were accepted."""
    recent: tuple[AcceptedBatch, ...] = ()
    """The last LIVE batches of the stream that were accepted, oldest first."""
    adopts: bytes = NO_SOURCE
    """This source may overwrite whatever the device holds, once; `ANY_SOURCE`: the next one."""
    is_given_up: bool = False
    """What the device had beyond its source was given up, by `bdr demote`."""
    as_of_ns: int = 0
    """The clock of the stream's capture at `as_of_utc`; 0: not known."""
    source_sectors: int = 0
    """Size of the source's device; 0 before the first source."""

    def without_position(self, *, condition: Condition, since_utc: int) -> ReplicaRecord:
        """The record of a device that is no longer what was remembered of it."""
        return replace(
            self,
            stream=NO_STREAM,
            slot=0,
            changes=0,
            recent=(),
            as_of_ns=0,
            condition=condition,
            clean=True,
            since_utc=since_utc,
        )

    def at_start(self) -> ReplicaRecord:
        """The record for a starting applier.

        After a crash the device may hold any subset of the writes beyond `slot`: the content is a
        prefix again only when the source has sent everything that it had.
        """
        if self.condition is Condition.CONSISTENT and not self.clean:
            return replace(self, condition=Condition.CATCHING_UP, since_utc=0)
        return self


_TYPES: dict[str, FieldType] = {
    "volume": TEXT,
    "device_sectors": U64,
    "stream": STREAM,
    "slot": U64,
    "epoch": U64,
    "condition": member(Condition),
    "clean": FLAG,
    "journal": ID,
    "since_utc": U64,
    "as_of_utc": U64,
    "left_bytes": U64,
    "promoted_utc": U64,
    "device": TEXT,
    "target": ID,
    "source": ID,
    "generation": GENERATION,
    "changes": U64,
    "recent": RECENT_BATCHES,
    "adopts": ID,
    "given_up": FLAG,
    "as_of_ns": U64,
    "source_sectors": U64,
}
"""Name on disk, in the order of `ReplicaRecord`, to what it may be."""


def values_of(record: ReplicaRecord) -> dict[str, Any]:
    """What is written of a record."""
    attributes = (getattr(record, each.name) for each in fields(record))
    return {
        name: kind.put(value)
        for (name, kind), value in zip(_TYPES.items(), attributes, strict=True)
    }


def of_values(values: object) -> ReplicaRecord | None:
    """The inverse of `values_of`; None where they are not such values."""
    if not isinstance(values, dict) or values.keys() != _TYPES.keys():
        return None
    if not all(kind.accepts(values[name]) for name, kind in _TYPES.items()):
        return None
    if len(values["volume"].encode()) > NAME_BYTES_MAX:
        return None
    return ReplicaRecord(*(kind.make(values[name]) for name, kind in _TYPES.items()))


def encode_record(record: ReplicaRecord) -> bytes:
    """As it stands in a journal, at most `RECORD_BYTES_MAX` long."""
    packed: bytes = msgpack.packb(values_of(record), use_bin_type=True)
    return packed


def decode_record(data: bytes) -> ReplicaRecord | None:
    """The inverse of `encode_record`; None where it is none of this version."""
    try:
        return of_values(msgpack.unpackb(data, raw=False))
    except (ValueError, msgpack.UnpackException):
        return None


def demoted(record: ReplicaRecord, *, now_utc: int) -> ReplicaRecord:
    """The record of a device that becomes a replica again: all of it is to be compared.

    Args:
        now_utc: now, seconds since 1970.
    """
    given_up = record.without_position(condition=Condition.INCONSISTENT, since_utc=now_utc)
    return replace(given_up, journal=NO_JOURNAL, promoted_utc=0, is_given_up=True)
