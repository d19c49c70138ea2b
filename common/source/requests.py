# SPDX-License-Identifier: GPL-2.0-only
"""Requests of scanners and commands.

A scanner's requests are handled at once. A command's wait for a status of the capture that is newer
than the request, so that the answer is current.
"""

from __future__ import annotations

from collections import deque

from bdr.common.capture.api import CaptureInfo
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.source.events import Action, Peer, Reply
from bdr.common.source.findings import Memory
from bdr.common.source.order import Order
from bdr.common.source.scheduler import ResyncScheduler
from bdr.common.source.session import Session
from bdr.common.wire.scan import (
    Acquire,
    Commit,
    Query,
    Renew,
    Request,
    Resync,
    ResyncStatus,
    VerifyBegin,
    VerifyEnd,
    VerifyFound,
)

UNREADABLE_SHOWN = 1024
"""Unreadable ranges that an answer lists."""


class Requests:
    """Passes requests to the scheduler, and reports the progress of a scan."""

    def __init__(
        self,
        *,
        info: CaptureInfo,
        session: Session,
        order: Order,
        scheduler: ResyncScheduler,
        memory: Memory,
    ) -> None:
        self._info = info
        self._session = session
        self._order = order
        self._scheduler = scheduler
        self._memory = memory
        self._waiting: deque[tuple[Peer, VerifyBegin | VerifyEnd | Resync | Query]] = deque()

    @property
    def are_waiting(self) -> bool:
        """Whether requests wait for the capture's status."""
        return bool(self._waiting)

    def take(self, peer: Peer, request: Request) -> list[Action]:
        """Handles a scanner's request; queues a command's."""
        match request:
            case Acquire():
                self._scheduler.acquire(peer, request)
            case Commit():
                return self._scheduler.commit(peer, request)
            case Renew():
                self._scheduler.renew(peer, request)
            case VerifyFound():
                return self._memory.found(peer, request)
            case _:
                self._waiting.append((peer, request))
        return []

    def answer_next(self) -> tuple[list[Action], list[Action]]:
        """Handles the next queued request, after a status arrived.

        Returns:
            Actions that mark regions, which another status query must follow; and others.
        """
        peer, request = self._waiting.popleft()
        match request:
            case VerifyBegin():
                self._scheduler.acquire(peer, request)
                return [], []
            case VerifyEnd():
                return [], self._scheduler.end(peer, request)
            case Resync():
                return self._scheduler.mark(request), [self._status(peer, request.request)]
            case Query():
                return [], [self._status(peer, request.request)]

    def _status(self, peer: Peer, request: int) -> Reply:
        status, scheduler = self._order.status, self._scheduler
        answer = ResyncStatus(
            request=request,
            phase=self._session.state.name,
            condition=self._order.condition.name,
            mode=status.mode.name,
            epoch=self._order.epoch,
            region_bytes=self._info.region_sectors * SECTOR_BYTES,
            regions=self._info.regions,
            dirty_regions=status.dirty_regions,
            unreadable_regions=scheduler.regions.unreadable_count,
            scanners=scheduler.scanners,
            compared_bytes=scheduler.compared_bytes,
            repaired_bytes=scheduler.repaired_bytes,
            unreadable=scheduler.regions.unreadable[:UNREADABLE_SHOWN],
        )
        return Reply(peer, answer)
