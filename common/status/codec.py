# SPDX-License-Identifier: GPL-2.0-only
"""Dataclasses as maps of plain values, for JSON and msgpack. No I/O here.

    LINKS = Form(LinkCounts)
    READER = Form(ReaderValues, keys={"tail": "tail_slot"}, types={"links": flat(LINKS)})

A form is derived from the annotations of its dataclass; `keys` lists the attributes with another
key, `types` those whose encoding does not follow from the annotation. An enumeration of texts is
encoded as its value, one of numbers as its name; a time as ISO 8601.

Decoding is strict: any input gives a value of the declared types or `StatusError`, which names the
key. Unknown keys are ignored, since a later version may add some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from bdr.common.errors import StatusError
from bdr.common.wire.codec import is_u64, shown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of a value.

    Attributes:
        decode: converts from a plain value; raises `StatusError`.
        encode: converts to a plain value.
        is_flat: it has no key: its keys are among those of the enclosing map.
    """

    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    is_flat: bool = False


class Form(Generic[T]):
    """The encoding of a dataclass.

    Args:
        kind: the dataclass.
        keys: attribute to key, where they differ.
        types: attribute to type, where the annotation is not sufficient.
    """

    def __init__(
        self,
        kind: type[T],
        *,
        keys: Mapping[str, str] | None = None,
        types: Mapping[str, FieldType] | None = None,
    ) -> None:
        hints: dict[str, Any] = {**get_type_hints(kind), **(types or {})}
        named = {**{name: name for name in hints}, **(keys or {})}
        self.kind = kind
        self._table = [
            (each.name, named[each.name], _type(hints[each.name]))
            for each in fields(kind)  # type: ignore[arg-type]
        ]
        self.keys = frozenset(key for _, key, its in self._table if not its.is_flat)

    def encode(self, value: T) -> dict[str, Any]:
        """As a map of plain values."""
        found: dict[str, Any] = {}
        for name, key, its in self._table:
            plain = its.encode(getattr(value, name))
            found |= plain if its.is_flat else {key: plain}
        return found

    def decode(self, raw: object) -> T:
        """The inverse of `encode`.

        Raises:
            StatusError: not a map, a key is missing, or a value is of the wrong type.
        """
        if not isinstance(raw, dict):
            raise wrong(raw, "a map")
        found = {}
        for name, key, its in self._table:
            if its.is_flat:
                found[name] = its.decode(raw)
                continue
            if key not in raw:
                raise StatusError(f"found no {key}")
            try:
                found[name] = its.decode(raw[key])
            except StatusError as error:
                raise StatusError(f"{key}: {error}") from None
        return self.kind(**found)


# Types of values.


def nested(form: Form[Any]) -> FieldType:
    """A nested map."""
    return FieldType(form.decode, form.encode)


def flat(form: Form[Any]) -> FieldType:
    """A dataclass whose keys are among those of the enclosing map."""
    return FieldType(form.decode, form.encode, is_flat=True)


def flat_or_none(form: Form[Any]) -> FieldType:
    """The same, or None if one of the keys is missing."""
    return FieldType(
        lambda raw: form.decode(raw) if form.keys <= raw.keys() else None,
        lambda value: {} if value is None else form.encode(value),
        is_flat=True,
    )


def prefixed(prefix: str) -> FieldType:
    """Counts whose keys, with a prefix, are among those of the enclosing map."""

    def decode(raw: dict[str, Any]) -> dict[str, int]:
        names = [key for key in raw if isinstance(key, str) and key.startswith(prefix)]
        return {key.removeprefix(prefix): _COUNT.decode(raw[key]) for key in names}

    return FieldType(
        decode, lambda counts: {prefix + name: n for name, n in counts.items()}, is_flat=True
    )


def or_none(its: FieldType) -> FieldType:
    """The same, or None if unknown."""
    return FieldType(
        lambda value: None if value is None else its.decode(value),
        lambda value: None if value is None else its.encode(value),
    )


def sequence(its: FieldType) -> FieldType:
    """A list of such values; a tuple in the dataclass."""

    def decode(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise wrong(value, "a list")
        return tuple(map(its.decode, value))

    return FieldType(decode, lambda values: list(map(its.encode, values)))


def mapping(its: FieldType) -> FieldType:
    """A map of names to such values."""

    def decode(value: object) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise wrong(value, "a map of names")
        return {name: its.decode(entry) for name, entry in value.items()}

    return FieldType(
        decode, lambda values: {name: its.encode(entry) for name, entry in values.items()}
    )


def _type(hint: Any) -> FieldType:
    """The type for an annotation."""
    arguments = get_args(hint)
    if isinstance(hint, FieldType):
        return hint
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, UnionType):
        (known,) = (each for each in arguments if each is not type(None))
        return or_none(_type(known))
    if get_origin(hint) is tuple:
        return sequence(_type(arguments[0]))
    if get_origin(hint) is Mapping:
        return mapping(_type(arguments[1]))
    return _member(hint) if issubclass(hint, Enum) else nested(Form(hint))


def _member(kind: type[Enum]) -> FieldType:
    words = {member: _text_of(member) for member in kind}
    members = {word: member for member, word in words.items()}

    def decode(value: object) -> Enum:
        if not isinstance(value, str) or value not in members:
            raise wrong(value, f"one of {', '.join(members)}")
        return members[value]

    return FieldType(decode, words.__getitem__)


def _text_of(member: Enum) -> str:
    return member.value if isinstance(member.value, str) else member.name


def _checked(accepts: Callable[[Any], bool], wanted: str) -> FieldType:
    def decode(value: object) -> object:
        if not accepts(value):
            raise wrong(value, wanted)
        return value

    return FieldType(decode, lambda value: value)


def _decode_time(value: object) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise wrong(value, "a time with its zone")
    return found


_COUNT = _checked(is_u64, "a number from 0 on")
_SIMPLE: Mapping[type, FieldType] = {
    int: _COUNT,
    float: _checked(
        lambda value: type(value) is int or (type(value) is float and math.isfinite(value)),
        "a finite number",
    ),
    bool: _checked(lambda value: type(value) is bool, "true or false"),
    str: _checked(lambda value: isinstance(value, str), "a text"),
    datetime: FieldType(_decode_time, datetime.isoformat),
}


def unpack(data: bytes) -> Any:
    """A value from msgpack.

    Raises:
        StatusError: not msgpack.
    """
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise StatusError(f"not msgpack ({type(error).__name__})") from error


def wrong(value: object, wanted: str) -> StatusError:
    """The error for a value of the wrong type."""
    return StatusError(f"found {shown(value)}, wanted {wanted}")
