# SPDX-License-Identifier: GPL-2.0-only
"""The replica's record: two copies, of which one may be torn."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.errors import StateError
from bdr.common.target import record as format_
from bdr.common.target.record import COPY_BYTES, ReplicaRecord, choose, decode_copy, encode_copy
from bdr.common.wire.condition import Condition

RECORD = ReplicaRecord(
    volume="vol",
    device_sectors=1 << 40,
    stream=bytes(range(16)),
    slot=(1 << 63) + 5,
    epoch=77,
    condition=Condition.CATCHING_UP,
    clean=False,
)
BLANK = bytes(COPY_BYTES)

FROZEN = (
    "424452524543303102010000000000007e000000e53e16f39158d1ad8c1b36fdca2f426188a6"
    "766f6c756d65a3766f6cae6465766963655f736563746f7273cf0000010000000000a6737472"
    "65616dc410000102030405060708090a0b0c0d0e0fa4736c6f74cf8000000000000005a56570"
    "6f63684da9636f6e646974696f6e01a5636c65616ec2a76a6f75726e616cc410"
)

TIMED = replace(
    RECORD,
    condition=Condition.INCONSISTENT,
    since_utc=1_790_000_000,
    accepted_utc=1_790_000_060,
    left_bytes=5 << 30,
)
FROZEN_TIMED = (
    "42445252454330310201000000000000a9000000eb2357e6671048bf9f21681cafeb0a588ba6"
    "766f6c756d65a3766f6cae6465766963655f736563746f7273cf0000010000000000a6737472"
    "65616dc410000102030405060708090a0b0c0d0e0fa4736c6f74cf8000000000000005a56570"
    "6f63684da9636f6e646974696f6e02a5636c65616ec2a76a6f75726e616cc410000000000000"
    "00000000000000000000a773696e63655f73ce6ab13b80a461745f73ce6ab13bbcaa6c656674"
    "5f6279746573cf0000000140"
)


def test_copy_of_version_1_has_its_frozen_bytes() -> None:
    copy = encode_copy(RECORD, 258)
    assert copy.rstrip(b"\0").hex() == FROZEN
    assert decode_copy(bytes.fromhex(FROZEN).ljust(COPY_BYTES, b"\0")) == (258, RECORD)


def test_copy_with_times_has_its_frozen_bytes() -> None:
    assert encode_copy(TIMED, 258).rstrip(b"\0").hex() == FROZEN_TIMED
    assert decode_copy(bytes.fromhex(FROZEN_TIMED).ljust(COPY_BYTES, b"\0")) == (258, TIMED)


@given(
    st.builds(
        ReplicaRecord,
        volume=st.text(max_size=16),
        device_sectors=st.integers(0, (1 << 64) - 1),
        stream=st.binary(min_size=16, max_size=16),
        slot=st.integers(0, (1 << 64) - 1),
        epoch=st.integers(0, (1 << 64) - 1),
        condition=st.sampled_from(Condition),
        clean=st.booleans(),
        since_utc=st.integers(0, (1 << 64) - 1),
        accepted_utc=st.integers(0, (1 << 64) - 1),
        left_bytes=st.integers(0, (1 << 64) - 1),
    ),
    st.integers(0, (1 << 64) - 1),
)
def test_copy_round_trip(record: ReplicaRecord, generation: int) -> None:
    copy = encode_copy(record, generation)
    assert len(copy) == COPY_BYTES
    assert decode_copy(copy) == (generation, record)


def test_every_flipped_bit_is_recognised_or_in_the_padding() -> None:
    copy = bytearray(encode_copy(RECORD, 258))
    used = format_._HEAD.size + format_._HEAD.unpack_from(copy)[2]
    for bit in range(COPY_BYTES * 8):
        copy[bit // 8] ^= 1 << bit % 8
        wanted = None if bit // 8 < used else (258, RECORD)
        assert decode_copy(bytes(copy)) == wanted, bit
        copy[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [0, 1, 35, 36, COPY_BYTES - 1, COPY_BYTES + 1])
def test_copy_of_another_length_is_none(length: int) -> None:
    assert decode_copy((encode_copy(RECORD, 1) + b"\0")[:length]) is None


@pytest.mark.parametrize("kept", range(0, COPY_BYTES, 16))
def test_copy_torn_anywhere_leaves_the_other(kept: int) -> None:
    older, newer = encode_copy(RECORD, 4), encode_copy(replace(RECORD, slot=9), 5)
    below = encode_copy(replace(RECORD, slot=1, volume="v" * 60), 3)
    torn = newer[:kept] + below[kept:]
    found = choose([older, torn], where="here")
    assert found in ((4, RECORD), (5, replace(RECORD, slot=9)))
    if torn not in (newer, below) and kept < len(newer.rstrip(b"\0")):
        assert found == (4, RECORD)


@pytest.mark.parametrize("order", [1, -1])
def test_the_higher_generation_counts(order: int) -> None:
    copies = [encode_copy(RECORD, 4), encode_copy(replace(RECORD, slot=9), 5)][::order]
    assert choose(copies, where="here") == (5, replace(RECORD, slot=9))


def test_nothing_written_yet_is_none() -> None:
    assert choose([BLANK, BLANK], where="here") is None


@pytest.mark.parametrize("kept", [1, 7, 8, 40, 100])
def test_very_first_save_torn_is_as_if_nothing_was_written(kept: int) -> None:
    """Nothing was acknowledged yet; a human should not have to delete the file."""
    torn = encode_copy(RECORD, 1)[:kept].ljust(COPY_BYTES, b"\0")
    assert choose([BLANK, torn], where="here") is None


@pytest.mark.parametrize(
    "copies",
    [
        [encode_copy(RECORD, 2)[:40].ljust(COPY_BYTES, b"\0"), BLANK],
        [encode_copy(RECORD, 2)[:40].ljust(COPY_BYTES, b"\0"), encode_copy(RECORD, 3)[1:] + b"\0"],
        [BLANK, b"\x7fELF".ljust(COPY_BYTES, b"\0")],
        [b"\x7fELF".ljust(COPY_BYTES, b"\0"), BLANK],
    ],
)
def test_no_intact_copy_is_an_error_that_says_what_to_do(copies: list[bytes]) -> None:
    with pytest.raises(StateError, match=r"/some/where.*delete it"):
        choose(copies, where="/some/where")


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: format_.MAGIC + tail))
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    assert decode_copy(data.ljust(COPY_BYTES, b"\0")) is None


@pytest.mark.parametrize(
    "body",
    [
        [1, 2],
        7,
        {},
        {"condition": 9},
        {"condition": 0, "volume": "v", "device_sectors": 1, "stream": 5},
        {"condition": 0, "volume": "v", "device_sectors": 1, "stream": b"short"},
        {"condition": 0, "volume": 6, "device_sectors": 1},
        {"condition": 0, "volume": "v" * 65, "device_sectors": 1},
        {"condition": 0, "volume": "v", "device_sectors": 1, "future": 1},
        {"condition": 0, "volume": "v", "device_sectors": 1, "since_utc": 1},
        {7: 8, "condition": 0},
    ],
)
def test_sealed_body_of_another_form_is_none(body: Any) -> None:
    packed = bytes(msgpack.packb(body))
    head = format_._HEAD.pack(format_.MAGIC, 1, len(packed), format_._digest(1, packed))
    assert decode_copy((head + packed).ljust(COPY_BYTES, b"\0")) is None


def test_every_field_of_a_record_has_a_key_on_disk() -> None:
    assert list(format_._KEYS.values()) == [field.name for field in fields(ReplicaRecord)]


def test_sealed_body_of_this_form_is_a_record() -> None:
    """So the cases above fail for what they name."""
    values = asdict(RECORD) | {"condition": 1}
    packed = bytes(msgpack.packb({key: values[name] for key, name in format_._KEYS.items()}))
    head = format_._HEAD.pack(format_.MAGIC, 1, len(packed), format_._digest(1, packed))
    assert decode_copy((head + packed).ljust(COPY_BYTES, b"\0")) == (1, RECORD)
