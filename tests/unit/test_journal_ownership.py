# SPDX-License-Identifier: GPL-2.0-only
"""Which of state file and journal has the record: every row of the table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.journal.ownership import Truth, truth
from bdr.common.journal.superblock import Superblock
from bdr.common.target.record import NO_JOURNAL
from tests.unit.journal_rig import JOURNAL_ID, Target


def superblock_with(**changes: object) -> Superblock:
    return replace(Target().recover().superblock, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "superblock", "wanted"),
    [
        (NO_JOURNAL, None, Truth.STATE),
        (NO_JOURNAL, superblock_with(is_closed=True), Truth.STATE),
        (NO_JOURNAL, superblock_with(), Truth.UNCLAIMED),
        (JOURNAL_ID, None, Truth.MISSING),
        (JOURNAL_ID, superblock_with(), Truth.JOURNAL),
        (JOURNAL_ID, superblock_with(is_closed=True), Truth.JOURNAL),
        (JOURNAL_ID, superblock_with(journal=b"x" * 16), Truth.ANOTHER),
    ],
)
def test_truth_of_state_file_and_journal(
    owner: bytes, superblock: Superblock | None, wanted: Truth
) -> None:
    assert truth(owner, superblock) is wanted
