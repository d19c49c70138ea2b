# SPDX-License-Identifier: GPL-2.0-only
"""What a header says of its place, where no whole log can show one rule alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bdr.common.journal.entry import EntryHeader, Kind, entry_bytes
from bdr.common.journal.entry_reader import Found, classify, continues
from bdr.common.journal.layout import BLOCK_BYTES, Cursor
from bdr.common.journal.superblock import Superblock
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import BATCH_SLOTS_MAX, AcceptedBatch
from tests.unit.journal_rig import JOURNAL_ID, RECORD

LOG_BLOCKS = 4 * BATCH_SLOTS_MAX
AT = Cursor(LOG_BLOCKS // 2 * BLOCK_BYTES, 7)
SUPERBLOCK = Superblock(
    generation=1,
    journal=JOURNAL_ID,
    log_bytes=LOG_BLOCKS * BLOCK_BYTES,
    run=2,
    checkpoint=Cursor(0, 1),
    durable=1,
    is_closed=False,
    record=RECORD,
)


def make_header(kind: Kind, *, slots: int, blocks: int, record: ReplicaRecord) -> EntryHeader:
    return EntryHeader(
        kind=kind,
        journal=JOURNAL_ID,
        run=2,
        cursor=AT,
        durable=1,
        blocks=blocks,
        slots=slots,
        record=record if kind is Kind.JOB else None,
        body_checksum=bytes(16),
    )


def found(kind: Kind, *, slots: int, blocks: int) -> Found:
    header = make_header(kind, slots=slots, blocks=blocks, record=RECORD)
    return classify(header, superblock=SUPERBLOCK, expected=AT)


@pytest.mark.parametrize(
    ("slots", "wanted"),
    [
        (0, Found.NEXT),
        (BATCH_SLOTS_MAX, Found.NEXT),
        (BATCH_SLOTS_MAX + 1, Found.IMPOSSIBLE),
        (1 << 31, Found.IMPOSSIBLE),
    ],
)
def test_job_has_no_more_slots_than_a_batch(slots: int, wanted: Found) -> None:
    blocks = entry_bytes(slots) // BLOCK_BYTES
    assert found(Kind.JOB, slots=slots, blocks=blocks) is wanted


@pytest.mark.parametrize(
    ("slots", "blocks", "wanted"),
    [
        (0, LOG_BLOCKS // 2, Found.LAP_END),
        (1, LOG_BLOCKS // 2, Found.IMPOSSIBLE),
        (0, LOG_BLOCKS // 2 - 1, Found.IMPOSSIBLE),
        (0, LOG_BLOCKS // 2 + 1, Found.IMPOSSIBLE),
    ],
)
def test_skip_takes_the_rest_of_the_lap_and_has_no_slots(
    slots: int, blocks: int, wanted: Found
) -> None:
    assert found(Kind.SKIP, slots=slots, blocks=blocks) is wanted


# What a job with slots may make of the record before it: RECORD stands at slot 7, epoch 3.

OTHER_STREAM = bytes(range(50, 66))
FIRST = AcceptedBatch(3, 1, 40, 2, bytes(16))
"""Of a source that begins at slot 40, and of a job of two slots."""


@pytest.mark.parametrize(
    ("after", "slots", "is_continuous"),
    [
        ({"slot": 9}, 2, True),
        ({"slot": 7}, 2, True),  # a repair
        ({"slot": 8}, 2, False),
        ({"slot": 10}, 2, False),
        ({"slot": 6}, 2, False),
        ({"slot": 9, "epoch": 4}, 2, False),
        # A source that begins elsewhere, by its first LIVE batch.
        ({"slot": 42, "stream": OTHER_STREAM, "recent": (FIRST,)}, 2, True),
        ({"slot": 42, "recent": (FIRST,)}, 2, True),
        ({"slot": 42, "stream": OTHER_STREAM}, 2, False),
        ({"slot": 42, "stream": OTHER_STREAM, "recent": (FIRST._replace(slots=1),)}, 2, False),
        ({"slot": 42, "stream": OTHER_STREAM, "recent": (FIRST._replace(first=41),)}, 2, False),
        ({"slot": 42, "stream": OTHER_STREAM, "recent": (FIRST._replace(epoch=2),)}, 2, False),
        ({"slot": 42, "stream": OTHER_STREAM, "recent": (FIRST,), "epoch": 4}, 2, False),
        ({"slot": 7, "stream": OTHER_STREAM}, 2, False),
        # A session, a marker, a ping or a stop.
        ({"slot": 42, "stream": OTHER_STREAM}, 0, True),
        ({"epoch": 4}, 0, True),
    ],
)
def test_job_with_slots_goes_on_where_the_record_is_or_begins_a_stream(
    after: dict[str, Any], slots: int, is_continuous: bool
) -> None:
    header = make_header(Kind.JOB, slots=slots, blocks=1, record=replace(RECORD, **after))
    assert continues(header, RECORD) is is_continuous
