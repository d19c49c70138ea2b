# SPDX-License-Identifier: GPL-2.0-only
"""The condition of a replica's content."""

from __future__ import annotations

from enum import IntEnum


class Condition(IntEnum):
    """The values are in messages and in records on disk."""

    CONSISTENT = 0
    """The source at some point in time."""
    CATCHING_UP = 1
    """Has an unknown subset of the writes beyond its durable slot; consistent again when the source
    has sent everything up to its head."""
    INCONSISTENT = 2
    """Lacks writes, in regions that the source has marked: needs a scan of these."""
    UNKNOWN = 3
    """Of unknown content, and no region is marked yet: needs a scan of everything. Ends with
    the first UNVERIFIED marker, by which the source says that it has marked every region."""
    UNVERIFIED = 4
    """Regions that may differ are marked, and compared; nothing is known to be wrong. A first
    repair makes it INCONSISTENT."""

    @property
    def words(self) -> str:
        """The name, for users."""
        return self.name.lower().replace("_", " ")

    @property
    def needs_scan(self) -> bool:
        """Whether regions must be compared before it can be consistent."""
        return self in (Condition.INCONSISTENT, Condition.UNKNOWN, Condition.UNVERIFIED)
