# SPDX-License-Identifier: GPL-2.0-only
"""Schedules scans: leases of chunks, and the position of repairs in the order.

Scanners acquire **leases**, each of some dirty chunks. Until the scanner commits, every sector of
them that a live batch covers is recorded:

======= ============================= ============================================
        scanner                       reader
======= ============================= ============================================
BEGIN   ACQUIRE, receives GRANT       opens a lease; records what is dispatched
        reads and compares the source
        with the target's digests
COMMIT  COMMIT, receives COMMITTED    closes the lease, numbers its batches, and
                                      returns the sectors of live batches
        sends the differences, without
        these sectors
======= ============================= ============================================

Why a stale block never overwrites a newer write: what was dispatched before BEGIN is on the
source's disk (published means completed), so the scanner reads that or newer data; what is
dispatched in between is excluded from the batch; what is dispatched after COMMIT follows it in the
order.

This requires that writes which the ring missed are newer than any slot that is not applied on the
target when it computes its digests. Otherwise a slot from before the gap would have its sector
excluded, and the missed write, which the scanner has read, would be lost; or the target's old block
would equal the missed write, and the slot would overwrite it later. So no lease is opened before
everything up to the head that the ring had when regions were last marked or merged is durable on
the target (the **hold**).

Regions are cleared when the target has acknowledged everything dispatched before the COMMIT of
their last chunk, including the repairs: a chunk may be equal because of an earlier repair that is
not durable yet.

All leases are revoked, and bits stay set, when batches may have been lost, when regions may have
been marked anew, and when a scanner is lost (`forget`). Chunks are then leased again, but only
after everything dispatched before is durable: a repair in flight must not be applied to a chunk
that is being compared. Leases of commands: `common.source.verification`.
"""

from __future__ import annotations

from bdr.common.capture.api import CaptureInfo
from bdr.common.machine import Story
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.ring.slots import Headers
from bdr.common.source.events import Action, ClearRegions, MarkRegions, Peer, Reply
from bdr.common.source.exclusions import Covered
from bdr.common.source.grants import Grants
from bdr.common.source.lease import (
    Completed,
    EndRequested,
    Expired,
    Granted,
    Lease,
    LeaseState,
    Numbered,
)
from bdr.common.source.lease_requests import LeaseRequest, LeaseRequests
from bdr.common.source.leases import Leases
from bdr.common.source.order import Order
from bdr.common.source.regions import ReadBits, Regions
from bdr.common.source.settings import SchedulerSettings
from bdr.common.source.verification import Verification
from bdr.common.wire.codec import Buffer
from bdr.common.wire.scan import (
    Commit,
    Committed,
    Grant,
    Renew,
    Resync,
    Revoked,
    Verified,
    VerifyBegin,
    VerifyEnd,
)


