# SPDX-License-Identifier: GPL-2.0-only
"""What a source knows of time: how far its replica is behind, for batches, PINGs and status.

A write that the ring has missed stays missing until the replica is known to be a prefix again
(`is_prefix`), not only until no region is dirty: what the scan has brought is usable only then.
A reader that begins knows nothing of that until the target's first WELCOME, which returns what
the last reader said.
"""

from __future__ import annotations

from bdr.common.capture.api import CaptureStatus
from bdr.common.capture.times import SlotTimes, earlier
from bdr.common.ring.layout import MISSED_NOTHING, MISSED_UNKNOWN
from bdr.common.ring.marks import Mark
from bdr.common.source.target_clock import TargetClock
from bdr.common.wire.statement import NO_STATEMENT, Statement

JUMP_S = 1.0
"""The capture's clock has advanced so much more than this process's, or less: its host was
suspended, or this process moved."""


class Times:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.missed_since_ns = MISSED_UNKNOWN
        """Since when the replica lacks what is not in the ring: a clock, `MISSED_NOTHING` or
        `MISSED_UNKNOWN`."""
        self.slots = SlotTimes()
        self._target = TargetClock()
        self._status: CaptureStatus | None = None
        self._looked_at = 0.0
        self._looked_utc_ms = 0

    def see(
        self,
        status: CaptureStatus,
        marks: list[Mark] | None,
        *,
        now_at: float,
        now_utc_ms: int,
        is_prefix: bool,
    ) -> None:
        """Takes a look at the capture; both times are no later than it.

        Args:
            is_prefix: the replica is one, durably.
        """
        if abs(status.clock_ns - self.clock_ns(now_at)) > JUMP_S * 1e9:
            self._target.forget()
        self._status, self._looked_at, self._looked_utc_ms = status, now_at, now_utc_ms
        self.slots.see(status, marks)
        found_ns = status.missed_since_ns
        if found_ns != MISSED_NOTHING:
            self.missed_since_ns = earlier(self.missed_since_ns, found_ns)
        elif is_prefix:
            self.missed_since_ns = MISSED_NOTHING

    def begin(self, *, is_prefix: bool, as_of_ns: int, stamp_ns: int, now_at: float) -> None:
        """A session begins.

        Args:
            is_prefix: the replica's condition is that of one.
            as_of_ns: of the WELCOME; 0: not known.
            stamp_ns: likewise.
        """
        found_ns = self._status.missed_since_ns if self._status else MISSED_UNKNOWN
        if not is_prefix:
            found_ns = earlier(as_of_ns or MISSED_UNKNOWN, found_ns)
        self.missed_since_ns = found_ns
        self._target.forget()
        self.heard(stamp_ns, now_at)

    def heard(self, stamp_ns: int, now_at: float) -> None:
        """An answer of the target arrived that bears this stamp."""
        self._target.heard(stamp_ns, self.clock_ns(now_at))

    def clock_ns(self, now_at: float) -> int:
        """The capture's clock now."""
        if self._status is None:
            return 0
        return self._status.clock_ns + int((now_at - self._looked_at) * 1e9)

    def between_ns(self, first: int, end: int, now_at: float) -> tuple[int, int]:
        """Slots [first, end) were captured not before, and not after."""
        last_ns = self.slots.not_after_ns(end - 1, self.clock_ns(now_at))
        return self.slots.not_before_ns(first), last_ns

    def statement(self, end: int, *, is_prefix: bool) -> Statement:
        """Of a replica that has every slot below `end`, and what was sent before.

        Args:
            is_prefix: it is one then.
        """
        status = self._status
        if status is None:
            return NO_STATEMENT
        said = status.clock_ns, self._looked_utc_ms
        until_ns = status.clock_ns if end >= status.head else self.slots.not_before_ns(end)
        missed_ns = status.missed_since_ns if is_prefix else self.missed_since_ns
        if missed_ns == MISSED_UNKNOWN or not until_ns:
            return Statement(*said, 0, 0)
        until_ns = earlier(until_ns, missed_ns)
        return Statement(*said, until_ns, self._target.stamp_ns(until_ns))
