# SPDX-License-Identifier: GPL-2.0-only
"""A target's persistent record of its replica, and its format. No I/O here.

The record is stored in two copies of 4096 bytes, written alternately: a power cut during a write
leaves the other copy intact. Each copy has a generation and a checksum; the intact one with the
higher generation is valid.

Copy: 8 bytes magic, u64 generation, u32 body length, xxh3-128 of generation and
body (16 bytes), body: msgpack map, with the keys of `_KEYS`; optional ones are left out where the
value is unknown. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import msgpack
import xxhash

from bdr.common.errors import StateError
from bdr.common.wire.codec import NAME_BYTES_MAX, STREAM_BYTES
from bdr.common.wire.condition import Condition

MAGIC = b"BDRREC01"
COPY_BYTES = 4096
COPIES = 2
RECORD_BYTES = COPIES * COPY_BYTES
NO_STREAM = bytes(STREAM_BYTES)
JOURNAL_ID_BYTES = 16
NO_JOURNAL = bytes(JOURNAL_ID_BYTES)

_KEYS: Mapping[str, str] = {
    "volume": "volume",
    "device_sectors": "device_sectors",
    "stream": "stream",
    "slot": "slot",
    "epoch": "epoch",
    "condition": "condition",
    "clean": "clean",
    "journal": "journal",
    "since_s": "since_utc",
    "at_s": "accepted_utc",
    "left_bytes": "left_bytes",
    "promoted_s": "promoted_utc",
    "device": "device",
}
"""Keys on disk, in their order, to the attributes of a record. They are never renamed."""
_OPTIONAL_KEYS = ("since_s", "at_s", "left_bytes", "promoted_s", "device")
"""Left out where the value is not known, so the bytes are those of an older version."""
_HEAD = struct.Struct("<8sQI16s")


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """The replica's position in its source's stream, as of the last sync."""

    volume: str
    device_sectors: int
    stream: bytes = NO_STREAM
    """Zeros: the target has had no source yet."""
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
    accepted_utc: int = 0
    """When the last batch was accepted, in the same unit: the age of the replica."""
    left_bytes: int = 0
    """Bytes that its source has not compared yet, as last reported, while a scan is needed."""
    promoted_utc: int = 0
    """When the device was promoted, in the same unit; 0: it is a replica."""
    device: str = ""
    """Identity of the device, if it has one: see `common.storage.target_device`."""

    def at_start(self) -> ReplicaRecord:
        """The record for a starting applier.

        After a crash the device may hold any subset of the writes beyond `slot`: the content is a
        prefix again only when the source has sent everything that it had.
        """
        if self.condition is Condition.CONSISTENT and not self.clean:
            return replace(self, condition=Condition.CATCHING_UP, since_utc=0)
        return self


def demoted(record: ReplicaRecord, *, stream: bytes, now_utc: int) -> ReplicaRecord:
    """The record of a device that becomes a replica again, to be compared completely.

    Args:
        stream: one that no source has, so that none continues from its former position.
        now_utc: now, seconds since 1970.
    """
    return replace(
        record,
        journal=NO_JOURNAL,
        stream=stream,
        slot=0,
        condition=Condition.INCONSISTENT,
        clean=True,
        since_utc=now_utc,
        promoted_utc=0,
    )


def encode_copy(record: ReplicaRecord, generation: int) -> bytes:
    """One copy, padded to `COPY_BYTES`."""
    values = asdict(record) | {"condition": int(record.condition)}
    fields = {
        key: values[attribute]
        for key, attribute in _KEYS.items()
        if values[attribute] or key not in _OPTIONAL_KEYS
    }
    body: bytes = msgpack.packb(fields, use_bin_type=True)
    head = _HEAD.pack(MAGIC, generation, len(body), _digest(generation, body))
    return (head + body).ljust(COPY_BYTES, b"\0")


def decode_copy(data: bytes) -> tuple[int, ReplicaRecord] | None:
    """Generation and record, or None if the copy is torn, blank or foreign."""
    if len(data) != COPY_BYTES:
        return None
    magic, generation, length, digest = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(body) != length or digest != _digest(generation, body):
        return None
    try:
        fields = msgpack.unpackb(body, raw=False)
        values = {_KEYS[key]: value for key, value in fields.items()}
        record = ReplicaRecord(**values | {"condition": Condition(values["condition"])})
        sizes = len(record.stream), len(record.volume.encode())
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return None
    if sizes[0] != STREAM_BYTES or sizes[1] > NAME_BYTES_MAX:
        return None
    return generation, record


def choose(copies: list[bytes], *, where: str) -> tuple[int, ReplicaRecord] | None:
    """The valid copy, or None if nothing was ever made durable.

    Raises:
        StateError: the file is not blank, and no copy is intact.
    """
    intact = [found for found in map(decode_copy, copies) if found is not None]
    if intact:
        return max(intact, key=lambda found: found[0])
    if any(copy.strip(b"\0") for copy in copies) and not _is_first_save_torn(copies):
        raise StateError(
            f"replica state {where}: found no intact record of this version, "
            f"wanted two copies that begin with {MAGIC.decode()}; if this file is not BDR's, "
            "set another one; if it is, delete it and let the source scan"
        )
    return None


def _is_first_save_torn(copies: list[bytes]) -> bool:
    """Whether the power was cut during the first save, which writes copy 1."""
    others = copies[:1] + copies[2:]
    begun = copies[1][: len(MAGIC)].rstrip(b"\0")
    return MAGIC.startswith(begun) and not any(copy.strip(b"\0") for copy in others)


def _digest(generation: int, body: bytes) -> bytes:
    return xxhash.xxh3_128(generation.to_bytes(8, "little") + body).digest()
