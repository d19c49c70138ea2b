# SPDX-License-Identifier: GPL-2.0-only
"""Batches, from sender or scanner to applier, and descriptors, from reader to sender.

A **batch** is three frames:

===== ======================= ===================================================
frame content                 size
===== ======================= ===================================================
0     msgpack [fields, digest, times, check], under 256 bytes; `fields` and `times` are
      themselves packed msgpack
1     the slots' headers      8 bytes per slot, little-endian, as in the ring
2     the slots' payload      4096 bytes per slot, as in the ring
===== ======================= ===================================================

`fields` is [protocol, kind, marker, stream, epoch, number, first, count]; `times` is
[not_before_ns, not_after_ns, *statement]; a **descriptor** is both lists without the protocol.

The digest is xxh3-128 over `fields`, frame 1 and frame 2: it names the content, however often
that is sent. `check` is xxh3-64 over the digest and `times`. Both are checked last: a stale
transmission may have a wrong digest, since its slots may have been reused meanwhile, and is
recognised by its epoch or number first.

Decoding is strict: any input gives a batch or `WireError`, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import xxhash

from bdr.common.errors import WireError
from bdr.common.ring.layout import HEADER_BYTES, PAYLOAD_BYTES
from bdr.common.wire.codec import (
    CHECK_BYTES,
    DIGEST_BYTES,
    STREAM_BYTES,
    Buffer,
    FieldType,
    is_bytes,
    is_u64,
    pack,
    shown,
    unpack,
)
from bdr.common.wire.statement import NO_STATEMENT, Statement, is_statement

PROTOCOL = 2
BATCH_SLOTS_MAX = 1024
BATCH_FIELDS_BYTES_MAX = 256
BATCH_FRAME_BYTES_MAX = BATCH_SLOTS_MAX * PAYLOAD_BYTES

_HEADER_FIELDS = 7
_TIMES = 2 + len(Statement._fields)


class BatchKind(IntEnum):
    """The content of a batch."""

    LIVE = 0
    """Slots of the ring, in order: they advance the replica."""
    RESYNC = 1
    """Repairs of differences found by a scan: the replica does not advance."""
    MARKER = 2
    """No slots: the replica's condition changes at this position in the order."""


class Marker(IntEnum):
    """The condition that a batch of kind MARKER declares."""

    NONE = 0
    INCONSISTENT = 1
    """From here on the replica lacks writes: not consistent until a scan ends."""
    CONSISTENT = 2
    """The replica is a prefix of the source again."""
    UNVERIFIED = 3
    """Every region is marked, to be compared; nothing is known to be wrong."""


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """The fields in frame 0."""

    kind: BatchKind
    marker: Marker
    stream: bytes
    epoch: int
    number: int
    """1, 2, 3 ... within the epoch."""
    first: int
    """First slot (LIVE), or the slot that the batch precedes."""
    count: int
    """Slots in frames 1 and 2."""
    not_before_ns: int = 0
    """LIVE: the slots were captured at this clock or later; of another kind 0."""
    not_after_ns: int = 0
    """LIVE: at this clock or earlier."""
    statement: Statement = NO_STATEMENT
    """Of the replica that has this batch."""

    @property
    def end(self) -> int:
        """The replica's position when the batch has been applied."""
        return self.first + self.count if self.kind is BatchKind.LIVE else self.first


class AcceptedBatch(NamedTuple):
    """A LIVE batch of a stream that a target accepted."""

    epoch: int
    number: int
    first: int
    slots: int
    """[first, first + slots)."""
    digest: bytes
    """As in frame 0."""

    def is_of(self, stream: bytes, headers: Buffer, payload: Buffer) -> bool:
        """Whether these frames, of its slots in a ring of this stream, are what was accepted."""
        header = BatchHeader(
            BatchKind.LIVE, Marker.NONE, stream, self.epoch, self.number, self.first, self.slots
        )
        return _digest(_seal(header), headers, payload) == self.digest


RECENT_BATCHES_MAX = 16
RECENT_BATCHES = FieldType(
    lambda value: (
        isinstance(value, list)
        and len(value) <= RECENT_BATCHES_MAX
        and all(map(_is_accepted_batch, value))
    ),
    lambda value: tuple(AcceptedBatch(*each) for each in value),
    lambda batches: list(map(list, batches)),
)
"""The last ones of a stream, oldest first."""


