# SPDX-License-Identifier: GPL-2.0-only
"""Why a target refuses: their numbers cross the wire."""

from __future__ import annotations

from enum import IntEnum


class RefusedReason(IntEnum):
    """Why a HELLO was refused."""

    PROTOCOL = 1
    VOLUME = 2
    SIZE = 3
    BUSY = 4
    SLOTS = 5
    UNRELATED = 6
    """The target holds something that is not this source's."""
    TWO_HISTORIES = 7
    """Each side has something that the other never had."""
    PROMOTED = 8
    """The target's device was taken for use."""
    WRONG_DEVICE = 9
    """The target's device is not the one that has the replica."""

    @property
    def is_permanent(self) -> bool:
        """Whether asking again cannot help, unless this process is started anew."""
        return self in _PERMANENT


_PERMANENT = (
    RefusedReason.PROTOCOL,
    RefusedReason.VOLUME,
    RefusedReason.SIZE,
    RefusedReason.SLOTS,
)


class RewindReason(IntEnum):
    """Why batches of an epoch are no longer accepted."""

    NO_SESSION = 1
    """The target was restarted, or another source took over."""
    MISSING = 2
    """A batch did not arrive while many later ones did."""
    DAMAGED = 3
    MISPLACED = 4
    """A batch does not start at the end of the previous one."""


class DigestsRefused(IntEnum):
    """Why a request for digests was refused."""

    NONE = 0
    """Not refused."""
    NO_SESSION = 1
    """The session of this epoch is not open."""
    BUSY = 2
    """Too many requests are queued."""
    BAD_RANGES = 3
    UNREADABLE = 4
    """The target's device is unreadable there."""

    @property
    def is_permanent(self) -> bool:
        """Whether a retry cannot succeed."""
        return self in (DigestsRefused.BAD_RANGES, DigestsRefused.UNREADABLE)
