# SPDX-License-Identifier: GPL-2.0-only
"""The wire format: frozen bytes, frozen names, and round trips."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.wire.batch import (
    PROTOCOL,
    AcceptedBatch,
    BatchHeader,
    BatchKind,
    Marker,
    decode_batch,
    decode_descriptor,
    encode_descriptor,
)
from bdr.common.wire.codec import BLOB_BYTES_MAX, TEXT_BYTES_MAX, U64, Codec, Form
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import (
    Ack,
    Checksums,
    Digests,
    Disown,
    Hello,
    Ping,
    Refused,
    Rewind,
    Welcome,
    decode_message,
    encode_message,
)
from bdr.common.wire.reasons import DigestsRefused, RefusedReason, RewindReason
from bdr.common.wire.scan import (
    Acquire,
    Commit,
    Committed,
    Grant,
    Query,
    Remembered,
    Renew,
    Resync,
    ResyncStatus,
    Revoked,
    Verified,
    VerifyBegin,
    VerifyEnd,
    VerifyFound,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from tests.support.wire_forms import (
    CODECS,
    HEADERS,
    LIVE,
    PAYLOAD,
    SAID,
    SLOTS,
    STREAM,
    any_message,
    forms,
    make_frames,
)

SOURCE, TARGET, DIGEST = (bytes(range(first, first + 16)) for first in (16, 32, 48))

# Frozen bytes of protocol version 2. A change here is another protocol.

FROZEN_BATCH = (
    "94c42498020000c410000102030405060708090a0b0c0d0e0f03cd0102cf0000010000000000"
    "02c41089560a4ab3681f4b796318c8875507f3c42f9605cf0000008000000000cf0000020000"
    "000000cf000001a0c4506c7bcf0000010000000000cf4000000000000007c408b7d81e2a3f14"
    "916d"
)
FROZEN_DESCRIPTOR = (
    "92970000c410000102030405060708090a0b0c0d0e0f03cd0102cf0000010000000000029605"
    "cf0000008000000000cf0000020000000000cf000001a0c4506c7bcf0000010000000000cf40"
    "00000000000007"
)
FROZEN: dict[str, list[tuple[Any, str]]] = {
    "control": [
        (
            Hello(
                2,
                2,
                9,
                "vol",
                SOURCE,
                (b"gener-02", b"gener-01"),
                STREAM,
                1 << 40,
                3,
                1 << 33,
                4,
                1028,
                True,
            ),
            "8ea474797065a568656c6c6fa870726f746f636f6c02a7617474656d707402a56e6f6e636509"
            "a6766f6c756d65a3766f6ca6736f75726365c410101112131415161718191a1b1c1d1e1fab67"
            "656e65726174696f6e73c41067656e65722d303267656e65722d3031a673747265616dc41000"
            "0102030405060708090a0b0c0d0e0fae6465766963655f736563746f7273cf00000100000000"
            "00a47461696c03a468656164cf0000000200000000ac61636b6e6f776c656467656404a7636f"
            "756e746564cd0404ac617373756d655f636c65616ec3",
        ),
        (
            Welcome(
                2,
                7,
                1,
                300,
                5,
                Condition.CATCHING_UP,
                TARGET,
                (AcceptedBatch(6, 8, 290, 10, DIGEST),),
                11,
                (1 << 62) + 12,
            ),
            "8ba474797065a777656c636f6d65a7617474656d707402a565706f636807a66e756d62657201"
            "a4736c6f74cd012ca76368616e67657305a9636f6e646974696f6e01a6746172676574c41020"
            "2122232425262728292a2b2c2d2e2fa6726563656e7491950608cd01220ac410303132333435"
            "363738393a3b3c3d3e3fa861735f6f665f6e730ba773656e745f6e73cf400000000000000c",
        ),
        (
            Disown(7),
            "82a474797065a66469736f776ea565706f636807",
        ),
        (
            Refused(2, RefusedReason.SIZE, 9, "tóo big"),
            "85a474797065a772656675736564a7617474656d707402a6726561736f6e03a56e6f6e636509"
            "a474657874a874c3b36f20626967",
        ),
        (
            Ping(7, b"gener-02", 5 << 30, SAID),
            "85a474797065a470696e67a565706f636807aa67656e65726174696f6ec40867656e65722d30"
            "32aa6c6566745f6279746573cf0000000140000000a973746174656d656e7494cf0000020000"
            "000000cf000001a0c4506c7bcf0000010000000000cf4000000000000007",
        ),
        (
            Ack(
                7,
                300,
                299,
                Condition.INCONSISTENT,
                1_790_000_000,
                1_790_000_060,
                31,
                (1 << 62) + 9,
            ),
            "89a474797065a361636ba565706f636807a86163636570746564cd012ca764757261626c65cd"
            "012ba9636f6e646974696f6e02a973696e63655f757463ce6ab13b80a961735f6f665f757463"
            "ce6ab13bbca669646c655f731fa773656e745f6e73cf4000000000000009",
        ),
        (
            Rewind(7, RewindReason.DAMAGED, "gap"),
            "84a474797065a6726577696e64a565706f636807a6726561736f6e03a474657874a3676170",
        ),
        (
            Checksums(5, 7, 8, [(2048, 64)]),
            "85a474797065a9636865636b73756d73a77265717565737405a565706f636807ad626c6f636b"
            "5f736563746f727308a672616e676573c41000080000000000004000000000000000",
        ),
        (
            Digests(5, STREAM, DigestsRefused.UNREADABLE, "no"),
            "85a474797065a764696765737473a77265717565737405a764696765737473c4100001020304"
            "05060708090a0b0c0d0e0fa77265667573656404a474657874a26e6f",
        ),
    ],
    "requests": [
        (Acquire(5), "82a474797065a761637175697265a77265717565737405"),
        (
            Commit(6, 2, 300, [(1, 2)], [(3, 4), (5, 6)]),
            "86a474797065a6636f6d6d6974a56c6561736506a76261746368657302a6626c6f636b73cd01"
            "2ca5616761696ec41001000000000000000200000000000000aa756e7265616461626c65c420"
            "0300000000000000040000000000000005000000000000000600000000000000",
        ),
        (Renew(6), "82a474797065a572656e6577a56c6561736506"),
        (
            VerifyBegin(5, [(2048, 64)]),
            "83a474797065ac7665726966792d626567696ea77265717565737405a672616e676573c41000"
            "080000000000004000000000000000",
        ),
        (VerifyEnd(6), "82a474797065aa7665726966792d656e64a56c6561736506"),
        (
            VerifyFound(5, 9, [(0, 64)], [], [(8, 8)], 32768, 4096),
            "88a474797065ac7665726966792d666f756e64a77265717565737405a9656e6465645f757463"
            "09a7636f7665726564c41000000000000000004000000000000000a769676e6f726564c400a9"
            "646966666572696e67c41008000000000000000800000000000000ae636f6d70617265645f62"
            "79746573cd8000af646966666572696e675f6279746573cd1000",
        ),
        (Resync(5, []), "83a474797065a6726573796e63a77265717565737405a672616e676573c400"),
        (Query(5), "82a474797065a57175657279a77265717565737405"),
    ],
    "answers": [
        (
            Grant(5, 6, STREAM, 7, [(2048, 64)]),
            "86a474797065a56772616e74a77265717565737405a56c6561736506a673747265616dc41000"
            "0102030405060708090a0b0c0d0e0fa565706f636807a672616e676573c41000080000000000"
            "004000000000000000",
        ),
        (
            Committed(6, 7, 8, 9, b"\x81"),
            "86a474797065a9636f6d6d6974746564a56c6561736506a565706f636807a66e756d62657208"
            "a5666972737409a86578636c75646564c40181",
        ),
        (
            Verified(6, b"\x81"),
            "83a474797065a87665726966696564a56c6561736506a462757379c40181",
        ),
        (Remembered(6), "82a474797065aa72656d656d6265726564a77265717565737406"),
        (Revoked(6), "82a474797065a77265766f6b6564a56c6561736506"),
        (
            ResyncStatus(
                request=5,
                phase="STREAMING",
                condition="INCONSISTENT",
                mode="STREAM",
                epoch=7,
                region_bytes=65536,
                regions=1024,
                dirty_regions=3,
                unreadable_regions=1,
                scanners=2,
                compared_bytes=1 << 33,
                repaired_bytes=4096,
                unreadable=[(128, 8)],
            ),
            "8ea474797065ad726573796e632d737461747573a77265717565737405a57068617365a95354"
            "5245414d494e47a9636f6e646974696f6eac494e434f4e53495354454e54a46d6f6465a65354"
            "5245414da565706f636807ac726567696f6e5f6279746573ce00010000a7726567696f6e73cd"
            "0400ad64697274795f726567696f6e7303b2756e7265616461626c655f726567696f6e7301a8"
            "7363616e6e65727302ae636f6d70617265645f6279746573cf0000000200000000ae72657061"
            "697265645f6279746573cd1000aa756e7265616461626c65c410800000000000000008000000"
            "00000000",
        ),
    ],
}
EVERY = [
    pytest.param(conversation, message, frozen, id=type(message).__name__)
    for conversation, found in FROZEN.items()
    for message, frozen in found
]


def test_version_is_the_one_that_is_frozen() -> None:
    assert PROTOCOL == 2


def test_batch_has_its_frozen_bytes() -> None:
    assert bytes(make_frames()[0]).hex() == FROZEN_BATCH
    batch = decode_batch([bytes.fromhex(FROZEN_BATCH), SLOTS, PAYLOAD])
    assert batch.header == LIVE
    assert batch.is_intact()


def test_descriptor_has_its_frozen_bytes() -> None:
    assert encode_descriptor(LIVE).hex() == FROZEN_DESCRIPTOR
    assert decode_descriptor(bytes.fromhex(FROZEN_DESCRIPTOR)) == LIVE


@pytest.mark.parametrize(("conversation", "message", "frozen"), EVERY)
def test_message_has_its_frozen_bytes(conversation: str, message: Any, frozen: str) -> None:
    assert CODECS[conversation].encode(message).hex() == frozen
    assert CODECS[conversation].decode(bytes.fromhex(frozen)) == message


@pytest.mark.parametrize("conversation", CODECS)
def test_every_message_has_frozen_bytes_once(conversation: str) -> None:
    found = [type(message) for message, _ in FROZEN[conversation]]
    assert found == [form.kind for form in forms(CODECS[conversation]).values()]


def test_functions_use_the_tables_of_their_conversations() -> None:
    ping, acquire, revoked = (FROZEN[each][at][0] for each, at in _PLACES)
    assert decode_message(encode_message(ping)) == ping
    assert decode_request(encode_request(acquire)) == acquire
    assert decode_answer(encode_answer(revoked)) == revoked


_PLACES = (("control", 4), ("requests", 0), ("answers", 3))

MEMBERS: list[tuple[type[Any], dict[str, int]]] = [
    (BatchKind, {"LIVE": 0, "RESYNC": 1, "MARKER": 2}),
    (Marker, {"NONE": 0, "INCONSISTENT": 1, "CONSISTENT": 2, "UNVERIFIED": 3}),
    (
        Condition,
        {"CONSISTENT": 0, "CATCHING_UP": 1, "INCONSISTENT": 2, "UNKNOWN": 3, "UNVERIFIED": 4},
    ),
    (
        RefusedReason,
        {
            "PROTOCOL": 1,
            "VOLUME": 2,
            "SIZE": 3,
            "BUSY": 4,
            "SLOTS": 5,
            "UNRELATED": 6,
            "TWO_HISTORIES": 7,
            "PROMOTED": 8,
            "WRONG_DEVICE": 9,
        },
    ),
    (RewindReason, {"NO_SESSION": 1, "MISSING": 2, "DAMAGED": 3, "MISPLACED": 4}),
    (
        DigestsRefused,
        {"NONE": 0, "NO_SESSION": 1, "BUSY": 2, "BAD_RANGES": 3, "UNREADABLE": 4},
    ),
]


@pytest.mark.parametrize(
    ("kind", "frozen"), MEMBERS, ids=lambda each: getattr(each, "__name__", "")
)
def test_values_of_an_enumeration_are_frozen(kind: type[Any], frozen: dict[str, int]) -> None:
    assert {member.name: member.value for member in kind} == frozen


def test_reasons_that_pass_without_a_restart_of_the_reader() -> None:
    passing_refusals = [each for each in RefusedReason if not each.is_permanent]
    assert passing_refusals == [
        RefusedReason.BUSY,
        # A person decides on the target's host.
        RefusedReason.UNRELATED,
        RefusedReason.TWO_HISTORIES,
        RefusedReason.PROMOTED,
        RefusedReason.WRONG_DEVICE,
    ]
    passing = [each for each in DigestsRefused if not each.is_permanent]
    assert passing == [DigestsRefused.NONE, DigestsRefused.NO_SESSION, DigestsRefused.BUSY]


@pytest.mark.parametrize(("conversation", "message", "frozen"), EVERY)
def test_renaming_a_class_and_its_attributes_changes_no_byte(
    conversation: str, message: Any, frozen: str
) -> None:
    """The names on the wire are those of the table, and of nothing else."""
    form = next(each for each in forms(CODECS[conversation]).values() if each.kind is type(message))
    name = next(key for key, each in forms(CODECS[conversation]).items() if each is form)
    values = [getattr(message, key) for key in message.__dataclass_fields__]
    renamed = make_dataclass("Renamed", [f"attribute_{at}" for at in range(len(values))])
    codec: Codec[Any] = Codec({name: Form(renamed, form.fields)})
    assert codec.encode(renamed(*values)).hex() == frozen
    assert codec.decode(bytes.fromhex(frozen)) == renamed(*values)


def test_table_that_lacks_a_field_of_its_class_cannot_be_made() -> None:
    @dataclass
    class Two:
        one: int
        other: int

    with pytest.raises(AssertionError):
        Codec({"two": Form(Two, {"one": U64})})


# Round trips.


@pytest.mark.parametrize("conversation", CODECS)
@given(data=st.data())
def test_message_round_trip(conversation: str, data: st.DataObject) -> None:
    codec = CODECS[conversation]
    message = data.draw(any_message(codec))
    assert codec.decode(codec.encode(message)) == message


@given(HEADERS)
def test_batch_round_trip(header: BatchHeader) -> None:
    batch = decode_batch(make_frames(header))
    assert batch.header == header
    assert batch.is_intact()


@given(HEADERS)
def test_descriptor_round_trip(header: BatchHeader) -> None:
    assert decode_descriptor(encode_descriptor(header)) == header


@pytest.mark.parametrize(
    "message",
    [
        Digests(1, bytes(BLOB_BYTES_MAX), DigestsRefused.NONE, "x" * TEXT_BYTES_MAX),
        Checksums(1, 1, 1, [(1, 1)] * (BLOB_BYTES_MAX // 16)),
        Rewind(1, RewindReason.MISSING, "é" * (TEXT_BYTES_MAX // 2)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_message_with_the_longest_fields_fits(message: Any) -> None:
    assert decode_message(encode_message(message)) == message


def test_position_after_a_batch() -> None:
    headers = [
        BatchHeader(kind, Marker.NONE, STREAM, 1, 1, 10, 5)
        for kind in (BatchKind.LIVE, BatchKind.RESYNC, BatchKind.MARKER)
    ]
    assert [header.end for header in headers] == [15, 10, 10]


def test_accepted_batch_is_of_the_frames_that_it_was_accepted_with_and_of_no_others() -> None:
    digest = decode_batch(make_frames()).digest
    accepted = AcceptedBatch(LIVE.epoch, LIVE.number, LIVE.first, LIVE.count, digest)
    assert accepted.is_of(STREAM, SLOTS, PAYLOAD)
    assert not accepted.is_of(SOURCE, SLOTS, PAYLOAD)
    assert not accepted.is_of(STREAM, SLOTS[::-1], PAYLOAD)
    assert not accepted.is_of(STREAM, SLOTS, PAYLOAD[::-1])
    for field in ("epoch", "number", "first"):
        other = accepted._replace(**{field: getattr(accepted, field) + 1})
        assert not other.is_of(STREAM, SLOTS, PAYLOAD), field
