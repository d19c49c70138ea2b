# SPDX-License-Identifier: GPL-2.0-only
"""Two copies of a small map, of which one may be torn."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common import copies as format_
from bdr.common.copies import COPY_BYTES, FILE_BYTES, Copies, Kept, place_of
from bdr.common.errors import StateError

KIND = Copies(b"BDRTST01", "test file")
VALUES = {"number": (1 << 63) + 5, "bytes": bytes(range(16)), "text": "vol"}
OTHER = VALUES | {"number": 9}
BLANK = bytes(COPY_BYTES)
FROZEN = (
    "4244525453543031020100000000000032000000bad7bced75a1226ac2210bea3641bd1083a66e"
    "756d626572cf8000000000000005a56279746573c410000102030405060708090a0b0c0d0e0fa4"
    "74657874a3766f6c"
)


def file_of(first: bytes, second: bytes) -> bytes:
    return first + second


def test_copy_has_its_frozen_bytes() -> None:
    copy = KIND.encode(VALUES, 258)
    assert copy.rstrip(b"\0").hex() == FROZEN
    assert KIND.decode(copy) == Kept(258, VALUES)


@given(
    st.dictionaries(st.text(max_size=8), st.binary(max_size=20) | st.integers(0, 1 << 63)),
    st.integers(0, (1 << 64) - 1),
)
def test_copy_round_trip(values: dict[str, Any], generation: int) -> None:
    copy = KIND.encode(values, generation)
    assert len(copy) == COPY_BYTES
    assert KIND.decode(copy) == Kept(generation, values)


def test_every_flipped_bit_is_recognised_or_in_the_padding() -> None:
    copy = bytearray(KIND.encode(VALUES, 258))
    used = format_._HEAD.size + format_._HEAD.unpack_from(copy)[2]
    for bit in range(COPY_BYTES * 8):
        copy[bit // 8] ^= 1 << bit % 8
        wanted = None if bit // 8 < used else Kept(258, VALUES)
        assert KIND.decode(bytes(copy)) == wanted, bit
        copy[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [0, 1, 35, 36, COPY_BYTES - 1, COPY_BYTES + 1])
def test_copy_of_another_length_is_none(length: int) -> None:
    assert KIND.decode((KIND.encode(VALUES, 1) + b"\0")[:length]) is None


def test_what_does_not_fit_is_not_written() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        KIND.encode({"bytes": bytes(COPY_BYTES)}, 1)


@pytest.mark.parametrize("kept", range(0, COPY_BYTES, 16))
def test_copy_torn_anywhere_leaves_the_other(kept: int) -> None:
    older, newer = KIND.encode(VALUES, 4), KIND.encode(OTHER, 5)
    below = KIND.encode({"text": "v" * 60}, 3)
    torn = newer[:kept] + below[kept:]
    found = KIND.choose(file_of(older, torn), where="here")
    assert found in (Kept(4, VALUES), Kept(5, OTHER))
    if torn not in (newer, below) and kept < len(newer.rstrip(b"\0")):
        assert found == Kept(4, VALUES)


@pytest.mark.parametrize("order", [1, -1])
def test_the_higher_generation_counts(order: int) -> None:
    both = [KIND.encode(VALUES, 4), KIND.encode(OTHER, 5)][::order]
    assert KIND.choose(file_of(*both), where="here") == Kept(5, OTHER)


def test_copies_are_written_in_turn_and_the_first_into_the_second_place() -> None:
    assert [place_of(generation) for generation in (1, 2, 3)] == [COPY_BYTES, 0, COPY_BYTES]


@pytest.mark.parametrize("data", [b"", bytes(FILE_BYTES)])
def test_nothing_written_yet_is_none(data: bytes) -> None:
    assert KIND.choose(data, where="here") is None


@pytest.mark.parametrize("kept", [1, 7, 8, 40, 80])
def test_very_first_save_torn_is_as_if_nothing_was_written(kept: int) -> None:
    """Nothing was built on it yet; a person should not have to move the file away."""
    torn = KIND.encode(VALUES, 1)[:kept].ljust(COPY_BYTES, b"\0")
    assert KIND.choose(file_of(BLANK, torn), where="here") is None


@pytest.mark.parametrize(
    "data",
    [
        file_of(KIND.encode(VALUES, 2)[:40].ljust(COPY_BYTES, b"\0"), BLANK),
        file_of(
            KIND.encode(VALUES, 2)[:40].ljust(COPY_BYTES, b"\0"), KIND.encode(VALUES, 3)[1:] + b"\0"
        ),
        file_of(BLANK, b"\x7fELF".ljust(COPY_BYTES, b"\0")),
        file_of(b"\x7fELF".ljust(COPY_BYTES, b"\0"), BLANK),
        Copies(b"BDRTST02", "another").encode(VALUES, 1) * 2,
    ],
)
def test_no_intact_copy_is_an_error_that_names_the_file(data: bytes) -> None:
    with pytest.raises(StateError, match=r"test file /some/where"):
        KIND.choose(data, where="/some/where")


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: KIND.magic + tail))
def test_any_bytes_are_a_copy_or_none(data: bytes) -> None:
    assert KIND.decode(data.ljust(COPY_BYTES, b"\0")) is None


@pytest.mark.parametrize("body", [b"", b"\xc1", bytes(msgpack.packb([1, 2])), b"\x81\x01"])
def test_sealed_body_that_is_no_map_is_none(body: bytes) -> None:
    head = format_._HEAD.pack(KIND.magic, 1, len(body), format_._digest(1, body))
    assert KIND.decode((head + body).ljust(COPY_BYTES, b"\0")) is None
