# SPDX-License-Identifier: GPL-2.0-only
"""What the replica is worth, as its source declares it, and which marker is due.

A session begins in the condition that the target names; markers change it.

- UNKNOWN, the target knows nothing of this stream: every region is marked, and only
  then does an INCONSISTENT marker say so. A reader that dies in between begins anew.
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
    """A look at the capture while batches may go; `cursor` is the next slot to go."""

    status: CaptureStatus
    cursor: int


@dataclass(frozen=True, slots=True)
class ScanRequested:
    """A scanner is ready to repair what is marked."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A marker was dispatched."""

    marker: Marker


class Consistency(Machine[Condition]):
    """See the module's text.

    Args:
        status: the first look at the capture.
    """

    def __init__(self, status: CaptureStatus, story: Story) -> None:
        super().__init__(Condition.INCONSISTENT, story)
        self.is_scan_requested = False
        self._status = status
        self._consistent_at: int | None = None
        """From this slot on it is consistent, if nothing else happens."""
        self._overflows_then = 0
        """Overflows as of the look that set `_consistent_at`."""
        self._repaired_overflows: int | None = None
        """So many were repaired when the replica was last consistent, if that is known."""

    def begin(self, condition: Condition, *, head: int) -> None:
        """A session begins; `condition` is as the target says, `head` the ring's."""
        self.state = condition
        self._consistent_at = head if condition is Condition.CATCHING_UP else None
        self.is_scan_requested = False

    def forget(self) -> None:
        """What was in flight may be lost: scanners ask again."""
        self.is_scan_requested = False

    def seen(self, status: CaptureStatus) -> None:
        """A look at the capture, whether batches may go or not."""
        self._status = status

    def gap(self) -> int | None:
        """The lowest slot before which writes were missed that nothing has repaired.

        The capture names the last one, and a bound for the first that is not released; which
        of them were repaired since is known here, by their number.
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
        """The marker that must stand at the cursor, before any more slots."""
        if self.state is Condition.UNKNOWN:
            return Marker.INCONSISTENT
        if self.state is not Condition.INCONSISTENT and (
            self._is_scan_due(cursor) or self._is_gap_passed(cursor)
        ):
            return Marker.INCONSISTENT
        # A write that was under way at the look which found all clean may fail, and a scan have
        # read a part of it: so may whoever reads the source.
        if self._consistent_at is not None and cursor >= self._consistent_at:
            return Marker.CONSISTENT
        return None

    def _is_scan_due(self, cursor: int) -> bool:
        """Whether a scan may make the replica inconsistent now: not before it must."""
        status, gap = self._status, self.gap()
        return (
            self.is_scan_requested
            and status.mode is Mode.STREAM
            and status.resync_regions > 0
            # Before a gap it is still a prefix.
            and (gap is None or gap <= cursor)
        )

    def _is_gap_passed(self, cursor: int) -> bool:
        status, gap = self._status, self.gap()
        return (
            gap is not None
            and gap <= cursor
            # In OVERFLOW the replica is still a prefix, unless slots follow the gap: the
            # mode may have turned again before this gap was passed.
            and (status.mode is Mode.STREAM or status.head > gap)
            and status.active_regions + status.resync_regions > 0
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
            self.state = Condition.INCONSISTENT
        self._consistent_at = None
        self.is_scan_requested = False

    TABLE: ClassVar[Table[Condition]] = {
        Condition.UNKNOWN: {
            StatusSeen: IGNORED,
            ScanRequested: stays(_on_scan_requested),
            Declared: goes(_on_declared, Condition.INCONSISTENT),
        },
        Condition.INCONSISTENT: {
            StatusSeen: stays(_on_look_inconsistent),
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
    """Whether the ring logs, and nothing is dirty or may become so."""
    return status.mode is Mode.STREAM and not (
        status.active_regions or status.resync_regions or status.unlogged
    )
