# SPDX-License-Identifier: GPL-2.0-only
"""When slots were captured, and since when a replica lacks writes. No I/O, no clock here.

Everything is on the capture's clock (`CaptureStatus.clock_ns`). A look is a mark too: slots from
its head on are reserved later than it, those below it were reserved earlier.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from bdr.common.capture.api import CaptureStatus
from bdr.common.ring.layout import MISSED_NOTHING, MISSED_UNKNOWN
from bdr.common.ring.marks import Mark

BATCH_NS = 1_000_000_000
"""Slots that were captured further apart are in different batches."""


class SlotTimes:
    """When slots were captured, as of the last look. Constant work for each question."""

    def __init__(self) -> None:
        self.marks_seen = -1
        """`CaptureStatus.marks` of the table; another one is news."""
        self._slots: list[int] = []
        self._clocks: list[int] = []
        self._looked: tuple[int, int] = (0, 0)
        """Head and clock of the last look."""

    def see(self, status: CaptureStatus, marks: Sequence[Mark] | None) -> None:
        """Takes a look, and what `Capture.marks` said after it; None if that is no news."""
        self._looked = status.head, status.clock_ns
        if marks is not None:
            self.marks_seen = status.marks
            self._slots = [slot for slot, _ in marks]
            self._clocks = [clock_ns for _, clock_ns in marks]

    def not_before_ns(self, slot: int) -> int:
        """Slots from this one on were captured then or later; 0 if that is not known."""
        head, clock_ns = self._looked
        at = bisect.bisect_right(self._slots, slot) - 1
        marked_ns = self._clocks[at] if at >= 0 else 0
        return max(marked_ns, clock_ns) if slot >= head else marked_ns

    def not_after_ns(self, slot: int, now_ns: int) -> int:
        """This slot was captured then or earlier; `now_ns` is later than that."""
        head, clock_ns = self._looked
        at = bisect.bisect_right(self._slots, slot)
        marked_ns = self._clocks[at] if at < len(self._clocks) else now_ns
        return min(marked_ns, clock_ns) if slot < head else marked_ns

    def cut(self, first: int, limit: int) -> int:
        """Of `limit` slots from `first` on, those that were captured within `BATCH_NS`; the
        others begin with a whole write."""
        began_ns = self.not_before_ns(first)
        at = bisect.bisect_right(self._clocks, began_ns + BATCH_NS)
        if not began_ns or at == len(self._slots) or self._slots[at] <= first:
            return limit
        return min(limit, self._slots[at] - first)


@dataclass(frozen=True, slots=True)
class Behind:
    """How far a replica is behind, on the capture's clock."""

    ns: int | None
    """Age of the oldest write that it lacks; 0: it lacks none; None: not known."""
    is_minimum: bool
    """Something is missing whose age is not known: `ns` is a lower bound."""


def earlier(one_ns: int, other_ns: int) -> int:
    """Since when something is missing of two such: each a clock, `MISSED_NOTHING` or
    `MISSED_UNKNOWN`."""
    if MISSED_UNKNOWN in (one_ns, other_ns):
        return MISSED_UNKNOWN
    known = [each for each in (one_ns, other_ns) if each != MISSED_NOTHING]
    return min(known, default=MISSED_NOTHING)


def behind(status: CaptureStatus, marks: Sequence[Mark], missed_since_ns: int) -> Behind:
    """How far the replica is behind at a look.

    Args:
        marks: taken after the look.
        missed_since_ns: since when it lacks what is not in the ring, by the status and by what
            the reader knows besides; a clock, `MISSED_NOTHING` or `MISSED_UNKNOWN`.
    """
    is_level = status.head == status.tail
    since_ns = MISSED_NOTHING
    if marks and not is_level:
        # The first one if the tail has moved on since the look.
        at = bisect.bisect_right(marks, status.tail, key=lambda mark: mark[0]) - 1
        since_ns = marks[max(at, 0)][1]
    is_minimum = missed_since_ns == MISSED_UNKNOWN or not (marks or is_level)
    if not is_minimum:
        since_ns = earlier(since_ns, missed_since_ns)
    if since_ns == MISSED_NOTHING:
        return Behind(None if is_minimum else 0, is_minimum)
    return Behind(max(0, status.clock_ns - since_ns), is_minimum)
