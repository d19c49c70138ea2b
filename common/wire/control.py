# SPDX-License-Identifier: GPL-2.0-only
"""What crosses a socket: batches, control messages, descriptors. No I/O here.

A **batch** is three frames, sent by a sender and checked by the applier:

===== ======================= ===================================================
frame content                 size
===== ======================= ===================================================
0     msgpack [fields, digest] under 256 bytes; `fields` is itself packed msgpack
1     the slots' headers      8 bytes a slot, little-endian, as they stand in the ring
2     the slots' payload      4096 bytes a slot, as it stands in the ring
===== ======================= ===================================================

The digest is xxh3-128 over `fields`, frame 1 and frame 2, so a batch is intact as
a whole or not at all. It is checked last: a stale transmission of slots that were
reused since may be torn, and is recognised by its epoch or number before.

**Control messages** (reader's DEALER to applier's ROUTER) are one msgpack map
each, with the message's name under "type". **Descriptors** (reader to sender) are
one msgpack array each.

Decoding never trusts: any input gives a message or `WireError`, nothing else.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeVar

import msgpack
import xxhash

from bdr.common.errors import WireError
from bdr.common.ring.layout import HEADER_BYTES, PAYLOAD_BYTES

PROTOCOL = 1
BATCH_SLOTS_MAX = 1024
BATCH_FIELDS_BYTES_MAX = 256
BATCH_FRAME_BYTES_MAX = BATCH_SLOTS_MAX * PAYLOAD_BYTES
CONTROL_BYTES_MAX = 64 * 1024
STREAM_BYTES = 16
DIGEST_BYTES = 16
NAME_BYTES_MAX = 64
TEXT_BYTES_MAX = 1024
BLOB_BYTES_MAX = 60 * 1024
DIGESTS_MAX = BLOB_BYTES_MAX // DIGEST_BYTES
"""Most that one request for checksums may ask for."""
RANGES_MAX = 1024

_U64_MAX = (1 << 64) - 1
_RANGE = struct.Struct("<QQ")

Buffer = bytes | memoryview
Blob = bytes
"""A field of any length up to `BLOB_BYTES_MAX`."""


class BatchKind(IntEnum):
    """What a batch carries."""

    LIVE = 0
    """Slots of the ring, in order: the replica moves forward by them."""
    RESYNC = 1
    """What a scan found to differ: repairs regions, moves nothing forward."""
    MARK = 2
    """No slots: the replica's condition changes at this place in the order."""


class Mark(IntEnum):
    """What a MARK batch declares."""

    NONE = 0
    RESYNC = 1
    """From here on the replica misses writes: not consistent until a scan ends."""
    CONSISTENT = 2
    """The replica is a prefix of the source again."""


class Condition(IntEnum):
    """What the replica's content is worth."""

    CONSISTENT = 0
    """The source as it was at some moment."""
    CATCHING_UP = 1
    """Holds writes of unknown place beyond its durable slot; consistent again when
    the source has sent everything up to its head."""
    INCONSISTENT = 2
    """Misses writes, in regions that the source has marked: needs a scan of those."""
    UNKNOWN = 3
    """Of unknown content: needs a scan of everything. Ends with the first RESYNC mark,
    by which the source says that it has marked every region."""