def _is_accepted_batch(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(AcceptedBatch._fields)
        and all(map(is_u64, value[:4]))
        and value[3] <= BATCH_SLOTS_MAX
        and is_bytes(value[4], DIGEST_BYTES)
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """A received batch: its format is valid, its content only if `is_intact`."""

    header: BatchHeader
    sealed_fields: bytes
    digest: bytes
    sealed_times: bytes
    check: bytes
    headers: Buffer
    payload: Buffer

    def is_intact(self) -> bool:
        """Whether digest and check match."""
        return (
            _check(self.digest, self.sealed_times) == self.check
            and _digest(self.sealed_fields, self.headers, self.payload) == self.digest
        )

    @property
    def size(self) -> int:
        """Bytes that the batch holds in memory."""
        return len(self.headers) + len(self.payload)


def encode_batch(header: BatchHeader, headers: Buffer, payload: Buffer) -> bytes:
    """Frame 0 for these two frames."""
    sealed, times = _seal(header), pack(_times(header))
    digest = _digest(sealed, headers, payload)
    return pack([sealed, digest, times, _check(digest, times)])


def decode_batch(frames: list[Buffer]) -> Batch:
    """Checks form and sizes, not the digest.

    Raises:
        WireError: not a batch of this protocol.
    """
    if len(frames) != 3:
        raise WireError(f"batch: found {len(frames)} frames, wanted 3")
    top, headers, payload = frames
    outer = unpack(top, BATCH_FIELDS_BYTES_MAX, "batch")
    match outer:
        case [bytes() as sealed, bytes() as digest, bytes() as times, bytes() as check] if is_bytes(
            digest, DIGEST_BYTES
        ) and is_bytes(check, CHECK_BYTES):
            pass
        case _:
            raise WireError("batch: frame 0 is not [fields, digest, times, check]")
    inner = unpack(sealed, BATCH_FIELDS_BYTES_MAX, "batch fields")
    if not isinstance(inner, list) or not inner or inner[0] != PROTOCOL:
        found = shown(inner[0]) if isinstance(inner, list) and inner else "nothing"
        raise WireError(f"batch: found protocol {found}, wanted {PROTOCOL}")
    header = _header(inner[1:], unpack(times, BATCH_FIELDS_BYTES_MAX, "batch times"), "batch")
    count = header.count
    if len(headers) != count * HEADER_BYTES or len(payload) != count * PAYLOAD_BYTES:
        raise WireError(
            f"batch of {count} slots: found {len(headers)} bytes of headers and {len(payload)} of "
            f"payload, wanted {count * HEADER_BYTES} and {count * PAYLOAD_BYTES}"
        )
    return Batch(header, sealed, digest, times, check, headers, payload)


def encode_descriptor(header: BatchHeader) -> bytes:
    """One message from reader to sender: the header of the batch to send."""
    return pack([_fields(header), _times(header)])


def decode_descriptor(data: Buffer) -> BatchHeader:
    """The inverse of `encode_descriptor`.

    Raises:
        WireError: reader and sender are of different versions.
    """
    match unpack(data, BATCH_FIELDS_BYTES_MAX, "descriptor"):
        case [fields, times]:
            return _header(fields, times, "descriptor")
        case _:
            raise WireError("descriptor: wanted fields and times")


def _seal(header: BatchHeader) -> bytes:
    return pack([PROTOCOL, *_fields(header)])


def _fields(header: BatchHeader) -> list[object]:
    return [
        int(header.kind),
        int(header.marker),
        header.stream,
        header.epoch,
        header.number,
        header.first,
        header.count,
    ]


def _times(header: BatchHeader) -> list[object]:
    return [header.not_before_ns, header.not_after_ns, *header.statement]


def _header(raw: object, times: Any, what: str) -> BatchHeader:
    """The inverse of `_fields` and `_times`; raises WireError."""
    if not isinstance(raw, list) or len(raw) != _HEADER_FIELDS:
        raise WireError(f"{what}: wanted {_HEADER_FIELDS} fields of a header")
    kind, marker, stream, epoch, number, first, count = raw
    if not all(is_u64(value) for value in (kind, marker, epoch, number, first, count)):
        raise WireError(f"{what}: a number is none, or is out of range")
    if not is_bytes(stream, STREAM_BYTES):
        raise WireError(f"{what}: bad stream id")
    if count > BATCH_SLOTS_MAX or not is_u64(first + count):
        raise WireError(f"{what}: found {count} slots, wanted at most {BATCH_SLOTS_MAX}")
    is_list = isinstance(times, list) and len(times) == _TIMES
    if not (is_list and all(map(is_u64, times[:2])) and is_statement(times[2:])):
        raise WireError(f"{what}: wanted two clocks and a statement")
    not_before_ns, not_after_ns, *said = times
    try:
        header = BatchHeader(
            BatchKind(kind),
            Marker(marker),
            stream,
            epoch,
            number,
            first,
            count,
            not_before_ns,
            not_after_ns,
            Statement(*said),
        )
    except ValueError as error:
        raise WireError(f"{what}: {error}") from error
    is_marker = header.kind is BatchKind.MARKER
    if is_marker != (header.marker is not Marker.NONE) or (is_marker and count):
        raise WireError(f"{what}: a marker goes with kind MARKER and no slots")
    return header


def _digest(sealed: bytes, headers: Buffer, payload: Buffer) -> bytes:
    digest = xxhash.xxh3_128(sealed)
    digest.update(headers)
    digest.update(payload)
    return digest.digest()


def _check(digest: bytes, times: bytes) -> bytes:
    return xxhash.xxh3_64(digest + times).digest()
