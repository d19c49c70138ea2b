# SPDX-License-Identifier: GPL-2.0-only
"""The leases that are not over yet.

Those that are open are few. Committed ones may be many, where what they wait for is slow to
become durable: they cost nothing until then.
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
    """Open ones by number, in the order of their opening; committed ones in that of the batches."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._next_number = 1
        self._open: dict[int, Lease] = {}
        self._committed: deque[Lease] = deque()

    def __iter__(self) -> Iterator[Lease]:
        """Those that are open, which note what live batches cover."""
        return iter(list(self._open.values()))

    @property
    def open_count(self) -> int:
        """How many are open."""
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
        """Opens a lease; with a barrier it is a command's, see `Lease`."""
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

    def find(self, peer: Peer, number: int, *, is_verify: bool) -> Lease | None:
        """The open lease of this number, if it is this peer's and of this kind."""
        lease = self._open.get(number)
        if lease is None or (lease.peer, lease.is_verify) != (peer, is_verify):
            return None
        return lease

    def is_waiting(self, peer: Peer, request: LeaseRequest) -> bool:
        """Whether this request, of a command, has a lease that is not granted yet."""
        return isinstance(request, VerifyBegin) and any(
            lease.state is LeaseState.WAITING
            and (lease.peer, lease.request) == (peer, request.request)
            for lease in self
        )

    def exclude(self, covered: Covered) -> None:
        """A live batch goes out: its sectors are no longer any open lease's."""
        for lease in self:
            lease.exclusions.exclude(covered)

    def committed(self, lease: Lease) -> None:
        """Its batches have numbers, the highest so far: it waits until they are durable."""
        del self._open[lease.number]
        self._committed.append(lease)

    def take_durable(self, durable: int) -> Iterator[Lease]:
        """Committed leases whose batches, up to this number, are durable: they are over."""
        while self._committed and self._committed[0].barrier <= durable:
            yield self._committed.popleft()

    def remove(self, lease: Lease) -> None:
        """An open one is over."""
        del self._open[lease.number]

    def lose(self) -> None:
        """All are over: what they have found is worth nothing."""
        for lease in itertools.chain(self._open.values(), self._committed):
            lease.fire(Lost())
        self._open.clear()
        self._committed.clear()
