# SPDX-License-Identifier: GPL-2.0-only
"""The journal's bytes: version 2 frozen, round trips, every bit flipped, the circle."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.copies import COPY_BYTES
from bdr.common.journal.entry import (
    HEADER_ENTRY_BYTES,
    Kind,
    body_checksum,
    decode_entry_header,
    encode_entry,
    encode_skip,
    entry_bytes,
    skip_bytes,
)
from bdr.common.journal.layout import (
    BLOCK_BYTES,
    CHECKSUM_BYTES,
    LOG_OFFSET,
    Cursor,
    checksum,
    log_bytes_of,
    offset_of,
    rest_of_lap,
)
from bdr.common.journal.superblock import (
    Copy,
    Superblock,
    encode_superblock,
    found_version,
    inspect_superblock,
)
from bdr.common.target.record import COPIES, RECORD_BYTES_MAX, ReplicaRecord
from bdr.common.target.witness import FIXED_MAX, RECENT_MAX, WITNESS_BYTES_MAX, Witness
from bdr.common.wire.batch import AcceptedBatch
from bdr.common.wire.condition import Condition

U64 = st.integers(0, (1 << 64) - 1)
SUPERBLOCK = Superblock(
    generation=0x0102030405060708,
    journal=bytes(range(16)),
    log_bytes=1 << 30,
    run=9,
    checkpoint=Cursor(0x1234567000, 0x2345),
    durable=0x2350,
    is_closed=False,
    record=ReplicaRecord(
        volume="vol-1",
        device_sectors=1 << 31,
        stream=bytes(range(16, 32)),
        slot=0xABCDEF,
        epoch=12,
        condition=Condition.CATCHING_UP,
        journal=bytes(range(16)),
        since_utc=1_790_000_000,
        as_of_utc=1_790_000_060,
        left_bytes=5 << 30,
        device="wwid 7",
        target=bytes(range(32, 48)),
        source=bytes(range(48, 64)),
        generation=bytes(range(80, 88)),
        changes=6,
        as_of_ns=1 << 50,
        source_sectors=1 << 30,
        recent=(
            AcceptedBatch(12, 33, 0xABCDD0, 16, bytes(range(96, 112))),
            AcceptedBatch(12, 34, 0xABCDE0, 15, bytes(range(64, 80))),
        ),
    ),
)
FROZEN_SUPERBLOCK = (
    "4244524a524e4c000200000000000000cd8fa99727c38f3d77d9dfb50690e1080807060504030201"
    "000102030405060708090a0b0c0d0e0f000000400000000009000000000000000070563412000000"
    "45230000000000005023000000000000000000009f0100000000000000000000de0016a6766f6c75"
    "6d65a5766f6c2d31ae6465766963655f736563746f7273ce80000000a673747265616dc410101112"
    "131415161718191a1b1c1d1e1fa4736c6f74ce00abcdefa565706f63680ca9636f6e646974696f6e"
    "01a5636c65616ec3a76a6f75726e616cc410000102030405060708090a0b0c0d0e0fa973696e6365"
    "5f757463ce6ab13b80a961735f6f665f757463ce6ab13bbcaa6c6566745f6279746573cf00000001"
    "40000000ac70726f6d6f7465645f75746300a6646576696365a6777769642037a6746172676574c4"
    "10202122232425262728292a2b2c2d2e2fa6736f75726365c410303132333435363738393a3b3c3d"
    "3e3faa67656e65726174696f6ec4085051525354555657a76368616e67657306a6726563656e7492"
    "950c21ce00abcdd010c410606162636465666768696a6b6c6d6e6f950c22ce00abcde00fc4104041"
    "42434445464748494a4b4c4d4e4fa661646f707473c41000000000000000000000000000000000a8"
    "676976656e5f7570c2a861735f6f665f6e73cf0004000000000000ae736f757263655f736563746f"
    "7273ce40"
)
FROZEN_ENTRY = (
    "424452454e545259a066655c62dbccf7188ce841dc16d49e000102030405060708090a0b0c0d0e0f"
    "09000000000000004523000000000000007056341200000044230000000000000100000002000000"
    "030000009f010000919485fa669d51ff0a8e799327b5e87ade0016a6766f6c756d65a5766f6c2d31"
    "ae6465766963655f736563746f7273ce80000000a673747265616dc410101112131415161718191a"
    "1b1c1d1e1fa4736c6f74ce00abcdefa565706f63680ca9636f6e646974696f6e01a5636c65616ec3"
    "a76a6f75726e616cc410000102030405060708090a0b0c0d0e0fa973696e63655f757463ce6ab13b"
    "80a961735f6f665f757463ce6ab13bbcaa6c6566745f6279746573cf0000000140000000ac70726f"
    "6d6f7465645f75746300a6646576696365a6777769642037a6746172676574c41020212223242526"
    "2728292a2b2c2d2e2fa6736f75726365c410303132333435363738393a3b3c3d3e3faa67656e6572"
    "6174696f6ec4085051525354555657a76368616e67657306a6726563656e7492950c21ce00abcdd0"
    "10c410606162636465666768696a6b6c6d6e6f950c22ce00abcde00fc41040414243444546474849"
    "4a4b4c4d4e4fa661646f707473c41000000000000000000000000000000000a8676976656e5f7570"
    "c2a861735f6f665f6e73cf0004000000000000ae736f757263655f736563746f7273ce40"
)
FROZEN_WITNESS = (
    "0100010002000000"
    "02010000000000001817161514131211"
    "04030000000000002827262524232221"
    "06050000000000003837363534333231"
)
FROZEN_SLOTS = "0000000000000f000800000000000f"
FROZEN_SKIP = (
    "424452454e545259d765b4be3e6e21f0bb46a5c9122a2023000102030405060708090a0b0c0d0e0f"
    "09000000000000000500000000000000002000000000000005000000000000000200000000000000"
    "0300000000000000436ede2b81c5274f211d551610b7f84a"
)
VERSION_1_SUPERBLOCK = (
    "4244524a524e4c0001000000000000000dae45330d5e0e575c059403d6de8c780807060504030201"
    "000102030405060708090a0b0c0d0e0f000000400000000009000000000000000070563412000000"
    "452300000000000050230000000000000000008000000000101112131415161718191a1b1c1d1e1f"
    "efcdab00000000000c0000000000000001000000000000000500000000000000766f6c2d31"
)


def entry(slots: int = 2, **changes: object) -> tuple[bytes, bytes]:
    """Meta and payload of an entry of so many slots."""
    payload = bytes(range(256)) * 16 * slots
    headers = b"".join((1 << 51 | 7 << 48 | at * 8).to_bytes(8, "little") for at in range(slots))
    arguments = {
        "superblock": SUPERBLOCK,
        "cursor": Cursor(0x1234567000, 0x2345),
        "durable": 0x2344,
        "record": SUPERBLOCK.record,
        "headers": headers,
        "payload": payload,
    } | changes
    return encode_entry(**arguments), payload  # type: ignore[arg-type]


def reseal(data: bytearray, *, checksum_at: int) -> None:
    """Gives changed bytes the checksum that fits."""
    place = slice(checksum_at, checksum_at + CHECKSUM_BYTES)
    data[place] = bytes(CHECKSUM_BYTES)
    data[place] = checksum(data)


def test_superblock_of_version_2_has_its_frozen_bytes() -> None:
    block = encode_superblock(SUPERBLOCK)
    assert len(block) == BLOCK_BYTES
    assert block.rstrip(b"\0").hex() == FROZEN_SUPERBLOCK
    frozen = bytes.fromhex(FROZEN_SUPERBLOCK).ljust(BLOCK_BYTES, b"\0")
    assert inspect_superblock(frozen) == (Copy.INTACT, SUPERBLOCK)


def test_witness_is_behind_the_record_and_has_its_frozen_bytes() -> None:
    witness = Witness()
    witness.is_taken = True
    witness.fixed = {0x0102: 0x1112131415161718}
    witness.recent = {0x0304: 0x2122232425262728, 0x0506: 0x3132333435363738}
    block = encode_superblock(replace(SUPERBLOCK, witness=witness.encode()))
    assert block[104:108] == (56).to_bytes(4, "little")
    assert block[2048:].rstrip(b"\0").hex() == FROZEN_WITNESS
    assert inspect_superblock(block)[0] is Copy.INTACT


def test_biggest_record_and_witness_fit_into_a_copy_of_the_state_file() -> None:
    kept = {"record": bytes(RECORD_BYTES_MAX), "witness": bytes(WITNESS_BYTES_MAX)}
    assert len(COPIES.encode(kept, 1)) == COPY_BYTES


def test_entry_of_version_2_has_its_frozen_bytes() -> None:
    meta, _ = entry()
    assert len(meta) == BLOCK_BYTES
    assert meta[:2048].rstrip(b"\0").hex() == FROZEN_ENTRY
    assert meta[2048:].rstrip(b"\0").hex() == FROZEN_SLOTS


def test_skip_of_version_2_has_its_frozen_bytes() -> None:
    meta = encode_skip(
        superblock=SUPERBLOCK, cursor=Cursor(8192, 5), durable=5, length=3 * BLOCK_BYTES
    )
    assert meta.rstrip(b"\0").hex() == FROZEN_SKIP
    header = decode_entry_header(meta)
    assert header is not None
    assert (header.kind, header.end) == (Kind.SKIP, Cursor(8192 + 3 * BLOCK_BYTES, 6))


IDS = st.binary(min_size=16, max_size=16)
OF_THE_RECORD: dict[str, st.SearchStrategy[object]] = {
    "volume": st.text("abc-é", max_size=32),
    "device_sectors": U64,
    "stream": IDS,
    "slot": U64,
    "epoch": U64,
    "condition": st.sampled_from(Condition),
    "clean": st.booleans(),
    "journal": IDS,
    "since_utc": U64,
    "as_of_utc": U64,
    "left_bytes": U64,
    "promoted_utc": U64,
    "device": st.text(max_size=50),
    "target": IDS,
    "source": IDS,
    "generation": st.binary(min_size=8, max_size=8),
    "changes": U64,
    "recent": st.lists(
        st.builds(AcceptedBatch, U64, U64, U64, st.integers(0, 1024), IDS), max_size=16
    ).map(tuple),
    "adopts": IDS,
    "is_given_up": st.booleans(),
    "as_of_ns": U64,
    "source_sectors": U64,
}
RECORDS = st.builds(ReplicaRecord, **OF_THE_RECORD)


@st.composite
def witnesses(draw: st.DrawFn) -> bytes:
    """Encoded, of any that is kept."""
    made = Witness()
    kept = draw(st.dictionaries(U64, U64, max_size=FIXED_MAX + RECENT_MAX))
    for sector, digest in kept.items():
        is_fixed = len(made.fixed) < FIXED_MAX and draw(st.booleans())
        (made.fixed if is_fixed else made.recent)[sector] = digest
    made.is_taken = draw(st.booleans())
    return made.encode()


WITNESSES = witnesses()


def test_record_has_no_field_that_the_journal_forgets() -> None:
    assert {field.name for field in fields(ReplicaRecord)} == set(OF_THE_RECORD)


@given(
    st.builds(
        Superblock,
        generation=U64,
        journal=IDS.filter(any),
        log_bytes=st.integers(4, 1 << 40).map(lambda blocks: blocks * BLOCK_BYTES),
        run=U64,
        checkpoint=st.builds(
            Cursor, st.integers(0, 1 << 49).map(lambda blocks: blocks * BLOCK_BYTES), U64
        ),
        durable=U64,
        is_closed=st.booleans(),
        record=RECORDS,
        witness=WITNESSES,
    )
)
def test_superblock_round_trip(superblock: Superblock) -> None:
    block = encode_superblock(superblock)
    assert inspect_superblock(block) == (Copy.INTACT, superblock)


@given(record=RECORDS, slots=st.integers(0, 1024), durable=U64)
def test_entry_round_trip(record: ReplicaRecord, slots: int, durable: int) -> None:
    meta, payload = entry(slots, record=record, durable=durable)
    header = decode_entry_header(meta)
    assert header is not None
    assert header.record == record
    assert (header.kind, header.slots, header.durable) == (Kind.JOB, slots, durable)
    assert header.body_checksum == body_checksum(meta, payload)
    assert len(meta) + len(payload) == header.blocks * BLOCK_BYTES == entry_bytes(slots)


@given(record=RECORDS, before=RECORDS)
def test_entry_changes_nothing_of_where_the_record_is_kept_and_of_which_device(
    record: ReplicaRecord, before: ReplicaRecord
) -> None:
    header = decode_entry_header(entry(record=record)[0])
    assert header is not None
    names = ("volume", "device_sectors", "device", "journal", "clean")
    kept = {name: getattr(before, name) for name in names}
    assert header.record_after(before) == replace(record, **kept)


def test_skip_leaves_the_record_as_it_was() -> None:
    skip = encode_skip(superblock=SUPERBLOCK, cursor=Cursor(0, 5), durable=5, length=BLOCK_BYTES)
    header = decode_entry_header(skip)
    assert header is not None
    assert header.record_after(SUPERBLOCK.record) is SUPERBLOCK.record


def test_superblock_with_any_bit_flipped_is_recognised() -> None:
    block = encode_superblock(SUPERBLOCK)
    for bit in range(BLOCK_BYTES * 8):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        copy, found = inspect_superblock(bytes(flipped))
        assert found is None
        assert copy is (Copy.FOREIGN if bit < 64 else Copy.DAMAGED), bit


def test_entry_header_with_any_bit_flipped_is_recognised() -> None:
    meta, _ = entry()
    for bit in range(HEADER_ENTRY_BYTES * 8):
        flipped = bytearray(meta)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_entry_header(bytes(flipped)) is None, bit


def test_entry_body_with_any_bit_of_a_byte_flipped_is_recognised() -> None:
    meta, payload = entry(1)
    whole = bytearray(meta + payload)
    sealed = body_checksum(meta, payload)
    for at in range(HEADER_ENTRY_BYTES, len(whole), 7):
        whole[at] ^= 1 << at % 8
        assert body_checksum(whole[: len(meta)], bytes(whole[len(meta) :])) != sealed, at
        whole[at] ^= 1 << at % 8


@pytest.mark.parametrize("data", [b"", b"BDRENTRY", b"\0" * 4096, b"\xff" * 4096])
def test_no_entry_header_is_none(data: bytes) -> None:
    assert decode_entry_header(data) is None


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    assert decode_entry_header(data) is None
    assert inspect_superblock(data)[1] is None


def test_superblock_with_fitting_checksum_but_impossible_content_is_damaged() -> None:
    for wrong in (
        replace(SUPERBLOCK, log_bytes=4096),
        replace(SUPERBLOCK, log_bytes=(1 << 30) + 1),
        replace(SUPERBLOCK, checkpoint=Cursor(1, 1)),
        replace(SUPERBLOCK, checkpoint=Cursor(1 << 63, 1)),
        replace(SUPERBLOCK, journal=bytes(16)),
    ):
        block = encode_superblock(wrong)
        assert inspect_superblock(block) == (Copy.DAMAGED, None)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(96, 2, id="is_closed"),
        pytest.param(100, 0, id="no record"),
        pytest.param(100, RECORD_BYTES_MAX + 1, id="record_bytes"),
        pytest.param(104, WITNESS_BYTES_MAX + 1, id="witness_bytes"),
        pytest.param(104, 8, id="a witness of zeros that keeps nothing"),
        pytest.param(112, 0xFF, id="record"),
    ],
)
def test_superblock_with_fitting_checksum_but_unknown_field_is_damaged(
    offset: int, value: int
) -> None:
    block = bytearray(encode_superblock(SUPERBLOCK))
    block[offset : offset + 4] = value.to_bytes(4, "little")
    reseal(block, checksum_at=16)
    assert inspect_superblock(bytes(block)) == (Copy.DAMAGED, None)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(72, 99, id="kind"),
        # The record goes with JOB alone.
        pytest.param(72, int(Kind.SKIP), id="kind of another"),
        pytest.param(84, 0, id="record_bytes"),
        pytest.param(104, 0xFF, id="record"),
    ],
)
def test_entry_header_with_fitting_checksum_but_unknown_field_is_none(
    offset: int, value: int
) -> None:
    header = bytearray(entry()[0][:HEADER_ENTRY_BYTES])
    header[offset : offset + 4] = value.to_bytes(4, "little")
    reseal(header, checksum_at=8)
    assert decode_entry_header(bytes(header)) is None


def test_superblock_of_version_1_is_of_another_version() -> None:
    block = bytes.fromhex(VERSION_1_SUPERBLOCK).ljust(BLOCK_BYTES, b"\0")
    assert inspect_superblock(block) == (Copy.OTHER_VERSION, None)
    assert found_version(block) == 1


def test_copies_are_written_in_turn() -> None:
    after = SUPERBLOCK.next(
        checkpoint=Cursor(0, 1), durable=1, record=SUPERBLOCK.record, witness=b""
    )
    assert after.generation == SUPERBLOCK.generation + 1
    assert {SUPERBLOCK.offset, after.offset} == {0, BLOCK_BYTES}


@given(
    position=st.integers(0, 1 << 30).map(lambda blocks: blocks * BLOCK_BYTES),
    slots=st.integers(0, 1024),
    blocks=st.integers(2 * 1027, 1 << 20),
)
def test_entry_never_wraps(position: int, slots: int, blocks: int) -> None:
    log_bytes = blocks * BLOCK_BYTES
    skip = skip_bytes(position, slots, log_bytes)
    length = entry_bytes(slots)
    begin = offset_of(position + skip, log_bytes)
    assert begin >= LOG_OFFSET
    assert begin + length <= LOG_OFFSET + log_bytes
    assert skip < length
    assert skip in (0, rest_of_lap(position, log_bytes))


@pytest.mark.parametrize(
    ("slots", "blocks"), [(0, 1), (1, 2), (256, 257), (257, 259), (1024, 1027)]
)
def test_entry_takes_so_many_blocks(slots: int, blocks: int) -> None:
    assert entry_bytes(slots) == blocks * BLOCK_BYTES


def test_log_takes_what_the_superblocks_leave() -> None:
    assert log_bytes_of(1 << 20) == (1 << 20) - 8192
    assert log_bytes_of((1 << 20) + 4095) == (1 << 20) - 8192
    assert log_bytes_of(100) == 0
