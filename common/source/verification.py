# SPDX-License-Identifier: GPL-2.0-only
"""Leases of commands, which only compare.

A lease is granted when everything dispatched before its opening is durable; it ends when everything
up to the ring's head at its end has been dispatched. So every write that the comparison may have
read is either on both sides or excluded. Regions that are marked at its start or at its end are
excluded too, since they may differ.
"""

from __future__ import annotations

from bdr.common.capture.api import CaptureInfo
from bdr.common.scan.plan import CHUNK_SECTORS, Chunk, joined
from bdr.common.source.events import Peer
from bdr.common.source.lease import Lease
from bdr.common.source.leases import Leases
from bdr.common.source.order import Order
from bdr.common.source.regions import Regions
from bdr.common.wire.scan import VerifyBegin


class Verification:
    """Opens and concludes the leases of commands.

    Args:
        chunks_max: of a lease.
    """

    def __init__(
        self,
        *,
        info: CaptureInfo,
        order: Order,
        leases: Leases,
        regions: Regions,
        chunks_max: int,
    ) -> None:
        self._info = info
        self._order = order
        self._leases = leases
        self._regions = regions
        self._chunks_max = chunks_max

    def is_possible(self, request: VerifyBegin) -> bool:
        """Whether its ranges are valid chunks: ascending, within the device, not too many."""
        end = 0
        for sector, sectors in request.ranges:
            if sector < end or not 0 < sectors <= CHUNK_SECTORS:
                return False
            end = sector + sectors
        count = len(request.ranges)
        return 0 < count <= self._chunks_max and end <= self._info.device_sectors

    def open(self, peer: Peer, request: VerifyBegin, *, now_at: float) -> Lease:
        """Opens a lease of these chunks, which is granted later."""
        chunks: list[Chunk] = request.ranges
        lease = self._leases.open(
            peer, request.request, chunks, now_at=now_at, barrier=self._order.dispatched
        )
        self.exclude_marked(lease)
        return lease

    def exclude_marked(self, lease: Lease) -> None:
        """Excludes the regions that are marked now.

        Not by the last status, which may be older: a write that fails is marked just before its
        slot is published.
        """
        size = self._info.region_sectors
        for span in joined(lease.chunks):
            for region in self._regions.dirty_within(span):
                lease.exclusions.exclude_range(region * size, size)
