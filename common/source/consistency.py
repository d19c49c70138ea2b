# SPDX-License-Identifier: GPL-2.0-only
"""The replica's condition, as its source declares it, and the pending marker.

A session starts in the condition that the target reports; markers change it.

- UNKNOWN, the target knows nothing of this stream: every region is marked, and only
  then an UNVERIFIED marker follows; a reader that is killed in between repeats both.
- UNVERIFIED, nothing is known to be wrong: a first repair makes it INCONSISTENT, on both
  sides alike.
- An INCONSISTENT marker stands where writes were missed, or before a scanner repairs
  anything, since a scanner reads what has not completed yet.
- A CONSISTENT marker stands where the cursor reaches the ring's head as it was at a look
  that found the ring logging and no region dirty: whatever a scanner has read before,
  every write that it may have seen in part lies before that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bdr.common.capture.api import CaptureStatus
from bdr.common.machine import IGNORED, Machine, Story, Table, goes, stays
from bdr.common.ring.layout import Mode
from bdr.common.wire.batch import Marker
from bdr.common.wire.condition import Condition


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """The capture's status while batches may be sent; `cursor` is the next slot to send."""

    status: CaptureStatus
    cursor: int


@dataclass(frozen=True, slots=True)
class ScanRequested:
    """A scanner is ready to repair marked regions."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """A resync batch was numbered."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A marker was dispatched."""

    marker: Marker


class Consistency(Machine[Condition]):
    """See the module's docstring.

    Args:
        status: the first look at the capture.
    """

    def __init__(self, status: CaptureStatus, story: Story) -> None:
        super().__init__(Condition.INCONSISTENT, story)
        self.is_scan_requested = False
        self._status = status
        self._consistent_at: int | None = None
        """The replica is consistent from this slot on, unless another event prevents it."""
        self._overflows_then = 0
        """Overflow count of the status that set `_consistent_at`."""
        self._repaired_overflows: int | None = None
        """Overflow count when the replica was last consistent, if known."""

    def begin(self, condition: Condition, *, head: int) -> None:
        """A session starts; `condition` is the target's, `head` the ring's."""
        self.state = condition
        self._consistent_at = head if condition is Condition.CATCHING_UP else None
        self.is_scan_requested = False

    def forget(self) -> None:
        """Batches in flight may be lost: scanners repeat their requests."""
        self.is_scan_requested = False

    def seen(self, status: CaptureStatus) -> None:
        """The capture's status, whether batches may be sent or not."""
        self._status = status

    def gap(self) -> int | None:
        """The lowest slot that missed writes precede which are not repaired.

        The capture reports the last one, and a lower bound of the first unreleased one; which of
        them were repaired since follows from the overflow count.
        """
        status = self._status
        if self._repaired_overflows is None:
            return status.gap
        match status.overflows - self._repaired_overflows:
            case 0:
                return None
            case 1:
                return status.last_gap
            case _:
                return status.gap

    def due_marker(self, cursor: int) -> Marker | None:
        """The marker that is due at the cursor, before any more slots."""
        if self.state is Condition.UNKNOWN:
            return Marker.UNVERIFIED
        if self.state is not Condition.INCONSISTENT and (
            self._is_scan_due(cursor) or self._is_gap_passed(cursor)
        ):
            return Marker.INCONSISTENT
        # A write in flight at the clean status may still fail after a scan has read a part of it;
        # an application that reads the source may see the same.
        if self._consistent_at is not None and cursor >= self._consistent_at:
            return Marker.CONSISTENT
        return None

    def _is_scan_due(self, cursor: int) -> bool:
        """Whether a scan may make the replica inconsistent now: no earlier than necessary."""
        status, gap = self._status, self.gap()
        return (
            self.is_scan_requested
            and status.mode is Mode.STREAM
            and status.resync_regions > 0
            # Before a gap the replica is still a prefix.
            and (gap is None or gap <= cursor)
        )

    def _is_gap_passed(self, cursor: int) -> bool:
        status, gap = self._status, self.gap()
        return (
            gap is not None
            and gap <= cursor
            # In OVERFLOW the replica is still a prefix, unless slots follow the gap: the mode may
            # have changed again before the cursor passed this gap.
            and (status.mode is Mode.STREAM or status.head > gap)
            and status.dirty_regions > 0
        )

    # Handlers.

    def _on_scan_requested(self, _: ScanRequested) -> None:
        self.is_scan_requested = True

    def _on_look_inconsistent(self, looked: StatusSeen) -> None:
        if not _is_clean(looked.status):
            self._consistent_at = None
        elif self._consistent_at is None:
            self._consistent_at = max(looked.status.head, looked.cursor)
            self._overflows_then = looked.status.overflows

    def _on_look_prefix(self, looked: StatusSeen) -> None:
        if _is_clean(looked.status):
            self._repaired_overflows = looked.status.overflows

    def _on_declared(self, declared: Declared) -> None:
        if declared.marker is Marker.CONSISTENT:
            self._repaired_overflows = max(self._overflows_then, self._repaired_overflows or 0)
            self.state = Condition.CONSISTENT
        else:
            is_unverified = declared.marker is Marker.UNVERIFIED
            self.state = Condition.UNVERIFIED if is_unverified else Condition.INCONSISTENT
        self._consistent_at = None
        self.is_scan_requested = False

    def _on_repaired(self, _: Repaired) -> None:
        self.state = Condition.INCONSISTENT

    TABLE: ClassVar[Table[Condition]] = {
        Condition.UNKNOWN: {
            StatusSeen: IGNORED,
            ScanRequested: stays(_on_scan_requested),
            Declared: goes(_on_declared, Condition.UNVERIFIED),
        },
        Condition.UNVERIFIED: {
            StatusSeen: stays(_on_look_inconsistent),
            Repaired: goes(_on_repaired, Condition.INCONSISTENT),
            Declared: goes(_on_declared, Condition.INCONSISTENT, Condition.CONSISTENT),
        },
        Condition.INCONSISTENT: {
            StatusSeen: stays(_on_look_inconsistent),
            Repaired: stays(_on_repaired),
            Declared: goes(_on_declared, Condition.CONSISTENT),
        },
        Condition.CATCHING_UP: {
            StatusSeen: stays(_on_look_prefix),
            ScanRequested: stays(_on_scan_requested),
            Declared: goes(_on_declared, Condition.INCONSISTENT, Condition.CONSISTENT),
        },
        Condition.CONSISTENT: {
            StatusSeen: stays(_on_look_prefix),
            ScanRequested: stays(_on_scan_requested),
            Declared: goes(_on_declared, Condition.INCONSISTENT),
        },
    }


def _is_clean(status: CaptureStatus) -> bool:
    """Whether the ring is logging, and no region is dirty or may become dirty."""
    return status.mode is Mode.STREAM and not (status.dirty_regions or status.unlogged)
