# SPDX-License-Identifier: GPL-2.0-only
"""When the capture leaves OVERFLOW, and when regions of failed writes join a scan.

Under a load above the link's rate the ring fills again and again. Each time that it does
so soon, the next overflow lasts twice as long: what is written meanwhile only dirties
regions, each of which is moved once, and the replica stays what it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bdr.common.capture.api import CaptureStatus
from bdr.common.machine import Machine, Story, Table, goes, stays
from bdr.common.ring.layout import Mode


@dataclass(frozen=True, slots=True)
class OverflowSettings:
    """Shares of the ring; times in seconds."""

    resume_below: float = 0.25
    """Leave OVERFLOW when no more than this share of the ring is in use."""
    min_s: float = 1.0
    """An OVERFLOW so soon after one was left lasts at least so long; doubles."""
    max_s: float = 16.0
    failed_wait_s: float = 60.0
    failed_wait_max_s: float = 3600.0
    """Regions of failed writes wait so long for the end of a scan, then join it, which begins
    anew: each time in the same scan, twice as long."""


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A look at the capture."""

    status: CaptureStatus
    now_at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The capture was told to resume, at the look before."""

    now_at: float


class OverflowPacing(Machine[Mode]):
    """See the module's text.

    Args:
        status: the first look at the capture.
        capacity: slots of the ring.
    """

    def __init__(
        self, *, status: CaptureStatus, capacity: int, settings: OverflowSettings, story: Story
    ) -> None:
        super().__init__(status.mode, story)
        self.has_begun = False
        """Whether the last look found an overflow that no look had found before."""
        self._status = status
        self._capacity = capacity
        self._settings = settings
        self._resumed_at = -math.inf
        self._wait_s = 0.0
        self._resume_at = 0.0
        """An overflow lasts until then, at least."""
        self._unfailed_at = 0.0
        """When no region was marked that a scan does not know of."""
        self._failed_wait_s = settings.failed_wait_s

    def should_resume(self, now_at: float) -> bool:
        """Whether the capture is to resume now."""
        status = self._status
        if self.state is Mode.STREAM:
            # Writes that failed. Not in the middle of a scan, which would begin anew; but a
            # region that cannot be read keeps its bit, so that a scan may never end.
            is_due = now_at - self._unfailed_at >= self._failed_wait_s
            return status.active_regions > 0 and (not status.resync_regions or is_due)
        return (
            status.head - status.tail <= self._settings.resume_below * self._capacity
            and now_at >= self._resume_at
        )

    # Handlers.

    def _on_look(self, looked: StatusSeen) -> None:
        status = looked.status
        # Their number, not the mode: it may have begun anew since the last look.
        self.has_begun = status.mode is Mode.OVERFLOW and status.overflows != self._status.overflows
        if self.has_begun:
            self._pace(looked.now_at)
        if not status.active_regions:
            self._unfailed_at = looked.now_at
        if not status.resync_regions:
            self._failed_wait_s = self._settings.failed_wait_s
        self._status = status
        self.state = status.mode

    def _on_resumed(self, resumed: Resumed) -> None:
        self._resumed_at = self._unfailed_at = resumed.now_at
        if self._status.active_regions and self._status.resync_regions:
            # A scan begins anew, after an overflow too.
            self._failed_wait_s = min(2 * self._failed_wait_s, self._settings.failed_wait_max_s)

    def _pace(self, now_at: float) -> None:
        """An overflow has begun: how long it lasts at least."""
        settings = self._settings
        if now_at - self._resumed_at > 2 * max(self._wait_s, settings.min_s):
            self._wait_s = 0.0
        else:
            self._wait_s = min(max(2 * self._wait_s, settings.min_s), settings.max_s)
        self._resume_at = now_at + self._wait_s

    TABLE: ClassVar[Table[Mode]] = {
        Mode.STREAM: {
            StatusSeen: goes(_on_look, Mode.STREAM, Mode.OVERFLOW),
            Resumed: stays(_on_resumed),
        },
        Mode.OVERFLOW: {
            StatusSeen: goes(_on_look, Mode.STREAM, Mode.OVERFLOW),
            Resumed: stays(_on_resumed),
        },
    }
