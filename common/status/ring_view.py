# SPDX-License-Identifier: GPL-2.0-only
"""The ring's usage and the replica's lag, from samples of the ring. No I/O here."""

from __future__ import annotations

from collections.abc import Sequence

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.capture.times import behind, earlier
from bdr.common.ring.layout import MISSED_NOTHING
from bdr.common.ring.marks import Mark
from bdr.common.status.lag import RateMeter
from bdr.common.status.model import LagStatus, RingStatus


class RingView:
    """Takes samples of the ring.

    Attributes:
        error: why the ring cannot be read now.
    """

    def __init__(self) -> None:
        self._meter = RateMeter()
        self._seen: tuple[CaptureInfo, CaptureStatus] | None = None
        self._marks: Sequence[Mark] = ()
        self.error: str | None = None

    def seen(
        self, info: CaptureInfo, status: CaptureStatus, marks: Sequence[Mark], *, now_at: float
    ) -> None:
        """Takes a successful sample; `marks` are of interest only if the ring is not empty."""
        self._seen, self._marks, self.error = (info, status), marks, None
        self._meter.sample(now_at=now_at, head=status.head, tail=status.tail)

    def lost(self, error: str) -> None:
        """The capture is gone, or refused the request."""
        self._seen, self.error = None, error

    def lag(self, missed_since_ns: int) -> LagStatus:
        """As of the last sample; rates stay known while the ring cannot be read.

        Args:
            missed_since_ns: since when the replica lacks what is not in the ring, as the reader
                knows; a clock, `MISSED_NOTHING` or `MISSED_UNKNOWN`.
        """
        rates = self._meter.rates
        written, acked = round(rates.written_per_s, 1), round(rates.acked_per_s, 1)
        if self._seen is None:
            return LagStatus(None, False, None, None, written, acked)
        _, status = self._seen
        missed_ns = earlier(status.missed_since_ns, missed_since_ns)
        found, slots = behind(status, self._marks, missed_ns), status.head - status.tail
        # What a scan brings is not in the rates.
        catch_up_s = rates.catch_up_s(slots) if missed_ns == MISSED_NOTHING else None
        return LagStatus(
            seconds=None if found.ns is None else round(found.ns / 1e9, 3),
            is_minimum=found.is_minimum,
            slots=slots,
            catch_up_s=None if catch_up_s is None else round(catch_up_s, 1),
            written_slots_per_s=written,
            acked_slots_per_s=acked,
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
