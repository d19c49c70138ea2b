# SPDX-License-Identifier: GPL-2.0-only
"""Messages as msgpack maps, from literal tables. No I/O here.

Each interface has one table, which freezes the names on the wire: renaming a class or an attribute
does not change the encoding.

    CODEC: Codec[Message] = Codec(
        {"ping": Form(Ping, {"epoch": U64, "left_bytes": U64})}
    )

The fields of a form are in the order of the dataclass's. A message is the map of its fields, with
its name under "type". Decoding is strict: any input gives a message of the table or `WireError`,
nothing else.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgpack

from bdr.common.errors import WireError

MESSAGE_BYTES_MAX = 64 * 1024
STREAM_BYTES = 16
GENERATION_BYTES = 8
GENERATIONS_MAX = 256
ID_BYTES = 16
"""Of a source, a target, a journal: random, made once."""
DIGEST_BYTES = 16
CHECK_BYTES = 8
NAME_BYTES_MAX = 64
TEXT_BYTES_MAX = 1024
BLOB_BYTES_MAX = 60 * 1024
DIGESTS_MAX = BLOB_BYTES_MAX // DIGEST_BYTES
"""Most digests per checksum request."""
RANGES_MAX = 1024

Buffer = bytes | memoryview
Range = tuple[int, int]
"""First sector, number of sectors."""

M = TypeVar("M")
_U64_MAX = (1 << 64) - 1
_RANGE = struct.Struct("<QQ")
_SHOWN_MAX = 80


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of a field."""

    accepts: Callable[[object], bool]
    make: Callable[[Any], Any] = lambda value: value
    """Converts an accepted value to the attribute's."""
    put: Callable[[Any], Any] = lambda value: value
    """The inverse of `make`."""


def is_u64(value: object) -> bool:
    """Whether it is an unsigned 64-bit number, and not a bool."""
    return type(value) is int and 0 <= value <= _U64_MAX


def is_bytes(value: object, size: int) -> bool:
    """Whether it is a byte string of this size."""
    return isinstance(value, bytes) and len(value) == size


U64 = FieldType(is_u64)
COUNT = FieldType(lambda value: is_u64(value) and not value >> 63)  # type: ignore[operator]
"""A number that its receiver goes on counting from, and stores as U64."""
FLAG = FieldType(lambda value: type(value) is bool)
TEXT = FieldType(lambda value: isinstance(value, str) and len(value.encode()) <= TEXT_BYTES_MAX)
STREAM = FieldType(lambda value: is_bytes(value, STREAM_BYTES))
GENERATION = FieldType(lambda value: is_bytes(value, GENERATION_BYTES))
GENERATIONS = FieldType(
    lambda value: (
        isinstance(value, bytes)
        and 0 < len(value) <= GENERATIONS_MAX * GENERATION_BYTES
        and not len(value) % GENERATION_BYTES
    ),
    lambda blob: tuple(
        blob[at : at + GENERATION_BYTES] for at in range(0, len(blob), GENERATION_BYTES)
    ),
    b"".join,
)
"""One after the other, newest first."""
ID = FieldType(lambda value: is_bytes(value, ID_BYTES))
BLOB = FieldType(lambda value: isinstance(value, bytes) and len(value) <= BLOB_BYTES_MAX)


def _encode_ranges(ranges: Sequence[Range]) -> bytes:
    return b"".join(itertools.starmap(_RANGE.pack, ranges))


def _decode_ranges(blob: bytes) -> list[Range]:
    return [(first, count) for first, count in _RANGE.iter_unpack(blob)]


RANGES = FieldType(
    lambda value: (
        isinstance(value, bytes) and len(value) <= BLOB_BYTES_MAX and not len(value) % _RANGE.size
    ),
    _decode_ranges,
    _encode_ranges,
)
"""Pairs of u64, little-endian, concatenated."""


def member(kind: type[IntEnum]) -> FieldType:
    """A value of this enumeration."""
    values = frozenset(map(int, kind))
    return FieldType(lambda value: type(value) is int and value in values, kind)


@dataclass(frozen=True, slots=True)
class Form(Generic[M]):
    """A message's fields on the wire, in the order of its class."""

    kind: type[M]
    fields: Mapping[str, FieldType]


class Codec(Generic[M]):
    """Encodes and decodes the messages of one interface.

    Args:
        forms: name on the wire to its form.
    """

    def __init__(self, forms: Mapping[str, Form[Any]]) -> None:
        self._forms = forms
        self._names: dict[type[Any], str] = {form.kind: name for name, form in forms.items()}
        for name, form in forms.items():
            assert len(fields(form.kind)) == len(form.fields), name

    def encode(self, message: M) -> bytes:
        """One message."""
        name = self._names[type(message)]
        raw = {"type": name}
        attributes = fields(message)  # type: ignore[arg-type]
        for attribute, (key, its) in zip(attributes, self._forms[name].fields.items(), strict=True):
            raw[key] = its.put(getattr(message, attribute.name))
        return pack(raw)

    def decode(self, data: Buffer) -> M:
        """The inverse of `encode`.

        Raises:
            WireError: no message of this conversation.
        """
        return self.build(unpack(data, MESSAGE_BYTES_MAX, "message"))

    def build(self, raw: object) -> M:
        """A message from its map.

        Raises:
            WireError: no message of this conversation.
        """
        if not isinstance(raw, dict):
            raise WireError("message: not a map")
        name = raw.get("type")
        form = self._forms.get(name) if isinstance(name, str) else None
        if form is None:
            raise WireError(f"message: unknown type {shown(name)}")
        if len(raw) != len(form.fields) + 1 or not form.fields.keys() <= raw.keys():
            raise WireError(f"{name}: found fields {shown(', '.join(map(str, raw)))}")
        for key, its in form.fields.items():
            if not its.accepts(raw[key]):
                raise WireError(f"{name}: field {key} is {shown(raw[key])}")
        message: M = form.kind(*(its.make(raw[key]) for key, its in form.fields.items()))
        return message


def pack(value: object) -> bytes:
    """As msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: Buffer, limit_bytes: int, what: str) -> Any:
    """The inverse of `pack`.

    Raises:
        WireError: too long, or not msgpack; `what` starts the message.
    """
    if len(data) > limit_bytes:
        raise WireError(f"{what}: found {len(data)} bytes, wanted at most {limit_bytes}")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"{what}: not msgpack ({type(error).__name__})") from error


def shown(value: object) -> str:
    """A value for an error message; of a container only its type, since it may be nested too deeply
    for `repr`."""
    text = type(value).__name__ if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."
