# SPDX-License-Identifier: GPL-2.0-only
"""What a replica's content is worth."""

from __future__ import annotations

from enum import IntEnum


class Condition(IntEnum):
    """The values stand in messages and in records on disk."""

    CONSISTENT = 0
    """The source as it was at some moment."""
    CATCHING_UP = 1
    """Holds writes of unknown place beyond its durable slot; consistent again when
    the source has sent everything up to its head."""
    INCONSISTENT = 2
    """Misses writes, in regions that the source has marked: needs a scan of those."""
    UNKNOWN = 3
    """Of unknown content: needs a scan of everything. Ends with the first INCONSISTENT
    marker, by which the source says that it has marked every region."""

    @property
    def needs_scan(self) -> bool:
        """Whether regions must be compared before it can be consistent."""
        return self in (Condition.INCONSISTENT, Condition.UNKNOWN)