class ResyncScheduler:
    """See the module's docstring. One instance per reader process.

    Args:
        order: of the batches.
        read_bits: reads the capture's bitmaps.
    """

    def __init__(
        self,
        *,
        info: CaptureInfo,
        order: Order,
        read_bits: ReadBits,
        settings: SchedulerSettings,
        story: Story,
    ) -> None:
        self.compared_bytes = 0
        self.repaired_bytes = 0
        self.regions = Regions(info=info, read_bits=read_bits, unreadable_s=settings.unreadable_s)
        self._info = info
        self._order = order
        self._settings = settings
        self._must_forget = True
        self._is_scanner_lost = False
        self._grants = Grants(order=order, regions=self.regions, settings=settings)
        self._leases = Leases(story)
        self._verification = Verification(
            info=info,
            order=order,
            leases=self._leases,
            regions=self.regions,
            chunks_max=settings.lease_chunks,
        )
        self._requests = LeaseRequests()
        self._now_at = 0.0

    # State.

    @property
    def has_open_leases(self) -> bool:
        """Whether `dispatched` must be called."""
        return self._leases.open_count > 0

    @property
    def scanners(self) -> int:
        """Number of connected scanners."""
        return self._requests.scanners(self._now_at)

    # Events.

    def forget(self) -> None:
        """Batches may have been lost, or regions marked anew; takes effect at the next step."""
        self._must_forget = True

    def scanner_lost(self) -> None:
        """An unidentified scanner disconnected."""
        self._must_forget = self._is_scanner_lost = True

    def dispatched(self, headers: Headers, payload: Buffer) -> None:
        """A live batch was dispatched: its sectors are excluded from open leases."""
        self._leases.exclude(Covered.of(headers, payload))

    def acquire(self, peer: Peer, request: LeaseRequest) -> None:
        """Takes a request for a lease; a repetition is ignored."""
        if not self._leases.renew_waiting(peer, request, now_at=self._now_at):
            self._requests.put(peer, request, now_at=self._now_at)

    def renew(self, peer: Peer, renew: Renew) -> None:
        """A scanner or a command is still at work on its lease."""
        self._leases.renew(peer, renew.lease, now_at=self._now_at)

    def commit(self, peer: Peer, commit: Commit) -> list[Action]:
        """A scanner finished its lease."""
        lease = self._leases.find(peer, commit.lease, is_verify=False)
        if lease is None:
            return [Reply(peer, Revoked(commit.lease))]
        if lease.state is not LeaseState.GRANTED:
            return []  # repeated
        if commit.batches > self._order.resync_batches_max:
            # It would wait indefinitely: the scanner is of another version.
            return self._expire(lease)
        lease.fire(commit)
        return []

    def end(self, peer: Peer, end: VerifyEnd) -> list[Action]:
        """A command finished its lease; the capture's status is current."""
        lease = self._leases.find(peer, end.lease, is_verify=True)
        if lease is None:
            return [Reply(peer, Revoked(end.lease))]
        if lease.state is LeaseState.GRANTED:
            lease.fire(EndRequested(self._order.head))
        return []

    def mark(self, resync: Resync) -> list[Action]:
        """Marks ranges to be repaired; an empty list means everything."""
        self.forget()  # a region may be marked during its own repair
        size = self._info.device_sectors
        chunks = resync.ranges or [(0, size)]
        marked = [self.regions.of(each) for each in chunks if each[1] and sum(each) <= size]
        return [MarkRegions(regions.start, len(regions)) for regions in marked]

    def step(self, now_at: float) -> list[Action]:
        """Performs everything that is possible now.

        A `ClearRegions` must be performed before the next step, which would otherwise read bits
        that are about to be cleared.
        """
        self._now_at = now_at
        actions: list[Action] = []
        if self._must_forget:
            actions += self._forget_all()
        self._grants.hold.update()
        cleared = self._clear_durable()
        if cleared:
            return actions + cleared
        for lease in self._leases:
            actions += self._advance(lease)
        for peer, request in self._requests:
            granted = self._serve(peer, request)
            if granted is not None:
                self._requests.remove(peer, request)
                actions += granted
        return actions

    # Losses.

    def _forget_all(self) -> list[Action]:
        """Revokes all leases: batches may be lost, or regions marked anew."""
        actions: list[Action] = []
        for lease in self._leases:
            if lease.state is LeaseState.WAITING:
                self._requests.put_back(lease.peer, VerifyBegin(lease.request, lease.chunks))
            else:
                actions.append(Reply(lease.peer, Revoked(lease.number)))
        self._leases.lose()
        self.regions.forget()
        self._grants.hold.begin()
        if self._is_scanner_lost:
            self._requests.forget_scanners()
        self._must_forget = self._is_scanner_lost = False
        return actions

    def _expire(self, lease: Lease) -> list[Action]:
        lease.fire(Expired())
        self._leases.remove(lease)
        if not lease.is_verify:
            self.regions.give_back(lease.chunks)
        return [Reply(lease.peer, Revoked(lease.number))]

    # Leases.

    def _grant(self, lease: Lease) -> Reply:
        stream, epoch = self._info.stream, self._order.epoch
        return Reply(lease.peer, Grant(lease.request, lease.number, stream, epoch, lease.chunks))

    def _clear_durable(self) -> list[Action]:
        """Clears the regions of committed leases whose batches are durable."""
        actions: list[Action] = []
        for lease in self._leases.take_durable(self._order.durable):
            lease.fire(Completed())
            for chunk in lease.done:
                regions = self.regions.repaired(chunk)
                if regions:
                    actions.append(ClearRegions(regions.start, len(regions)))
        return actions

    def _advance(self, lease: Lease) -> list[Action]:
        """Advances one lease, if its barrier was reached."""
        order = self._order
        is_old = self._now_at - lease.renewed_at > self._settings.lease_s
        match lease.state:
            case LeaseState.WAITING if order.durable >= lease.barrier:
                lease.fire(Granted())
                return [self._grant(lease)]
            case LeaseState.COMMITTING if (it := lease.commit) and it.batches <= order.resync_room:
                return [self._number(lease, it)]
            case LeaseState.ENDING if order.cursor >= lease.barrier:
                return [self._conclude(lease)]
            case LeaseState.WAITING | LeaseState.GRANTED | LeaseState.ENDING if is_old:
                return self._expire(lease)
        return []

    def _number(self, lease: Lease, commit: Commit) -> Reply:
        order = self._order
        number, first = order.dispatched + 1, order.cursor
        if commit.batches:
            header = order.number_resync(commit.batches)
            number, first = header.number, header.first
        done = self.regions.judge(
            lease.chunks, again=commit.again, unreadable=commit.unreadable, now_at=self._now_at
        )
        self.compared_bytes += len(lease.exclusions.flags) * SECTOR_BYTES
        self.repaired_bytes += commit.blocks * PAYLOAD_BYTES
        committed = Committed(lease.number, order.epoch, number, first, lease.exclusions.bits())
        lease.fire(Numbered(order.dispatched, done))
        self._leases.committed(lease)
        return Reply(lease.peer, committed)

    def _conclude(self, lease: Lease) -> Reply:
        self._verification.exclude_marked(lease)
        lease.fire(Completed())
        self._leases.remove(lease)
        return Reply(lease.peer, Verified(lease.number, lease.exclusions.bits()))

    # Requests for a lease.

    def _serve(self, peer: Peer, request: LeaseRequest) -> list[Action] | None:
        """The answer to a request, or None while it must wait."""
        if isinstance(request, VerifyBegin):
            return self._begin_verify(peer, request)
        chunks = self._grants.next_chunks(now_at=self._now_at, open_leases=self._leases.open_count)
        if not chunks:
            return None
        return [self._grant(self._leases.open(peer, request.request, chunks, now_at=self._now_at))]

    def _begin_verify(self, peer: Peer, request: VerifyBegin) -> list[Action] | None:
        if not self._order.is_streaming:
            return None
        if not self._verification.is_possible(request):
            return []
        return self._advance(self._verification.open(peer, request, now_at=self._now_at))
