# SPDX-License-Identifier: GPL-2.0-only
"""The ring's usage and the replica's lag, from samples of the ring. No I/O here."""

from __future__ import annotations

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.status.lag import LagMeter
from bdr.common.status.model import LagStatus, RingStatus


class RingView:
    """Takes samples of the ring.

    Args:
        rpo_s: recovery point objective.

    Attributes:
        error: why the ring cannot be read now.
        is_rpo_exceeded: as of the last successful sample.
    """

    def __init__(self, *, rpo_s: float) -> None:
        self._rpo_s = rpo_s
        self._meter = LagMeter()
        self._seen: tuple[CaptureInfo, CaptureStatus] | None = None
        self.error: str | None = None
        self.is_rpo_exceeded = False

    def seen(self, info: CaptureInfo, status: CaptureStatus, *, now_at: float) -> None:
        """Takes a successful sample."""
        self._seen, self.error = (info, status), None
        # Published slots are on the source's disk; reserved ones are not written yet.
        self._meter.sample(now_at=now_at, head=status.unpublished, tail=status.tail)
        self.is_rpo_exceeded = self._meter.lag.seconds > self._rpo_s

    def lost(self, error: str) -> None:
        """The capture is gone, or refused the request."""
        self._seen, self.error = None, error

    @property
    def lag(self) -> LagStatus:
        """As of the last sample; rates stay known while the ring cannot be read."""
        lag, is_seen = self._meter.lag, self._seen is not None
        return LagStatus(
            seconds=round(lag.seconds, 3) if is_seen else None,
            is_minimum=lag.is_minimum,
            slots=lag.slots if is_seen else None,
            catch_up_s=round(lag.catch_up_s, 1) if is_seen and lag.catch_up_s is not None else None,
            written_slots_per_s=round(lag.written_per_s, 1),
            acked_slots_per_s=round(lag.acked_per_s, 1),
        )

    @property
    def ring(self) -> RingStatus | None:
        """The ring, if it can be read."""
        if self._seen is None:
            return None
        info, status = self._seen
        return RingStatus(
            head=status.head,
            tail=status.tail,
            capacity=info.capacity,
            used=status.head - status.tail,
            mode=status.mode,
            regions=info.regions,
            dirty_regions=status.dirty_regions,
            overflows=status.overflows,
            missed_writes=status.missed_writes,
            failed_writes=status.failed_writes,
            device_sectors=status.device_sectors,
        )

    @property
    def stream(self) -> str | None:
        """The id of the capture's stream."""
        return self._seen[0].stream.hex() if self._seen else None

    @property
    def left_bytes(self) -> int | None:
        """Bytes left to compare."""
        if self._seen is None:
            return None
        info, status = self._seen
        return status.dirty_bytes(region_sectors=info.region_sectors)
