# SPDX-License-Identifier: GPL-2.0-only
"""Selects the dirty chunks of a scanner's next lease."""

from __future__ import annotations

from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.plan import CHUNK_SECTORS, Chunk
from bdr.common.source.hold import Hold
from bdr.common.source.order import Order
from bdr.common.source.rate_limit import ScanRateLimit
from bdr.common.source.regions import Regions
from bdr.common.source.settings import SchedulerSettings


class Grants:
    """See the module's docstring."""

    def __init__(self, *, order: Order, regions: Regions, settings: SchedulerSettings) -> None:
        self.hold = Hold(order)
        self._order = order
        self._regions = regions
        self._settings = settings
        self._rate_limit = ScanRateLimit(settings.rate_limit)

    def next_chunks(self, *, now_at: float, open_leases: int) -> list[Chunk]:
        """Takes the chunks of the next lease; empty if the scanner must wait.

        Args:
            open_leases: number of open leases.
        """
        order, settings = self._order, self._settings
        self._regions.retry_unreadable(now_at)
        if (
            not order.is_streaming
            or not order.status.resync_regions
            or not self.hold.is_over
            or open_leases >= settings.open_leases
        ):
            return []
        if not order.may_scan:
            order.request_scan()
            return []
        behind = max(0, order.status.head - order.cursor)
        if not self._rate_limit.may_take(now_at=now_at, behind_slots=behind):
            return []
        chunks = self._regions.take(
            chunks_max=settings.lease_chunks,
            # As much as its batches can carry if all of it differs.
            sectors_max=min(settings.lease_sectors, order.resync_limit * CHUNK_SECTORS),
        )
        self._rate_limit.take(sum(sectors for _, sectors in chunks) * SECTOR_BYTES)
        return chunks
