# SPDX-License-Identifier: GPL-2.0-only
"""Any bytes are a message or a WireError, and every flipped bit of a batch is recognised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bdr.common.errors import WireError
from bdr.common.wire.batch import (
    BATCH_SLOTS_MAX,
    PROTOCOL,
    RECENT_BATCHES_MAX,
    Batch,
    BatchHeader,
    BatchKind,
    Marker,
    decode_batch,
    decode_descriptor,
    encode_batch,
    encode_descriptor,
)
from bdr.common.wire.codec import (
    BLOB_BYTES_MAX,
    GENERATIONS_MAX,
    MESSAGE_BYTES_MAX,
    TEXT_BYTES_MAX,
    Buffer,
)
from bdr.common.wire.control import OtherProtocolError, Ping, decode_message, encode_message
from bdr.common.wire.scan import decode_answer, decode_request
from bdr.common.wire.statement import Statement
from tests.support.wire_forms import CODECS, LIVE, STREAM, TEXT, U64, forms, make_frames

GENERATION = b"gener-01"
FORMS = {name: form for each in CODECS.values() for name, form in forms(each).items()}
NAMES = sorted(FORMS)
FIELDS = sorted({field for form in FORMS.values() for field in form.fields})
DECODERS: list[Callable[[Buffer], Any]] = [
    decode_message,
    decode_request,
    decode_answer,
    decode_descriptor,
]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.integers(0, 9), inner),
    max_leaves=12,
)


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def decode_or_wire_error(decode: Any, data: Any) -> Any:
    try:
        return decode(data)
    except WireError:
        return None


@settings(max_examples=500)
@given(st.binary(max_size=300) | ANY.map(pack))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 2000)
@example(b"\x81\xa4type" + b"\x91" * 1010 + b"\xc0")
@example(
    b"\x84\xa4type\xa4ping\xaaleft_bytes\x01\xaageneration\x01\xa5epoch" + b"\x91" * 1010 + b"\xc0"
)
@example(b"\x81\xa4type\x91\xa5hello")
@example(b"\x81\x91\x01\x02")
@example(pack({"type": "ping", "left_bytes": 0, "generation": GENERATION, "epoch": True}))
@example(pack({"type": "ping", "left_bytes": 0, "generation": GENERATION, "epoch": -1}))
@example(pack({"type": "ping", "left_bytes": 0, "generation": GENERATION, "epoch": 1.0}))
@example(pack({"type": "hello", "protocol": 3, "attempt": []}))
@example(pack({"type": "hello", "protocol": True, "attempt": 1}))
@example(b"\x84\xa4type\xa6rewind\xa5epoch\x01\xa6reason\x01\xa4text\xa3\xed\xa0\x80")
@example(pack({"type": "revoked", b"lease": 1}))
@example(pack(msgpack.Timestamp(1, 2)))
@example(b"\xd6\xff\xff\xff\xff\xff")
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for decode in DECODERS:
        decode_or_wire_error(decode, data)
    decode_or_wire_error(decode_batch, [data, b"", b""])


@settings(max_examples=300)
@given(
    st.sampled_from([*NAMES, "batch"]),
    st.dictionaries(
        st.sampled_from(FIELDS),
        U64 | TEXT | st.booleans() | st.binary(min_size=16, max_size=16) | st.lists(U64),
    ),
)
def test_any_fields_are_a_message_or_an_error(name: str, fields: dict[str, Any]) -> None:
    data = pack({"type": name, **fields})
    for each in CODECS.values():
        message = decode_or_wire_error(each.decode, data)
        if message is not None:
            assert each.decode(each.encode(message)) == message
    decode_or_wire_error(decode_message, data)


@settings(max_examples=300)
@given(st.sampled_from(NAMES), st.data())
def test_right_fields_of_any_values_are_a_message_or_an_error(
    name: str, data: st.DataObject
) -> None:
    value = U64 | st.integers(0, 5) | TEXT | st.booleans() | st.binary(max_size=48) | ANY
    raw = {"type": name} | {field: data.draw(value) for field in FORMS[name].fields}
    for each in CODECS.values():
        message = decode_or_wire_error(each.decode, pack(raw))
        if message is not None:
            assert each.encode(message) == pack(raw)


@settings(max_examples=300)
@given(
    st.lists(ANY, max_size=9)
    | st.tuples(
        st.just(PROTOCOL),
        U64 | st.integers(0, 3),
        U64 | st.integers(0, 3),
        st.binary(max_size=17) | st.just(STREAM),
        U64,
        U64,
        U64,
        st.integers(0, 2000),
    ),
    st.binary(max_size=17) | st.just(STREAM),
    st.sampled_from((0, 8, 16)),
    st.sampled_from((0, 4096, 8192)),
)
def test_any_fields_are_a_batch_or_an_error(
    fields: Any, digest: bytes, slots_bytes: int, payload_bytes: int
) -> None:
    top = pack([pack(fields), digest])
    batch = decode_or_wire_error(decode_batch, [top, bytes(slots_bytes), bytes(payload_bytes)])
    if batch is not None:
        assert isinstance(batch, Batch)
        assert batch.header.count * 8 == slots_bytes
        assert batch.size == slots_bytes + payload_bytes
        assert not batch.is_intact()


# Fields.


def test_message_without_one_of_its_fields_or_with_another_one_is_an_error() -> None:
    said = {"statement": [9, 8, 7, 6]}
    raw = {"type": "ping", "epoch": 7, "generation": GENERATION, "left_bytes": 1} | said
    assert decode_message(pack(raw)) == Ping(7, GENERATION, 1, Statement(9, 8, 7, 6))
    for bad in (
        {"type": "ping", "epoch": 7, "left_bytes": 1} | said,
        {"type": "ping", "epoch": 7, "generation": GENERATION, "left_bytes": 1},
        raw | {"other": 1},
        {"type": "ping", "epoch": 7, "generation": GENERATION, "left": 1} | said,
        {"epoch": 7, "generation": GENERATION, "left_bytes": 1} | said,
    ):
        with pytest.raises(WireError):
            decode_message(pack(bad))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ack", "condition", 5),
        ("ack", "condition", True),
        ("refused", "reason", 0),
        ("refused", "reason", 10),
        ("refused", "nonce", -1),
        ("welcome", "target", bytes(15)),
        ("welcome", "recent", [[1, 2, 3, 4]]),
        ("welcome", "recent", [[1, 2, 3, 4, bytes(15)]]),
        ("welcome", "recent", [[1, 2, 3, BATCH_SLOTS_MAX + 1, bytes(16)]]),
        ("welcome", "recent", [[1, 2, 3, True, bytes(16)]]),
        ("welcome", "recent", [{"epoch": 1}]),
        ("welcome", "recent", [1, 2, 3, 4, bytes(16)]),
        ("welcome", "recent", [[1, 2, 3, 4, bytes(16)]] * (RECENT_BATCHES_MAX + 1)),
        ("disown", "epoch", -1),
        ("rewind", "reason", 5),
        ("digests", "refused", 5),
        ("rewind", "text", "x" * (TEXT_BYTES_MAX + 1)),
        ("rewind", "text", "é" * (TEXT_BYTES_MAX // 2 + 1)),
        ("digests", "digests", bytes(BLOB_BYTES_MAX + 1)),
        ("checksums", "ranges", bytes(17)),
        ("checksums", "ranges", bytes(BLOB_BYTES_MAX + 16)),
        ("checksums", "ranges", [[1, 2]]),
        ("hello", "stream", bytes(15)),
        ("hello", "assume_clean", 1),
        ("hello", "tail", "1"),
        ("hello", "source", bytes(17)),
        ("hello", "nonce", -1),
        ("hello", "generations", b""),
        ("hello", "generations", bytes(12)),
        ("hello", "generations", bytes(8 * (GENERATIONS_MAX + 1))),
        ("hello", "generations", [GENERATION]),
        ("ping", "generation", bytes(16)),
        ("ping", "generation", 1),
        ("ping", "statement", 1),
        ("ping", "statement", [4, 3, 2]),
        ("ping", "statement", [4, 3, 2, -1]),
        ("ping", "statement", [4, 3, 5, 1]),
    ],
)
def test_value_that_a_field_may_not_hold_is_an_error(name: str, field: str, value: Any) -> None:
    fields: dict[str, dict[str, Any]] = {
        "ack": dict.fromkeys(FORMS["ack"].fields, 1),
        "welcome": dict.fromkeys(FORMS["welcome"].fields, 1)
        | {"target": bytes(16), "recent": [[1, 2, 3, 4, bytes(16)]]},
        "disown": {"epoch": 1},
        "ping": {
            "epoch": 1,
            "generation": GENERATION,
            "left_bytes": 0,
            "statement": [4, 3, 2, 1],
        },
        "refused": {"attempt": 1, "reason": 1, "nonce": 0, "text": ""},
        "rewind": {"epoch": 1, "reason": 1, "text": ""},
        "digests": {"request": 1, "digests": b"", "refused": 0, "text": ""},
        "checksums": {"request": 1, "epoch": 1, "block_sectors": 0, "ranges": b""},
        "hello": {
            "protocol": PROTOCOL,
            "attempt": 1,
            "nonce": 0,
            "volume": "",
            "source": STREAM,
            "generations": GENERATION * 2,
            "stream": STREAM,
            "device_sectors": 1,
            "tail": 1,
            "head": 1,
            "acknowledged": 1,
            "counted": 1,
            "assume_clean": True,
        },
    }
    raw = {"type": name} | fields[name]
    decode_message(pack(raw))
    with pytest.raises(WireError):
        decode_message(pack(raw | {field: value}))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("commit", {"lease": 1, "batches": 0, "blocks": 0, "again": b"123", "unreadable": b""}),
        ("commit", {"lease": 1, "batches": 0, "blocks": 0, "again": b"", "unreadable": b"123"}),
        ("verify-begin", {"request": 1, "ranges": b"123"}),
        *[
            (
                "verify-found",
                {
                    "request": 1,
                    "ended_utc": 1,
                    "covered": b"",
                    "ignored": b"",
                    "differing": b"",
                    "compared_bytes": 1,
                    "differing_bytes": 1,
                }
                | {bad: b"123"},
            )
            for bad in ("covered", "ignored", "differing")
        ],
        ("resync", {"request": 1, "ranges": b"123"}),
    ],
)
def test_ranges_that_are_none_are_an_error(name: str, fields: dict[str, Any]) -> None:
    good = {key: b"" if isinstance(value, bytes) else value for key, value in fields.items()}
    decode_request(pack({"type": name} | good))
    with pytest.raises(WireError):
        decode_request(pack({"type": name} | fields))


def test_message_that_is_too_long_is_an_error_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(msgpack, "unpackb", lambda *_, **__: pytest.fail("unpacked"))
    for decode in (decode_message, decode_request, decode_answer):
        with pytest.raises(WireError):
            decode(bytes(MESSAGE_BYTES_MAX + 1))


# Another protocol.


def test_hello_of_another_protocol_is_told_apart_whatever_else_it_holds() -> None:
    data = pack({"type": "hello", "protocol": 3, "attempt": 7, "new": [1, 2]})
    with pytest.raises(OtherProtocolError) as caught:
        decode_message(data)
    assert (caught.value.protocol, caught.value.attempt) == (3, 7)


def test_hello_of_version_1_is_told_apart() -> None:
    data = bytes.fromhex(
        "89a474797065a568656c6c6fa870726f746f636f6c01a7617474656d707402a6766f6c756d65"
        "a3766f6ca673747265616dc410000102030405060708090a0b0c0d0e0fae6465766963655f73"
        "6563746f7273cf0000010000000000a47461696c03a468656164cf0000000200000000ac6173"
        "73756d655f636c65616ec3"
    )
    with pytest.raises(OtherProtocolError) as caught:
        decode_message(data)
    assert (caught.value.protocol, caught.value.attempt) == (1, 2)


def test_hello_of_another_protocol_without_an_attempt_is_told_apart_too() -> None:
    with pytest.raises(OtherProtocolError) as caught:
        decode_message(pack({"type": "hello", "protocol": 9}))
    assert (caught.value.protocol, caught.value.attempt) == (9, 0)


def test_hello_of_this_protocol_that_is_malformed_is_not_told_apart() -> None:
    with pytest.raises(WireError) as caught:
        decode_message(pack({"type": "hello", "protocol": PROTOCOL, "attempt": 7}))
    assert not isinstance(caught.value, OtherProtocolError)


@pytest.mark.parametrize("protocol", [1, 3])
def test_batch_of_another_protocol_is_an_error_that_names_both(protocol: int) -> None:
    top = pack([pack([protocol, "whatever"]), bytes(16), b"", bytes(8)])
    with pytest.raises(WireError, match=rf"\b{protocol}\b.*\b{PROTOCOL}\b"):
        decode_batch([top, b"", b""])


# Batches.


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_batch_of_other_than_three_frames_is_an_error(count: int) -> None:
    assert decode_batch(make_frames()).header == LIVE
    with pytest.raises(WireError, match="3"):
        decode_batch([*make_frames(), b""][:count])


@pytest.mark.parametrize("frame", [1, 2])
@pytest.mark.parametrize("change", [-1, 1])
def test_batch_whose_frames_do_not_fit_its_count_is_an_error(frame: int, change: int) -> None:
    frames = make_frames()
    frames[frame] = (bytes(frames[frame]) + b"x")[: len(frames[frame]) + change]
    with pytest.raises(WireError):
        decode_batch(frames)


def test_batch_of_too_many_slots_is_an_error_before_anything_is_read() -> None:
    most = replace(LIVE, count=BATCH_SLOTS_MAX)
    assert decode_batch(make_frames(most)).header == most
    more = replace(LIVE, count=BATCH_SLOTS_MAX + 1)
    with pytest.raises(WireError, match="1025"):
        decode_batch([encode_batch(more, b"", b""), b"", b""])
    with pytest.raises(WireError, match="1025"):
        decode_descriptor(encode_descriptor(more))


def test_batch_beyond_the_last_slot_number_is_an_error() -> None:
    last = (1 << 64) - 1
    decode_batch(make_frames(replace(LIVE, first=last - 2)))
    header = replace(LIVE, first=last - 1)
    with pytest.raises(WireError):
        decode_batch(make_frames(header))
    with pytest.raises(WireError):
        decode_descriptor(encode_descriptor(header))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("marker", Marker)
@pytest.mark.parametrize("kind", BatchKind)
def test_marker_goes_with_its_kind_of_batch_and_no_slots(
    kind: BatchKind, marker: Marker, count: int
) -> None:
    header = BatchHeader(kind, marker, STREAM, 1, 1, 0, count)
    is_marker = kind is BatchKind.MARKER
    is_right = is_marker == (marker is not Marker.NONE) and not (is_marker and count)
    found = decode_or_wire_error(decode_batch, make_frames(header))
    assert (found is not None) == is_right
    found = decode_or_wire_error(decode_descriptor, encode_descriptor(header))
    assert (found is not None) == is_right


@pytest.mark.parametrize(
    ("part", "at", "value"),
    [
        (0, 0, 3),
        (0, 1, 3),
        (0, 2, bytes(15)),
        (0, 3, -1),
        (0, 6, True),
        (1, 0, -1),
        (1, 1, "5"),
        (1, 2, None),
        (1, 4, 1 << 42),
        (1, 5, -1),
    ],
)
def test_descriptor_with_a_value_that_a_field_may_not_hold_is_an_error(
    part: int, at: int, value: Any
) -> None:
    parts = msgpack.unpackb(encode_descriptor(LIVE))
    assert decode_descriptor(pack(parts)) == LIVE
    parts[part][at] = value
    with pytest.raises(WireError):
        decode_descriptor(pack(parts))
    with pytest.raises(WireError):
        decode_descriptor(pack(parts[:1]))


# Bits.


def survives(frames: Sequence[Buffer]) -> bool:
    batch = decode_or_wire_error(decode_batch, frames)
    return batch is not None and batch.is_intact()


@pytest.mark.parametrize("frame", [0, 1])
def test_every_flipped_bit_of_the_header_frames_is_recognised(frame: int) -> None:
    frames = make_frames()
    assert survives(frames)
    for bit in range(len(frames[frame]) * 8):
        bad = bytearray(frames[frame])
        bad[bit // 8] ^= 1 << bit % 8
        assert not survives([bytes(bad) if at == frame else f for at, f in enumerate(frames)]), bit


def test_every_flipped_bit_of_the_payload_is_recognised() -> None:
    top, slots, payload = make_frames(replace(LIVE, number=9, first=70, count=1))
    bad = bytearray(payload)
    batch = decode_batch([top, slots, memoryview(bad)])
    for bit in range(len(bad) * 8):
        bad[bit // 8] ^= 1 << bit % 8
        assert not batch.is_intact(), bit
        bad[bit // 8] ^= 1 << bit % 8
    assert batch.is_intact()


def test_frames_of_two_batches_do_not_make_a_third() -> None:
    one = make_frames()
    header = replace(LIVE, number=259)
    other = [encode_batch(header, bytes(16), bytes(8192)), bytes(16), bytes(8192)]
    assert survives(one)
    assert survives(other)
    assert not survives([one[0], other[1], one[2]])
    assert not survives([one[0], one[1], other[2]])
    assert not survives([other[0], one[1], one[2]])


def test_message_of_another_conversation_is_an_error() -> None:
    with pytest.raises(WireError):
        decode_request(encode_message(Ping(1, GENERATION, 3)))
