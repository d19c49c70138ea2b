# SPDX-License-Identifier: GPL-2.0-only
"""Which of state file and journal has the replica's record."""

from __future__ import annotations

from enum import Enum

from bdr.common.journal.superblock import Superblock
from bdr.common.target.record import NO_JOURNAL


class Truth(Enum):
    """Which of the two has the replica's record, where both are sound."""

    JOURNAL = "the journal: the state file says that it is in use"
    STATE = "the state file: no journal is in use"
    MISSING = "neither: the state file says that a journal is in use, and here is none"
    ANOTHER = "neither: the state file says that another journal is in use"
    UNCLAIMED = "neither: the journal is in use, and the state file does not say so"


def truth(owner: bytes, superblock: Superblock | None) -> Truth:
    """Decides between the two, so that no old journal is ever replayed.

    Args:
        owner: id of the journal that the state file says is in use, or NO_JOURNAL.
        superblock: of the journal that was named, None for a blank one.
    """
    if owner == NO_JOURNAL:
        is_free = superblock is None or superblock.is_closed
        return Truth.STATE if is_free else Truth.UNCLAIMED
    if superblock is None:
        return Truth.MISSING
    return Truth.JOURNAL if superblock.journal == owner else Truth.ANOTHER
