# SPDX-License-Identifier: GPL-2.0-only
"""The replica's record, as it stands on disks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.target.record import (
    COPIES,
    NO_JOURNAL,
    NO_STREAM,
    RECORD_BYTES_MAX,
    ReplicaRecord,
    decode_record,
    demoted,
    encode_record,
    of_values,
    values_of,
)
from bdr.common.wire.batch import RECENT_BATCHES_MAX, AcceptedBatch
from bdr.common.wire.condition import Condition

U64 = st.integers(0, (1 << 64) - 1)
ID = st.binary(min_size=16, max_size=16)
LARGEST = ReplicaRecord(
    volume="v" * 64,
    device_sectors=(1 << 64) - 1,
    stream=b"\xff" * 16,
    slot=(1 << 64) - 1,
    epoch=(1 << 64) - 1,
    condition=Condition.UNVERIFIED,
    clean=True,
    journal=b"\xff" * 16,
    since_utc=(1 << 64) - 1,
    as_of_utc=(1 << 64) - 1,
    left_bytes=(1 << 64) - 1,
    promoted_utc=(1 << 64) - 1,
    device="d" * 255,
    target=b"\xff" * 16,
    source=b"\xff" * 16,
    generation=b"\xff" * 8,
    changes=(1 << 64) - 1,
    recent=(AcceptedBatch((1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1, 1024, b"\xff" * 16),)
    * RECENT_BATCHES_MAX,
    adopts=b"\xff" * 16,
    is_given_up=True,
    as_of_ns=(1 << 64) - 1,
    source_sectors=(1 << 64) - 1,
)
RECORD = replace(
    LARGEST,
    volume="vol",
    device="wwid 7",
    slot=50,
    condition=Condition.CATCHING_UP,
    clean=False,
    recent=(AcceptedBatch(3, 4, 46, 4, bytes(range(16))),),
)

FROZEN_NAMES = {
    "volume": "vol",
    "device_sectors": (1 << 64) - 1,
    "stream": b"\xff" * 16,
    "slot": 50,
    "epoch": (1 << 64) - 1,
    "condition": 1,
    "clean": False,
    "journal": b"\xff" * 16,
    "since_utc": (1 << 64) - 1,
    "as_of_utc": (1 << 64) - 1,
    "left_bytes": (1 << 64) - 1,
    "promoted_utc": (1 << 64) - 1,
    "device": "wwid 7",
    "target": b"\xff" * 16,
    "source": b"\xff" * 16,
    "generation": b"\xff" * 8,
    "changes": (1 << 64) - 1,
    "recent": [[3, 4, 46, 4, bytes(range(16))]],
    "adopts": b"\xff" * 16,
    "given_up": True,
    "as_of_ns": (1 << 64) - 1,
    "source_sectors": (1 << 64) - 1,
}


def test_record_has_its_frozen_names_on_disk() -> None:
    assert values_of(RECORD) == FROZEN_NAMES
    assert of_values(FROZEN_NAMES) == RECORD


def test_largest_record_fits_into_a_journal_entry_and_a_copy() -> None:
    assert len(encode_record(LARGEST)) <= RECORD_BYTES_MAX
    assert COPIES.encode(values_of(LARGEST), 1)


@given(
    st.builds(
        ReplicaRecord,
        volume=st.text(max_size=16),
        device_sectors=U64,
        stream=ID,
        slot=U64,
        epoch=U64,
        condition=st.sampled_from(Condition),
        clean=st.booleans(),
        since_utc=U64,
        as_of_utc=U64,
        left_bytes=U64,
        source=ID,
        generation=st.binary(min_size=8, max_size=8),
        changes=U64,
        recent=st.lists(
            st.builds(AcceptedBatch, U64, U64, U64, st.integers(0, 1024), ID), max_size=16
        ).map(tuple),
        is_given_up=st.booleans(),
        as_of_ns=U64,
        source_sectors=U64,
    )
)
def test_record_round_trip(record: ReplicaRecord) -> None:
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize(
    "change",
    [
        {"condition": 9},
        {"stream": 5},
        {"stream": b"short"},
        {"volume": 6},
        {"volume": "v" * 65},
        {"slot": -1},
        {"clean": 1},
        {"recent": [[1, 2, 3]]},
        {"recent": [[1, 2, 3, 1025, bytes(16)]]},
        {"generation": 5},
        {"generation": bytes(16)},
        {"future": 1},
    ],
)
def test_values_of_another_form_are_none(change: dict[str, Any]) -> None:
    assert of_values(FROZEN_NAMES | change) is None


@pytest.mark.parametrize("missing", sorted(FROZEN_NAMES))
def test_values_without_one_are_none(missing: str) -> None:
    assert of_values({name: FROZEN_NAMES[name] for name in FROZEN_NAMES if name != missing}) is None


@given(st.binary(max_size=100))
def test_any_bytes_are_no_record(data: bytes) -> None:
    assert decode_record(data) is None


def test_demoted_replica_keeps_its_source_and_nothing_of_its_place() -> None:
    record = demoted(RECORD, now_utc=7)
    assert (record.source, record.generation, record.target, record.epoch) == (
        RECORD.source,
        RECORD.generation,
        RECORD.target,
        RECORD.epoch,
    )
    assert (record.stream, record.slot, record.changes, record.recent) == (NO_STREAM, 0, 0, ())
    assert (record.journal, record.promoted_utc, record.is_given_up) == (NO_JOURNAL, 0, True)
    assert (record.condition, record.since_utc) == (Condition.INCONSISTENT, 7)
