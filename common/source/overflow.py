# SPDX-License-Identifier: GPL-2.0-only
"""Decides when the capture leaves OVERFLOW, and when failed writes' regions join a scan.

Under a load above the link's rate the ring overflows repeatedly. Each time that it does so soon
after the last, the overflow lasts twice as long: writes during it only mark regions, each of which
is copied once, and the replica keeps its condition.
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
    """Fractions are of the ring's capacity."""

    resume_below: float = 0.25
    """Leave OVERFLOW when no more than this fraction of the ring is in use."""
    min_s: float = 1.0
    """Minimum duration of an OVERFLOW that starts soon after the last; doubles."""
    max_s: float = 16.0
    failed_wait_s: float = 60.0
    failed_wait_max_s: float = 3600.0
    """Regions of failed writes wait this long for the end of a scan, then join it, which restarts
    it; doubles each time within a scan."""


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """The capture's status arrived."""

    status: CaptureStatus
    now_at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The capture left OVERFLOW after the last status."""

    now_at: float


class OverflowPacing(Machine[Mode]):
    """See the module's docstring.

    Args:
        status: the capture's first status.
        capacity: slots of the ring.
    """

    def __init__(
        self, *, status: CaptureStatus, capacity: int, settings: OverflowSettings, story: Story
    ) -> None:
        super().__init__(status.mode, story)
        self.has_begun = False
        """Whether the last status shows a new overflow."""
        self._status = status
        self._capacity = capacity
        self._settings = settings
        self._resumed_at = -math.inf
        self._wait_s = 0.0
        self._resume_at = 0.0
        """Earliest end of the present overflow."""
        self._unfailed_at = 0.0
        """Last time without regions of failed writes outside the scan."""
        self._failed_wait_s = settings.failed_wait_s

    def should_resume(self, now_at: float) -> bool:
        """Whether the capture should leave OVERFLOW, or merge its bitmaps, now."""
        status = self._status
        if self.state is Mode.STREAM:
            # Failed writes. Not during a scan, which would restart; but an unreadable region keeps
            # its bit, so that a scan may never end.
            is_due = now_at - self._unfailed_at >= self._failed_wait_s
            return status.active_regions > 0 and (not status.resync_regions or is_due)
        return (
            status.head - status.tail <= self._settings.resume_below * self._capacity
            and now_at >= self._resume_at
        )

    # Handlers.

    def _on_look(self, looked: StatusSeen) -> None:
        status = looked.status
        # The count, not the mode: a new overflow may have started since the last status.
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
            # The scan restarts, after an overflow too.
            self._failed_wait_s = min(2 * self._failed_wait_s, self._settings.failed_wait_max_s)

    def _pace(self, now_at: float) -> None:
        """An overflow has started: sets its minimum duration."""
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
