# SPDX-License-Identifier: GPL-2.0-only
"""The leases that are not closed yet.

Open leases are few. Committed ones may be many while batches are slow to become durable; they cost
nothing until then.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from bdr.common.machine import Story
from bdr.common.scan.plan import Chunk
from bdr.common.source.events import Peer
from bdr.common.source.exclusions import Covered
from bdr.common.source.lease import Lease, LeaseState, Lost
from bdr.common.source.lease_requests import LeaseRequest
from bdr.common.wire.scan import VerifyBegin


class Leases:
    """Open leases by number, in order of opening; committed ones in batch order."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._next_number = 1
        self._open: dict[int, Lease] = {}
        self._committed: deque[Lease] = deque()

    def __iter__(self) -> Iterator[Lease]:
        """The open leases."""
        return iter(list(self._open.values()))

    @property
    def open_count(self) -> int:
        """Number of open leases."""
        return len(self._open)

    def open(
        self,
        peer: Peer,
        request: int,
        chunks: list[Chunk],
        *,
        now_at: float,
        barrier: int | None = None,
    ) -> Lease:
        """Opens a lease; with a barrier for a command, see `Lease`."""
        lease = Lease(
            number=self._next_number,
            peer=peer,
            request=request,
            chunks=chunks,
            opened_at=now_at,
            barrier=barrier,
            story=self._story,
        )
        self._next_number += 1
        self._open[lease.number] = lease
        return lease

    def renew(self, peer: Peer, number: int, *, now_at: float) -> None:
        """Its peer is still at work on it; ignored if it is not open."""
        lease = self.of(peer, number)
        if lease is not None:
            lease.renewed_at = now_at

    def renew_waiting(self, peer: Peer, request: LeaseRequest, *, now_at: float) -> bool:
        """The same, for a command's lease that is not granted; whether there is one."""
        if not isinstance(request, VerifyBegin):
            return False
        wanted = (LeaseState.WAITING, peer, request.request)
        its = [each for each in self if (each.state, each.peer, each.request) == wanted]
        for lease in its:
            lease.renewed_at = now_at
        return bool(its)

    def find(self, peer: Peer, number: int, *, is_verify: bool) -> Lease | None:
        """The open lease of this number, if it belongs to this peer and is of this kind."""
        lease = self.of(peer, number)
        return lease if lease is not None and lease.is_verify == is_verify else None

    def of(self, peer: Peer, number: int) -> Lease | None:
        """The open lease of this number, if it belongs to this peer."""
        lease = self._open.get(number)
        return lease if lease is not None and lease.peer == peer else None

    def exclude(self, covered: Covered) -> None:
        """A live batch was dispatched: its sectors are excluded from all open leases."""
        for lease in self:
            lease.exclusions.exclude(covered)

    def committed(self, lease: Lease) -> None:
        """Its batches are numbered, the highest so far: it waits until they are durable."""
        del self._open[lease.number]
        self._committed.append(lease)

    def take_durable(self, durable: int) -> Iterator[Lease]:
        """Removes and yields committed leases whose batches are durable, up to this number."""
        while self._committed and self._committed[0].barrier <= durable:
            yield self._committed.popleft()

    def remove(self, lease: Lease) -> None:
        """Removes an open lease."""
        del self._open[lease.number]

    def lose(self) -> None:
        """Closes all leases: their results are invalid."""
        for lease in itertools.chain(self._open.values(), self._committed):
            lease.fire(Lost())
        self._open.clear()
        self._committed.clear()
