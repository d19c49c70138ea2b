# SPDX-License-Identifier: GPL-2.0-only
"""The conversations on the wire, and hypothesis strategies for every message of them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from hypothesis import strategies as st

from bdr.common.wire import codec
from bdr.common.wire.batch import (
    BATCH_SLOTS_MAX,
    PROTOCOL,
    RECENT_BATCHES,
    RECENT_BATCHES_MAX,
    AcceptedBatch,
    BatchHeader,
    BatchKind,
    Marker,
    encode_batch,
)
from bdr.common.wire.codec import Buffer, Codec, FieldType, Form
from bdr.common.wire.control import MESSAGES, Hello
from bdr.common.wire.scan import ANSWERS, REQUESTS
from bdr.common.wire.statement import STATEMENT, Statement

CODECS: dict[str, Codec[Any]] = {"control": MESSAGES, "requests": REQUESTS, "answers": ANSWERS}

STREAM = bytes(range(16))
SAID = Statement(1 << 41, 1_790_000_000_123, 1 << 40, (1 << 62) + 7)
LIVE = BatchHeader(
    BatchKind.LIVE,
    Marker.NONE,
    STREAM,
    epoch=3,
    number=258,
    first=1 << 40,
    count=2,
    not_before_ns=5,
    not_after_ns=1 << 39,
    statement=SAID,
)
SLOTS = bytes(range(16))
PAYLOAD = bytes(range(256)) * 32

U64 = st.integers(0, (1 << 64) - 1)
TEXT = st.text(max_size=200)
_SIXTEEN = st.binary(min_size=16, max_size=16)
_EIGHT = st.binary(min_size=8, max_size=8)
STATEMENTS = st.tuples(U64, U64, U64, U64).map(
    lambda each: Statement(max(each[0], each[2]), each[1], min(each[0], each[2]), each[3])
)
_VALUES: dict[int, st.SearchStrategy[Any]] = {
    id(codec.U64): U64,
    id(codec.COUNT): st.integers(0, (1 << 63) - 1),
    id(codec.FLAG): st.booleans(),
    id(codec.TEXT): TEXT,
    id(codec.STREAM): _SIXTEEN,
    id(codec.ID): _SIXTEEN,
    id(codec.GENERATION): _EIGHT,
    id(codec.GENERATIONS): st.lists(_EIGHT, min_size=1, max_size=9).map(tuple),
    id(RECENT_BATCHES): st.lists(
        st.builds(AcceptedBatch, U64, U64, U64, st.integers(0, BATCH_SLOTS_MAX), digest=_SIXTEEN),
        max_size=RECENT_BATCHES_MAX,
    ).map(tuple),
    id(STATEMENT): STATEMENTS,
    id(codec.BLOB): st.binary(max_size=200),
    id(codec.RANGES): st.lists(st.tuples(U64, U64), max_size=9),
}


def forms(its: Codec[Any]) -> dict[str, Form[Any]]:
    """Name on the wire to form."""
    return dict(its._forms)


def _values(its: FieldType) -> st.SearchStrategy[Any]:
    if isinstance(its.make, type) and issubclass(its.make, IntEnum):
        return st.sampled_from(its.make)
    return _VALUES[id(its)]


def _messages(form: Form[Any]) -> st.SearchStrategy[Any]:
    values = {name: _values(its) for name, its in form.fields.items()}
    if form.kind is Hello:
        values["protocol"] = st.just(PROTOCOL)
    return st.tuples(*values.values()).map(lambda each: form.kind(*each))


def any_message(its: Codec[Any]) -> st.SearchStrategy[Any]:
    """Any message of this conversation."""
    return st.one_of([_messages(form) for form in forms(its).values()])


HEADERS = st.builds(
    BatchHeader,
    kind=st.sampled_from((BatchKind.LIVE, BatchKind.RESYNC)),
    marker=st.just(Marker.NONE),
    stream=st.binary(min_size=16, max_size=16),
    epoch=U64,
    number=U64,
    first=st.integers(0, 1 << 60),
    count=st.integers(0, 3),
    not_before_ns=U64,
    not_after_ns=U64,
    statement=STATEMENTS,
) | st.builds(
    BatchHeader,
    kind=st.just(BatchKind.MARKER),
    marker=st.sampled_from([each for each in Marker if each is not Marker.NONE]),
    stream=st.binary(min_size=16, max_size=16),
    epoch=U64,
    number=U64,
    first=U64,
    count=st.just(0),
)


def make_frames(header: BatchHeader = LIVE) -> list[Buffer]:
    """A batch of this header, whether there is such a one or not."""
    slots, payload = SLOTS[: header.count * 8], PAYLOAD[: header.count * 4096]
    slots, payload = slots.ljust(header.count * 8), payload.ljust(header.count * 4096)
    return [encode_batch(header, slots, payload), slots, payload]