class RefusedReason(IntEnum):
    """Why a HELLO was refused."""

    PROTOCOL = 1
    VOLUME = 2
    SIZE = 3
    BUSY = 4
    SLOTS = 5

    @property
    def is_permanent(self) -> bool:
        """Whether asking again cannot help."""
        return self is not RefusedReason.BUSY


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What frame 0 says of a batch."""

    kind: BatchKind
    mark: Mark
    stream: bytes
    epoch: int
    number: int
    """1, 2, 3 ... within the epoch."""
    first: int
    """First slot (LIVE), or the slot in front of which the batch stands."""
    count: int
    """Slots in frames 1 and 2."""

    @property
    def end(self) -> int:
        """The replica's position when the batch has been applied."""
        return self.first + self.count if self.kind is BatchKind.LIVE else self.first


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as received: header trusted in form, content trusted after `is_intact`."""

    header: BatchHeader
    sealed_fields: bytes
    digest: bytes
    headers: Buffer
    payload: Buffer

    def is_intact(self) -> bool:
        """Whether the digest fits what was received."""
        return _digest(self.sealed_fields, self.headers, self.payload) == self.digest

    @property
    def size(self) -> int:
        """Bytes that the batch holds in memory."""
        return len(self.headers) + len(self.payload)


def encode_batch(header: BatchHeader, headers: Buffer, payload: Buffer) -> bytes:
    """Frame 0 for these two frames."""
    sealed = _pack(
        [
            PROTOCOL,
            int(header.kind),
            int(header.mark),
            header.stream,
            header.epoch,
            header.number,
            header.first,
            header.count,
        ]
    )
    return _pack([sealed, _digest(sealed, headers, payload)])


def decode_batch(frames: list[Buffer]) -> Batch:
    """Checks form and sizes, not the digest.

    Raises:
        WireError: not a batch of this protocol.
    """
    if len(frames) != 3:
        raise WireError(f"batch: found {len(frames)} frames, wanted 3")
    top, headers, payload = frames
    outer = _unpack(top, BATCH_FIELDS_BYTES_MAX, "batch")
    if not _is_list(outer, 2):
        raise WireError("batch: frame 0 is not [fields, digest]")
    sealed, digest = outer
    if not isinstance(sealed, bytes) or not _is_bytes(digest, DIGEST_BYTES):
        raise WireError("batch: frame 0 is not [fields, digest]")
    inner = _unpack(sealed, BATCH_FIELDS_BYTES_MAX, "batch fields")
    if not isinstance(inner, list) or not inner or inner[0] != PROTOCOL:
        raise WireError(f"batch: found protocol {_first(inner)}, wanted {PROTOCOL}")
    if not _is_list(inner, 8):
        raise WireError("batch: wanted 8 fields")
    _, kind, mark, stream, epoch, number, first, count = inner
    if not all(_is_u64(value) for value in (kind, mark, epoch, number, first, count)):
        raise WireError("batch: a number is none, or is out of range")
    if not _is_bytes(stream, STREAM_BYTES):
        raise WireError("batch: bad stream id")
    if count > BATCH_SLOTS_MAX or first + count > _U64_MAX:
        raise WireError(f"batch: found {count} slots, wanted at most {BATCH_SLOTS_MAX}")
    if len(headers) != count * HEADER_BYTES or len(payload) != count * PAYLOAD_BYTES:
        raise WireError(
            f"batch of {count} slots: found {len(headers)} bytes of headers and {len(payload)} of "
            f"payload, wanted {count * HEADER_BYTES} and {count * PAYLOAD_BYTES}"
        )
    try:
        header = BatchHeader(BatchKind(kind), Mark(mark), stream, epoch, number, first, count)
    except ValueError as error:
        raise WireError(f"batch: {error}") from error
    if (header.kind is BatchKind.MARK) != (header.mark is not Mark.NONE) or (
        header.kind is BatchKind.MARK and count
    ):
        raise WireError("batch: a mark goes with kind MARK and no slots")
    return Batch(header, sealed, digest, headers, payload)


def encode_descriptor(header: BatchHeader) -> bytes:
    """One message from reader to sender: the header that the batch shall have."""
    return _pack(
        [
            int(header.kind),
            int(header.mark),
            header.stream,
            header.epoch,
            header.number,
            header.first,
            header.count,
        ]
    )


def decode_descriptor(data: Buffer) -> BatchHeader:
    """The inverse of `encode_descriptor`.

    Raises:
        WireError: the reader and this sender are of different versions.
    """
    raw = _unpack(data, BATCH_FIELDS_BYTES_MAX, "descriptor")
    if not _is_list(raw, 7):
        raise WireError("descriptor: wanted 7 fields; are reader and sender of one version?")
    kind, mark, stream, epoch, number, first, count = raw
    if not _is_bytes(stream, STREAM_BYTES) or not all(
        _is_u64(value) for value in (kind, mark, epoch, number, first, count)
    ):
        raise WireError("descriptor: a field has the wrong type")
    try:
        return BatchHeader(BatchKind(kind), Mark(mark), stream, epoch, number, first, count)
    except ValueError as error:
        raise WireError(f"descriptor: {error}") from error


# Control messages. A field is an int (u64), an enum's value, a bool, a short str, the
# 16 bytes of a stream id, or a blob of limited length.


@dataclass(frozen=True, slots=True)
class Hello:
    """Source to target: who I am and what my ring still holds."""

    protocol: int
    attempt: int
    """Counts the HELLOs of a reader; the answer bears it, so late answers are known."""
    volume: str
    stream: bytes
    device_sectors: int
    tail: int
    head: int
    assume_clean: bool
    """The user says that both devices are equal: at first contact no scan is needed."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Target to source: go on from `slot`, in this epoch, with batch `number`."""

    attempt: int
    epoch: int
    number: int
    slot: int
    condition: Condition


@dataclass(frozen=True, slots=True)
class Refused:
    """Target to source: no, and why."""

    attempt: int
    reason: RefusedReason
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Source to target: are you there?"""

    epoch: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Source to target, with each PING: how much is left to be compared; 0 for nothing."""

    epoch: int
    left_bytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Target to source, the answer to PROGRESS: what it remembers of its replica."""

    epoch: int
    condition: Condition
    since_s: int
    """Since when the condition holds: seconds since 1970, UTC; 0 if that is not known."""
    at_s: int
    """When its last change was accepted, in the same way."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Target to source, cumulative; also the answer to a PING."""

    epoch: int
    accepted: int
    """Every batch up to this number has arrived, in order."""
    durable: int
    """Every batch up to this number is durable."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Target to source: batches of this epoch are of no use any more, greet again."""

    epoch: int
    text: str


@dataclass(frozen=True, slots=True)
class Checksums:
    """Scanner to target: what do these ranges hold, once all that came before is applied?"""

    request: int
    epoch: int
    block_sectors: int
    """0: one digest a range; else one for every so many sectors, the last may be shorter."""
    ranges: Blob
    """Pairs of u64, little-endian: first sector, number of sectors."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Target to scanner: one xxh3-128 after the other, as asked, or why not."""

    request: int
    digests: Blob
    text: str
    """Empty, or why there are none."""


