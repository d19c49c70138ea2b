# SPDX-License-Identifier: GPL-2.0-only
"""The wire format: frozen bytes, round trips, and what is no message."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bdr.common.errors import WireError
from bdr.common.wire import control as wire
from bdr.common.wire.control import (
    Ack,
    Batch,
    BatchHeader,
    BatchKind,
    Checksums,
    Condition,
    Digests,
    Hello,
    Mark,
    Message,
    Ping,
    Progress,
    Refused,
    RefusedReason,
    Rewind,
    Standing,
    Welcome,
)

STREAM = bytes(range(16))
LIVE = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, epoch=3, number=258, first=1 << 40, count=2)
SLOTS = bytes(range(16))
PAYLOAD = bytes(range(256)) * 32

U64 = st.integers(0, (1 << 64) - 1)
TEXT = st.text(max_size=200)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        protocol=st.just(wire.PROTOCOL),
        attempt=U64,
        volume=TEXT,
        stream=st.binary(min_size=16, max_size=16),
        device_sectors=U64,
        tail=U64,
        head=U64,
        assume_clean=st.booleans(),
    ),
    st.builds(
        Welcome,
        attempt=U64,
        epoch=U64,
        number=U64,
        slot=U64,
        condition=st.sampled_from(Condition),
    ),
    st.builds(Refused, attempt=U64, reason=st.sampled_from(RefusedReason), text=TEXT),
    st.builds(Ping, epoch=U64),
    st.builds(Progress, epoch=U64, left_bytes=U64),
    st.builds(Standing, epoch=U64, condition=st.sampled_from(Condition), since_s=U64, at_s=U64),
    st.builds(Ack, epoch=U64, accepted=U64, durable=U64),
    st.builds(Rewind, epoch=U64, text=TEXT),
    st.builds(Checksums, request=U64, epoch=U64, block_sectors=U64, ranges=st.binary(max_size=200)),
    st.builds(Digests, request=U64, digests=st.binary(max_size=200), text=TEXT),
)
HEADERS = st.builds(
    BatchHeader,
    kind=st.sampled_from((BatchKind.LIVE, BatchKind.RESYNC)),
    mark=st.just(Mark.NONE),
    stream=st.binary(min_size=16, max_size=16),
    epoch=U64,
    number=U64,
    first=st.integers(0, 1 << 60),
    count=st.integers(0, 3),
)
FIELDS = sorted(
    {field.name for kind in wire._MESSAGES.values() for field in dataclasses.fields(kind)}
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.integers(0, 9), inner),
    max_leaves=12,
)


def make_frames(header: BatchHeader = LIVE) -> list[wire.Buffer]:
    slots, payload = SLOTS[: header.count * 8], PAYLOAD[: header.count * 4096]
    slots, payload = slots.ljust(header.count * 8), payload.ljust(header.count * 4096)
    return [wire.encode_batch(header, slots, payload), slots, payload]


# Frozen bytes of protocol version 1. A change here is another protocol.

FROZEN_BATCH = (
    "92c42498010000c410000102030405060708090a0b0c0d0e0f03cd0102cf0000010000000000"
    "02c410116e40fde1aa8e3065a94284d3f4bcfb"
)
FROZEN_DESCRIPTOR = "970000c410000102030405060708090a0b0c0d0e0f03cd0102cf000001000000000002"
FROZEN_MESSAGES: list[tuple[Message, str]] = [
    (
        Hello(1, 2, "vol", STREAM, 1 << 40, 3, 1 << 33, True),
        "89a474797065a568656c6c6fa870726f746f636f6c01a7617474656d707402a6766f6c756d65"
        "a3766f6ca673747265616dc410000102030405060708090a0b0c0d0e0fae6465766963655f73"
        "6563746f7273cf0000010000000000a47461696c03a468656164cf0000000200000000ac6173"
        "73756d655f636c65616ec3",
    ),
    (
        Welcome(2, 7, 1, 300, Condition.CATCHING_UP),
        "86a474797065a777656c636f6d65a7617474656d707402a565706f636807a66e756d62657201"
        "a4736c6f74cd012ca9636f6e646974696f6e01",
    ),
    (
        Refused(2, RefusedReason.SIZE, "tóo big"),
        "84a474797065a772656675736564a7617474656d707402a6726561736f6e03a474657874a874"
        "c3b36f20626967",
    ),
    (
        Ping(7),
        "82a474797065a470696e67a565706f636807",
    ),
    (
        Progress(7, 5 << 30),
        "83a474797065a870726f6772657373a565706f636807aa6c6566745f6279746573cf0000000140000000",
    ),
    (
        Standing(7, Condition.INCONSISTENT, 1_790_000_000, 1_790_000_060),
        "85a474797065a87374616e64696e67a565706f636807a9636f6e646974696f6e02a773696e63"
        "655f73ce6ab13b80a461745f73ce6ab13bbc",
    ),
    (
        Ack(7, 300, 299),
        "84a474797065a361636ba565706f636807a86163636570746564cd012ca764757261626c65cd012b",
    ),
    (
        Rewind(7, "gap"),
        "83a474797065a6726577696e64a565706f636807a474657874a3676170",
    ),
    (
        Checksums(5, 7, 8, wire.encode_ranges([(2048, 64)])),
        "85a474797065a9636865636b73756d73a77265717565737405a565706f636807ad626c6f636b"
        "5f736563746f727308a672616e676573c41000080000000000004000000000000000",
    ),
    (
        Digests(5, STREAM, ""),
        "84a474797065a764696765737473a77265717565737405a764696765737473c4100001020304"
        "05060708090a0b0c0d0e0fa474657874a0",
    ),
]


def test_batch_of_version_1_has_its_frozen_bytes() -> None:
    assert bytes(make_frames()[0]).hex() == FROZEN_BATCH
    batch = wire.decode_batch([bytes.fromhex(FROZEN_BATCH), SLOTS, PAYLOAD])
    assert batch.header == LIVE
    assert batch.is_intact()


def test_descriptor_has_its_frozen_bytes() -> None:
    assert wire.encode_descriptor(LIVE).hex() == FROZEN_DESCRIPTOR


@pytest.mark.parametrize(
    ("message", "frozen"), FROZEN_MESSAGES, ids=lambda value: type(value).__name__
)
def test_control_messages_of_version_1_have_their_frozen_bytes(
    message: Message, frozen: str
) -> None:
    assert wire.encode_message(message).hex() == frozen
    assert wire.decode_message(bytes.fromhex(frozen)) == message


def test_every_control_message_has_frozen_bytes() -> None:
    assert {type(message) for message, _ in FROZEN_MESSAGES} == set(wire._MESSAGES.values())


@given(MESSAGES)
def test_message_round_trip(message: Message) -> None:
    assert wire.decode_message(wire.encode_message(message)) == message


@given(HEADERS)
def test_batch_round_trip(header: BatchHeader) -> None:
    batch = wire.decode_batch(make_frames(header))
    assert batch.header == header
    assert batch.is_intact()


@given(HEADERS)
def test_descriptor_round_trip(header: BatchHeader) -> None:
    assert wire.decode_descriptor(wire.encode_descriptor(header)) == header


# Any bytes are a message or a WireError; nothing else comes out.


def decode_or_wire_error(decode: Any, data: Any) -> Any:
    try:
        return decode(data)
    except WireError:
        return None


@settings(max_examples=500)
@given(st.binary(max_size=300) | ANY.map(lambda value: bytes(msgpack.packb(value))))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 2000)
@example(b"\x81\xa4type" + b"\x91" * 1010 + b"\xc0")
@example(b"\x82\xa4type\xa4ping\xa5epoch" + b"\x91" * 1010 + b"\xc0")
@example(b"\x81\xa4type\x91\xa5hello")
@example(b"\x81\x91\x01\x02")
@example(bytes(msgpack.packb({"type": "ping", "epoch": True})))
@example(bytes(msgpack.packb({"type": "ping", "epoch": -1})))
@example(bytes(msgpack.packb({"type": "ping", "epoch": 1.0})))
@example(bytes(msgpack.packb({"type": "hello", "protocol": 2, "attempt": []})))
@example(b"\x83\xa4type\xa6rewind\xa5epoch\x01\xa4text\xa3\xed\xa0\x80")
@example(bytes(msgpack.packb(msgpack.Timestamp(1, 2))))
@example(b"\xd6\xff\xff\xff\xff\xff")
def test_any_bytes_are_a_control_message_or_an_error(data: bytes) -> None:
    decode_or_wire_error(wire.decode_message, data)
    decode_or_wire_error(wire.decode_descriptor, data)
    decode_or_wire_error(wire.decode_batch, [data, b"", b""])


@settings(max_examples=300)
@given(
    st.sampled_from(["hello", "welcome", "refused", "ping", "ack", "rewind", "batch"]),
    st.dictionaries(
        st.sampled_from(FIELDS),
        U64 | TEXT | st.booleans() | st.binary(min_size=16, max_size=16) | st.lists(U64),
    ),
)
def test_any_fields_are_a_control_message_or_an_error(name: str, fields: dict[str, Any]) -> None:
    data = bytes(msgpack.packb({"type": name, **fields}))
    message = decode_or_wire_error(wire.decode_message, data)
    if message is not None:
        assert wire.decode_message(wire.encode_message(message)) == message


@settings(max_examples=300)
@given(
    st.lists(ANY, max_size=9)
    | st.tuples(st.just(1), U64, U64, st.binary(max_size=17), U64, U64, U64, st.integers(0, 2000)),
    st.binary(max_size=17),
    st.sampled_from((0, 8, 16)),
    st.sampled_from((0, 4096, 8192)),
)
def test_any_fields_are_a_batch_or_an_error(
    fields: Any, digest: bytes, slots_bytes: int, payload_bytes: int
) -> None:
    top = bytes(msgpack.packb([msgpack.packb(fields), digest]))
    batch = decode_or_wire_error(wire.decode_batch, [top, bytes(slots_bytes), bytes(payload_bytes)])
    if batch is not None:
        assert isinstance(batch, Batch)
        assert batch.header.count * 8 == slots_bytes
        assert not batch.is_intact()


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_batch_of_other_than_three_frames_is_an_error(count: int) -> None:
    with pytest.raises(WireError, match="3"):
        wire.decode_batch([*make_frames(), b""][:count])


@pytest.mark.parametrize("field", [1, 2])
def test_batch_whose_frames_do_not_fit_its_count_is_an_error(field: int) -> None:
    frames = make_frames()
    frames[field] = frames[field][:-1]
    with pytest.raises(WireError, match="of payload"):
        wire.decode_batch(frames)


def test_batch_of_too_many_slots_is_an_error_before_anything_is_read() -> None:
    header = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, 1, 1, 0, 1025)
    with pytest.raises(WireError, match="1025"):
        wire.decode_batch([wire.encode_batch(header, b"", b""), b"", b""])


def test_batch_beyond_the_last_slot_number_is_an_error() -> None:
    header = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, 1, 1, (1 << 64) - 1, 2)
    with pytest.raises(WireError):
        wire.decode_batch(make_frames(header))


@pytest.mark.parametrize(
    ("kind", "mark", "count"),
    [
        (BatchKind.LIVE, Mark.RESYNC, 1),
        (BatchKind.MARK, Mark.NONE, 0),
        (BatchKind.MARK, Mark.CONSISTENT, 1),
    ],
)
def test_mark_in_the_wrong_kind_of_batch_is_an_error(
    kind: BatchKind, mark: Mark, count: int
) -> None:
    with pytest.raises(WireError, match="mark"):
        wire.decode_batch(make_frames(BatchHeader(kind, mark, STREAM, 1, 1, 0, count)))


def test_hello_of_another_protocol_is_told_apart_whatever_else_it_holds() -> None:
    data = msgpack.packb({"type": "hello", "protocol": 2, "attempt": 7, "new": [1, 2]})
    with pytest.raises(wire.OtherProtocolError) as caught:
        wire.decode_message(data)
    assert (caught.value.protocol, caught.value.attempt) == (2, 7)


def test_batch_of_another_protocol_is_told_apart() -> None:
    top = msgpack.packb([msgpack.packb([2, "whatever"]), bytes(16)])
    with pytest.raises(WireError, match="found protocol 2, wanted 1"):
        wire.decode_batch([top, b"", b""])


def test_control_message_of_64_kib_and_a_byte_is_an_error() -> None:
    with pytest.raises(WireError, match="at most"):
        wire.decode_message(bytes(wire.CONTROL_BYTES_MAX + 1))


# Bits.


def survives(frames: list[wire.Buffer]) -> bool:
    batch = decode_or_wire_error(wire.decode_batch, frames)
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
    header = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, 3, 9, 70, 1)
    top, slots, payload = make_frames(header)
    bad = bytearray(payload)
    batch = wire.decode_batch([top, slots, memoryview(bad)])
    for bit in range(len(bad) * 8):
        bad[bit // 8] ^= 1 << bit % 8
        assert not batch.is_intact(), bit
        bad[bit // 8] ^= 1 << bit % 8
    assert batch.is_intact()


def test_frames_of_two_batches_do_not_make_a_third() -> None:
    one = make_frames()
    header = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, 3, 259, 1 << 40, 2)
    other = [wire.encode_batch(header, bytes(16), bytes(8192)), bytes(16), bytes(8192)]
    assert survives(one)
    assert survives(other)
    assert not survives([one[0], other[1], one[2]])
    assert not survives([one[0], one[1], other[2]])
    assert not survives([other[0], one[1], one[2]])
