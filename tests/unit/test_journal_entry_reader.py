# SPDX-License-Identifier: GPL-2.0-only
"""What a header says of its place, where no whole log can show one rule alone."""

from __future__ import annotations

import pytest

from bdr.common.journal.entry import EntryHeader, Kind, entry_bytes
from bdr.common.journal.entry_reader import Found, classify
from bdr.common.journal.layout import BLOCK_BYTES, Cursor
from bdr.common.journal.superblock import Superblock
from bdr.common.wire.batch import BATCH_SLOTS_MAX
from bdr.common.wire.condition import Condition
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


def found(kind: Kind, *, slots: int, blocks: int) -> Found:
    header = EntryHeader(
        kind=kind,
        journal=JOURNAL_ID,
        run=2,
        cursor=AT,
        durable=1,
        blocks=blocks,
        slots=slots,
        stream=RECORD.stream,
        slot=RECORD.slot,
        epoch=RECORD.epoch,
        condition=Condition.CONSISTENT,
        body_checksum=bytes(16),
    )
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