Message = (
    Hello | Welcome | Refused | Ping | Progress | Standing | Ack | Rewind | Checksums | Digests
)

_MESSAGES: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        Hello,
        Welcome,
        Refused,
        Ping,
        Progress,
        Standing,
        Ack,
        Rewind,
        Checksums,
        Digests,
    )
}
_M = TypeVar("_M")


class OtherProtocolError(WireError):
    """A HELLO of another protocol version, readable enough to be refused politely."""

    def __init__(self, protocol: int, attempt: int) -> None:
        super().__init__(f"found protocol version {protocol}, wanted {PROTOCOL}")
        self.protocol = protocol
        self.attempt = attempt


def encode_fields(message: Any) -> bytes:
    """Any message whose fields have types that `decode_fields` knows."""
    body = {field.name: getattr(message, field.name) for field in fields(message)}
    return _pack({"type": type(message).__name__.lower(), **body})


def decode_fields(data: Buffer, kinds: Mapping[str, type[_M]]) -> _M:
    """The inverse of `encode_fields`, for one of these kinds by their lower-case names.

    Raises:
        WireError: none of them.
    """
    raw = _unpack(data, CONTROL_BYTES_MAX, "message")
    if not isinstance(raw, dict):
        raise WireError("message: not a map")
    name = raw.pop("type", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise WireError(f"message: unknown type {_short(name)}")
    return _build(kind, raw)


def encode_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """First sector and number of sectors of each."""
    return b"".join(itertools.starmap(_RANGE.pack, ranges))


def decode_ranges(blob: Buffer) -> list[tuple[int, int]]:
    """The inverse of `encode_ranges`.

    Raises:
        WireError: no pairs.
    """
    if len(blob) % _RANGE.size:
        raise WireError(f"ranges: found {len(blob)} bytes, wanted {_RANGE.size} a range")
    return [(first, count) for first, count in _RANGE.iter_unpack(blob)]


def encode_message(message: Message) -> bytes:
    """One control message."""
    return encode_fields(message)


def decode_message(data: Buffer) -> Message:
    """The inverse of `encode_message`.

    Raises:
        OtherProtocolError: a HELLO whose protocol version differs.
        WireError: no message of this protocol.
    """
    raw = _unpack(data, CONTROL_BYTES_MAX, "message")
    if not isinstance(raw, dict):
        raise WireError("message: not a map")
    name = raw.pop("type", None)
    kind = _MESSAGES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise WireError(f"message: unknown type {_short(name)}")
    if kind is Hello and raw.get("protocol") != PROTOCOL:
        protocol, attempt = raw.get("protocol"), raw.get("attempt", 0)
        if _is_u64(protocol) and _is_u64(attempt):
            raise OtherProtocolError(int(protocol or 0), int(attempt))
    return _build(kind, raw)


def _build(kind: type[_M], raw: dict[Any, Any]) -> _M:
    wanted = {field.name: field.type for field in fields(_any(kind))}
    if raw.keys() != wanted.keys():
        raise WireError(f"{kind.__name__}: found fields {_short(', '.join(map(str, raw)))}")
    for name, type_name in wanted.items():
        if not _CHECKS[str(type_name)](raw[name]):
            raise WireError(f"{kind.__name__}: field {name} is {_short(raw[name])}")
        if str(type_name) in _ENUMS:
            raw[name] = _ENUMS[str(type_name)](raw[name])
    return kind(**raw)


def _any(value: Any) -> Any:
    return value


def _is_u64(value: object) -> bool:
    return type(value) is int and 0 <= value <= _U64_MAX


def _is_bytes(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_member(kind: type[IntEnum]) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value in kind.__members__.values()


_ENUMS: dict[str, type[IntEnum]] = {kind.__name__: kind for kind in (Condition, RefusedReason)}
_CHECKS: dict[str, Callable[[object], bool]] = {
    **{name: _is_member(kind) for name, kind in _ENUMS.items()},
    "int": _is_u64,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: isinstance(value, str) and len(value.encode()) <= TEXT_BYTES_MAX,
    "bytes": lambda value: _is_bytes(value, STREAM_BYTES),
    "Blob": lambda value: isinstance(value, bytes) and len(value) <= BLOB_BYTES_MAX,
}


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: Buffer, limit_bytes: int, what: str) -> Any:
    if len(data) > limit_bytes:
        raise WireError(f"{what}: found {len(data)} bytes, wanted at most {limit_bytes}")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"{what}: not msgpack ({type(error).__name__})") from error


def _digest(sealed: bytes, headers: Buffer, payload: Buffer) -> bytes:
    digest = xxhash.xxh3_128(sealed)
    digest.update(headers)
    digest.update(payload)
    return digest.digest()


def _first(value: object) -> str:
    return _short(value[0]) if isinstance(value, list) and value else "nothing"


def _short(value: object) -> str:
    """For a message. Of a container only its kind: it may be nested too deep for `repr`."""
    text = type(value).__name__ if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
