# SPDX-License-Identifier: GPL-2.0-only
"""Limits and timeouts of a target's node."""

from __future__ import annotations

from dataclasses import dataclass, field

from bdr.common.target.hook import HookSettings
from bdr.common.target.intake import IntakeSettings


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Limits and timeouts."""

    intake: IntakeSettings = field(default_factory=IntakeSettings)
    before_resync: HookSettings | None = None
    """None: no hook runs."""
    source_silence_s: float = 30.0
    """A source silent for so long counts as away: longer than any pause of its own, and than a
    queue that delays its pings."""
    session_s: float = 2.0
    """A session of which nothing came for so long no longer keeps others out."""
