# SPDX-License-Identifier: GPL-2.0-only
"""Limits and timeouts of a source's node."""

from __future__ import annotations

from dataclasses import dataclass, field

from bdr.common.scan.plan import CHUNK_SECTORS
from bdr.common.source.overflow import OverflowSettings
from bdr.common.source.quota import QuotaSettings
from bdr.common.source.rate_limit import ScanRateSettings
from bdr.common.source.session import SessionSettings
from bdr.common.source.window import WindowSettings


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Limits and timeouts."""

    lease_chunks: int = 64
    lease_sectors: int = 16 * CHUNK_SECTORS
    open_leases: int = 32
    lease_s: float = 30.0
    """A lease that its peer has not renewed for so long expires."""
    unreadable_s: float = 60.0
    """An unreadable region is retried after this time."""
    rate_limit: ScanRateSettings = field(default_factory=ScanRateSettings)


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Limits and timeouts of every component."""

    session: SessionSettings = field(default_factory=SessionSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    overflow: OverflowSettings = field(default_factory=OverflowSettings)
    quota: QuotaSettings = field(default_factory=QuotaSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    status_interval_s: float = 0.25
    """Longest time between two status queries."""

    def __post_init__(self) -> None:
        if self.quota.batches > self.window.batches:
            # A lease whose batches never fit would wait indefinitely.
            raise ValueError(
                f"quota: wanted at most {self.window.batches} batches, as the window has"
            )
