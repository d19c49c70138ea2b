# SPDX-License-Identifier: GPL-2.0-only
"""Who scans what, and where in the order it stands: the reader's side. No I/O here.

Scanners ask for work and get **tickets**, each for some dirty pieces. From then on
until the scanner commits, every sector of them that a live batch covers is noted:

======= ============================= ============================================
        scanner                       reader
======= ============================= ============================================
BEGIN   ASK, gets WORK                a ticket is open; notes what is dispatched
        reads and compares the source
        with the target's digests
COMMIT  COMMIT, gets COMMITTED        closes the ticket, numbers its batches, and
                                      tells which sectors live batches have
        sends what differs, without
        those sectors
======= ============================= ============================================

Why a stale block never overwrites a newer write: what was dispatched before BEGIN
is on the source's disk (published means completed), so the read has it or something
newer; what is dispatched in between is left out of the batch; what is dispatched
after COMMIT stands behind it in the order.

One thing must hold for that: what the ring has missed must be newer than any slot that
the target does not have yet when it makes its digests. Else a slot of before the gap would
have its sector left out, and the missed write, which the read has, would be lost; or the
target's old block would be equal to what was missed, and the slot would come after that.
So no ticket is opened before the target has everything up to the head that the ring had
when regions were last marked or merged. The same goes for failed writes, whose NOPs cover
their sectors too.

Regions are cleared when the target has acknowledged everything dispatched before
the COMMIT of their last piece, the repairs among it: an equal piece may owe that to
a repair of before that is not durable yet.

Everything is forgotten, and bits stay set, when batches may have been lost or when
regions may have been marked anew (`Sequencer.generation`), and when a scanner is
lost. Pieces are then handed out again, but only after all that was dispatched before
is durable: a repair under way must not land on what is compared next.

A scan that only examines (`bdr verify`) is answered when the target has everything
dispatched before; it ends when everything up to the ring's head as of its end has
been dispatched, so every write that its reading may have seen is either on both
sides or left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bdr.common.capture.api import Bitmap, CaptureInfo
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.ring.slots import Headers
from bdr.common.scan.plan import PIECE_SECTORS, Piece, joined, pack_bits, plan_pieces, unpack_bits
from bdr.common.source import sequencer
from bdr.common.source.exclusions import Covered, Exclusions
from bdr.common.source.rate_limit import Pace, PaceSettings
from bdr.common.source.sequencer import Phase, Sequencer
from bdr.common.wire.control import (
    Blob,
    Buffer,
    decode_fields,
    decode_ranges,
    encode_fields,
    encode_ranges,
)

Peer = bytes

# Scanner to reader.


@dataclass(frozen=True, slots=True)
class Ask:
    """Give me work; `ask` comes back in the answer. Repeated until answered."""

    ask: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A ticket's pieces were compared; `batches` resync batches are to be numbered.

    `again` are ranges that were not judged, to be handed out again; `unreadable` are
    ranges that the source cannot give.
    """

    ticket: int
    batches: int
    blocks: int
    again: Blob
    unreadable: Blob


# Client to reader.


@dataclass(frozen=True, slots=True)
class Examine:
    """A ticket for exactly these ranges, to be compared only."""

    ask: int
    ranges: Blob


@dataclass(frozen=True, slots=True)
class Conclude:
    """They were compared: which sectors may not be judged?"""

    ticket: int


@dataclass(frozen=True, slots=True)
class MarkDirty:
    """Have these ranges repaired; none means everything."""

    ask: int
    ranges: Blob


@dataclass(frozen=True, slots=True)
class Report:
    """How far is the scan?"""

    ask: int


# Reader to scanner or client.


@dataclass(frozen=True, slots=True)
class Work:
    """A ticket. `ranges` are its pieces, to be compared within `epoch`."""

    ask: int
    ticket: int
    stream: bytes
    """The capture's; a scanner that knows another one reads below another capture."""
    epoch: int
    ranges: Blob


@dataclass(frozen=True, slots=True)
class Committed:
    """The batches are `number`, `number` + 1 ..., in front of slot `first`.

    `excluded` is one bit for each sector of the ticket's pieces, one behind the other;
    empty for none.
    """

    ticket: int
    epoch: int
    number: int
    first: int
    excluded: Blob


@dataclass(frozen=True, slots=True)
class Concluded:
    """`busy` is one bit for each sector of the ticket's pieces: not to be judged."""

    ticket: int
    busy: Blob


@dataclass(frozen=True, slots=True)
class Dropped:
    """Forget this ticket; its pieces will be handed out again."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Reported:
    """The answer to `Report` and `MarkDirty`."""

    ask: int
    phase: str
    condition: str
    mode: str
    epoch: int
    region_bytes: int
    regions: int
    dirty_regions: int
    unreadable_regions: int
    scanners: int
    compared_bytes: int
    repaired_bytes: int
    unreadable: Blob


Request = Ask | Commit | Examine | Conclude | MarkDirty | Report
Answer = Work | Committed | Concluded | Dropped | Reported
_REQUESTS: dict[str, type[Request]] = {
    kind.__name__.lower(): kind for kind in (Ask, Commit, Examine, Conclude, MarkDirty, Report)
}
_ANSWERS: dict[str, type[Answer]] = {
    kind.__name__.lower(): kind for kind in (Work, Committed, Concluded, Dropped, Reported)
}


def encode(message: Request | Answer) -> bytes:
    """One message."""
    return encode_fields(message)


def decode_request(data: Buffer) -> Request:
    """Raises WireError for what is none."""
    return decode_fields(data, _REQUESTS)


def decode_answer(data: Buffer) -> Answer:
    """Raises WireError for what is none."""
    return decode_fields(data, _ANSWERS)


# What the office asks its surroundings to do.


@dataclass(frozen=True, slots=True)
class Reply:
    """To this peer; may be lost."""

    peer: Peer
    answer: Answer


@dataclass(frozen=True, slots=True)
class Clear:
    """These regions of `resync` are repaired. All of a list come before the next look at the
    capture, which may merge regions that were marked anew."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class MarkRegions:
    """Set these regions of `resync`; a look at the capture must follow."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Give the sequencer this event, and do what it says, before anything else."""

    event: sequencer.Event


Action = Reply | Clear | MarkRegions | Tell
ReadBits = Callable[[Bitmap, int, int], bytes]
"""Bits of so many regions from one on, as `Capture.read_bitmap` gives them."""


@dataclass(frozen=True, slots=True)
class OfficeSettings:
    """Limits and times."""

    pieces: int = 64
    """Most of a ticket."""
    ticket_sectors: int = 16 * PIECE_SECTORS
    open_tickets: int = 32
    window_regions: int = 8 * 65536
    """Regions that are looked at in one go."""
    ticket_s: float = 30.0
    """A ticket that is open for so long belongs to nobody any more."""
    unreadable_s: float = 60.0
    """An unreadable region is tried again after so long."""
    pace: PaceSettings = field(default_factory=PaceSettings)


@dataclass(slots=True, eq=False)
class _Ticket:
    number: int
    peer: Peer
    pieces: list[Piece]
    exclusions: Exclusions
    opened_s: float
    is_examining: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """Pieces that are settled when every batch up to `barrier` is durable."""

    barrier: int
    pieces: list[Piece]


@dataclass(slots=True)
class _Waiting:
    """A request that cannot be answered yet."""

    peer: Peer
    request: Ask | Commit | Examine | Conclude
    ticket: _Ticket | None = None
    barrier: int = 0
    """Batch that must be durable (EXAMINE), or slot that must be dispatched (CONCLUDE)."""


class TicketOffice:
    """See the module's text. One instance lives as long as its reader process.

    The reader calls `request` for what scanners say, `dispatched` for every live batch,
    and `step` at the end of each round.

    Args:
        machine: the reader's; only looked at. What it must be told is an action.
        read_bits: gives the bitmaps.
    """

    def __init__(
        self,
        *,
        info: CaptureInfo,
        machine: Sequencer,
        read_bits: ReadBits,
        settings: OfficeSettings | None = None,
    ) -> None:
        self.settings = settings or OfficeSettings()
        self.compared_bytes = 0
        self.repaired_bytes = 0
        self._info = info
        self._machine = machine
        self._read_bits = read_bits
        self._pace = Pace(self.settings.pace)
        self._generation = -1
        self._is_scanner_lost = False
        self._must_forget = False
        self._hold_slot = 0
        self._hold: int | None = None
        """Tickets wait for this batch to be durable; None while the cursor is not yet at
        `_hold_slot`."""
        self._next_ticket = 1
        self._next_region = 0
        self._planned: deque[Piece] = deque()
        self._open: dict[int, _Ticket] = {}
        self._waiting: dict[tuple[Peer, str, int], _Waiting] = {}
        self._done: deque[_Done] = deque()
        self._is_all_out = False
        """Whether a look at the whole bitmap has found nothing to hand out; until something is
        taken back. What is marked anew comes with a loss."""
        self._out = np.zeros(info.regions, np.bool_)
        """Regions that are planned, in a ticket, or not durable yet."""
        self._partly: dict[int, dict[int, int]] = {}
        """Of regions that are longer than a piece: the pieces that are settled."""
        self._unreadable: dict[int, tuple[float, list[Piece]]] = {}
        """Region, to when it is tried again, and what of it could not be read."""
        self._seen: dict[Peer, float] = {}
        self._now_s = 0.0

    # What the reader asks.

    @property
    def is_noting(self) -> bool:
        """Whether `dispatched` must be called."""
        return bool(self._open)

    @property
    def scanners(self) -> int:
        """Scanners that were heard lately."""
        return sum(self._now_s - seen_s < 5 for seen_s in self._seen.values())

    @property
    def unreadable(self) -> list[Piece]:
        """Ranges that the source could not give."""
        return sorted({piece for _, pieces in self._unreadable.values() for piece in pieces})

    # What happens.

    def request(self, peer: Peer, request: Request) -> list[Action]:
        """Takes a request. The reader has looked at the capture since it came."""
        machine = self._machine
        self._check(request)
        match request:
            case Ask() | Examine():
                if isinstance(request, Ask):
                    self._seen[peer] = self._now_s
                key = (peer, type(request).__name__, request.ask)
                self._waiting.setdefault(key, _Waiting(peer, request))
            case Commit() | Conclude():
                ticket = self._open.get(request.ticket)
                if (
                    ticket is None
                    or ticket.peer != peer
                    or ticket.is_examining is not isinstance(request, Conclude)
                ):
                    return [Reply(peer, Dropped(request.ticket))]
                key = (peer, type(request).__name__, request.ticket)
                head = max(machine.status.head, machine.cursor)
                self._waiting.setdefault(key, _Waiting(peer, request, ticket, head))
            case MarkDirty(ask, ranges):
                return [*self._mark(decode_ranges(ranges)), Reply(peer, self._report(ask))]
            case Report(ask):
                return [Reply(peer, self._report(ask))]
        return []

    def _check(self, request: Request) -> None:
        """Raises WireError for ranges that are none: later is too late."""
        match request:
            case Commit(again=again, unreadable=unreadable):
                decode_ranges(again)
                decode_ranges(unreadable)
            case Examine(ranges=ranges) | MarkDirty(ranges=ranges):
                decode_ranges(ranges)
            case _:
                pass

    def scanner_lost(self) -> None:
        """A connection ended, nobody knows whose: everyone begins anew."""
        self._is_scanner_lost = True

    def dispatched(self, headers: Headers, payload: Buffer) -> None:
        """A live batch goes out: its sectors are no longer any open ticket's."""
        covered = Covered.of(headers, payload)
        for ticket in self._open.values():
            ticket.exclusions.note(covered)

    def step(self, now_s: float) -> list[Action]:
        """Answers what can be answered, and says what is repaired.

        After a `Tell` or a `Clear` it must be called again: it goes on from what they
        have changed.
        """
        self._now_s = now_s
        actions: list[Action] = []
        self._notice_loss(actions)
        if self._hold is None and self._machine.cursor >= self._hold_slot:
            self._hold = self._machine.dispatched
        while self._done and self._done[0].barrier <= self._machine.durable:
            for piece in self._done.popleft().pieces:
                self._settle(piece, actions)
        if any(isinstance(action, Clear) for action in actions):
            return actions  # else the bits would be read that are about to be cleared
        # One that waits for its place is somebody's: over a slow link that may take long.
        committed = {id(w.ticket) for w in self._waiting.values() if isinstance(w.request, Commit)}
        for ticket in list(self._open.values()):
            if now_s - ticket.opened_s > self.settings.ticket_s and id(ticket) not in committed:
                self._close(ticket)
                self._take_back(ticket.pieces)
                actions.append(Reply(ticket.peer, Dropped(ticket.number)))
        for key, waiting in list(self._waiting.items()):
            if self._serve(waiting, actions):
                del self._waiting[key]
            if actions and isinstance(actions[-1], Tell):
                break  # the sequencer first
        return actions

    # Losses.

    def _notice_loss(self, actions: list[Action]) -> None:
        """Forgets all that is under way if it may be lost, or regions marked anew."""
        machine = self._machine
        if machine.generation == self._generation and not (
            self._is_scanner_lost or self._must_forget
        ):
            return
        for ticket in self._open.values():
            actions.append(Reply(ticket.peer, Dropped(ticket.number)))
        self._generation = machine.generation
        self._must_forget = False
        self._hold = None
        self._hold_slot = max(machine.status.head, machine.cursor)
        self._open.clear()
        self._waiting = {
            key: waiting
            for key, waiting in self._waiting.items()
            if isinstance(waiting.request, Ask | Examine)
            and waiting.ticket is None
            and not self._is_scanner_lost  # who asked may be gone; who is not asks again
        }
        self._done.clear()
        self._planned.clear()
        self._partly.clear()
        self._unreadable.clear()
        self._out[:] = False
        self._is_all_out = False
        self._next_region = 0
        if self._is_scanner_lost:
            self._is_scanner_lost = False
            self._seen.clear()
            actions.append(Tell(sequencer.ScannerLost()))

    # Regions.

    def _regions_of(self, piece: Piece) -> range:
        size = self._info.region_sectors
        return range(piece[0] // size, (piece[0] + piece[1] - 1) // size + 1)

    def _take_back(self, pieces: Sequence[Piece]) -> None:
        """They are nobody's: a later look at the bitmap finds them again."""
        self._is_all_out = False
        for piece in pieces:
            for region in self._regions_of(piece):
                self._out[region] = False
                self._partly.pop(region, None)

    def _settle(self, piece: Piece, actions: list[Action]) -> None:
        regions = self._regions_of(piece)
        size = self._info.region_sectors
        if size > PIECE_SECTORS:
            region = regions[0]
            done = self._partly.setdefault(region, {})
            done[piece[0]] = piece[1]
            if sum(done.values()) < min(size, self._info.device_sectors - region * size):
                return
            del self._partly[region]
        self._out[regions.start : regions.stop] = False
        actions.append(Clear(regions.start, len(regions)))

    def _mark(self, ranges: list[Piece]) -> list[Action]:
        # A region may be marked during its own repair.
        self._must_forget = True
        if not ranges:
            return [MarkRegions(0, self._info.regions)]
        found: list[Action] = []
        for sector, sectors in ranges:
            if sectors and sector + sectors <= self._info.device_sectors:
                regions = self._regions_of((sector, sectors))
                found.append(MarkRegions(regions.start, len(regions)))
        return found

    def _plan(self) -> None:
        """Looks for the next part of the bitmap that has work."""
        info, window = self._info, self.settings.window_regions
        if self._is_all_out:
            return
        for _ in range(-(-info.regions // window) + 1):
            if self._planned:
                return
            first = self._next_region
            count = min(window, info.regions - first)
            dirty = unpack_bits(self._read_bits(Bitmap.RESYNC, first, count), count)
            dirty &= ~self._out[first : first + count]
            self._out[first : first + count] |= dirty
            self._planned.extend(
                plan_pieces(
                    dirty,
                    first_region=first,
                    region_sectors=info.region_sectors,
                    device_sectors=info.device_sectors,
                )
            )
            self._next_region = first + count if first + count < info.regions else 0
        self._is_all_out = not self._planned

    # Requests.

    def _serve(self, waiting: _Waiting, actions: list[Action]) -> bool:
        """Whether the request is done with."""
        match waiting.request:
            case Ask():
                return self._hand_out(waiting.peer, waiting.request, actions)
            case Commit():
                return self._commit(waiting, waiting.request, actions)
            case Examine():
                return self._examine(waiting, waiting.request, actions)
            case Conclude():
                return self._conclude(waiting, actions)

    def _hand_out(self, peer: Peer, request: Ask, actions: list[Action]) -> bool:
        machine = self._machine
        self._retry_unreadable()
        if (
            machine.phase is not Phase.STREAMING
            or not machine.status.resync_regions
            or self._hold is None
            or machine.durable < self._hold
            or len(self._open) >= self.settings.open_tickets
        ):
            return False
        if not machine.may_scan:
            if not machine.is_scan_wanted:
                actions.append(Tell(sequencer.ScanWanted()))
            return False
        behind = max(0, machine.status.head - machine.cursor)
        if not self._pace.may_take(now_s=self._now_s, behind_slots=behind):
            return False
        if not self._planned:
            self._plan()
        pieces: list[Piece] = []
        sectors = 0
        # As much as its batches may carry, should all of it differ.
        most = min(self.settings.ticket_sectors, machine.resync_limit * PIECE_SECTORS)
        while (
            self._planned
            and len(pieces) < self.settings.pieces
            and sectors + self._planned[0][1] <= most
        ):
            pieces.append(self._planned.popleft())
            sectors += pieces[-1][1]
        if not pieces:
            return False
        self._pace.take(sectors * SECTOR_BYTES)
        ticket = self._open_ticket(peer, pieces)
        actions.append(Reply(peer, self._work(request.ask, ticket, encode_ranges(pieces))))
        return True

    def _work(self, ask: int, ticket: _Ticket, ranges: bytes) -> Work:
        return Work(ask, ticket.number, self._info.stream, self._machine.epoch, ranges)

    def _open_ticket(
        self, peer: Peer, pieces: list[Piece], *, is_examining: bool = False
    ) -> _Ticket:
        ticket = _Ticket(
            number=self._next_ticket,
            peer=peer,
            pieces=pieces,
            exclusions=Exclusions(pieces),
            opened_s=self._now_s,
            is_examining=is_examining,
        )
        self._next_ticket += 1
        self._open[ticket.number] = ticket
        return ticket

    def _close(self, ticket: _Ticket) -> None:
        self._open.pop(ticket.number, None)

    def _commit(self, waiting: _Waiting, request: Commit, actions: list[Action]) -> bool:
        ticket, machine = waiting.ticket, self._machine
        if ticket is None or ticket.number not in self._open:
            return True
        if request.batches > machine.settings.resync_batches:
            # It would wait for ever: this scanner is of another version.
            self._close(ticket)
            self._take_back(ticket.pieces)
            actions.append(Reply(waiting.peer, Dropped(ticket.number)))
            return True
        if request.batches > max(machine.resync_room, 0):
            return False
        self._close(ticket)
        self._account(ticket, request, machine.dispatched + request.batches)
        flags = ticket.exclusions.flags
        actions.append(
            Reply(
                waiting.peer,
                Committed(
                    ticket.number,
                    machine.epoch,
                    machine.dispatched + 1,
                    machine.cursor,
                    pack_bits(flags) if flags.any() else b"",
                ),
            )
        )
        if request.batches:
            actions.append(Tell(sequencer.ResyncReady(request.batches)))
        return True

    def _account(self, ticket: _Ticket, request: Commit, barrier: int) -> None:
        """Which of a ticket's pieces are settled when `barrier` is durable."""
        bad, again = decode_ranges(request.unreadable), decode_ranges(request.again)
        size = self._info.region_sectors
        unreadable = {region: piece for piece in bad for region in self._regions_of(piece)}
        undone = {region for piece in again for region in self._regions_of(piece)}
        done: list[Piece] = []
        for sector, sectors in ticket.pieces:
            for region in self._regions_of((sector, sectors)):
                begin, end = max(sector, region * size), min(sector + sectors, (region + 1) * size)
                if region in unreadable:
                    _, known = self._unreadable.get(region, (0.0, []))
                    at_s = self._now_s + self.settings.unreadable_s
                    mine = [piece for piece in bad if region in self._regions_of(piece)]
                    self._unreadable[region] = (at_s, known + mine)
                elif region in undone:
                    self._take_back([(begin, end - begin)])
                else:
                    done.append((begin, end - begin))
        self._done.append(_Done(barrier, done if size > PIECE_SECTORS else joined(done)))
        self.compared_bytes += len(ticket.exclusions.flags) * SECTOR_BYTES
        self.repaired_bytes += request.blocks * PAYLOAD_BYTES

    def _retry_unreadable(self) -> None:
        for region, (at_s, _) in list(self._unreadable.items()):
            if self._now_s >= at_s:
                del self._unreadable[region]
                self._is_all_out = False
                self._out[region] = False
                self._partly.pop(region, None)

    # Examining.

    def _examine(self, waiting: _Waiting, request: Examine, actions: list[Action]) -> bool:
        machine = self._machine
        if machine.phase is not Phase.STREAMING:
            return False
        if waiting.ticket is None:
            pieces = decode_ranges(request.ranges)
            if not self._are_fit(pieces):
                return True
            waiting.ticket = self._open_ticket(waiting.peer, pieces, is_examining=True)
            waiting.barrier = machine.dispatched
            self._leave_out_dirty(waiting.ticket)
        if machine.durable < waiting.barrier:
            return False
        ticket = waiting.ticket
        if ticket.number in self._open:
            work = self._work(request.ask, ticket, request.ranges)
            actions.append(Reply(waiting.peer, work))
        return True

    def _conclude(self, waiting: _Waiting, actions: list[Action]) -> bool:
        ticket = waiting.ticket
        if ticket is None or ticket.number not in self._open:
            return True
        if self._machine.cursor < waiting.barrier:
            return False
        self._leave_out_dirty(ticket)
        self._close(ticket)
        flags = ticket.exclusions.flags
        busy = pack_bits(flags) if flags.any() else b""
        actions.append(Reply(waiting.peer, Concluded(ticket.number, busy)))
        return True

    def _are_fit(self, pieces: list[Piece]) -> bool:
        """Whether these are pieces: ascending, within the device, not too many."""
        end = 0
        for sector, sectors in pieces:
            if sector < end or not 0 < sectors <= PIECE_SECTORS:
                return False
            end = sector + sectors
        return 0 < len(pieces) <= self.settings.pieces and end <= self._info.device_sectors

    def _leave_out_dirty(self, ticket: _Ticket) -> None:
        """What is marked is known to differ, or will be: not to be judged."""
        size = self._info.region_sectors
        status = self._machine.status
        if not (status.active_regions or status.resync_regions):
            return
        for piece in ticket.pieces:
            regions = self._regions_of(piece)
            first = regions.start // 64 * 64
            count = min(-(-regions.stop // 64) * 64, self._info.regions) - first
            for bitmap in Bitmap:
                dirty = unpack_bits(self._read_bits(bitmap, first, count), count)
                for region in np.flatnonzero(dirty).tolist():
                    ticket.exclusions.note_range((first + region) * size, size)

    def _report(self, ask: int) -> Reported:
        machine = self._machine
        status = machine.status
        return Reported(
            ask=ask,
            phase=machine.phase.name,
            condition=machine.condition.name,
            mode=status.mode.name,
            epoch=machine.epoch,
            region_bytes=self._info.region_sectors * SECTOR_BYTES,
            regions=self._info.regions,
            unreadable_regions=len(self._unreadable),
            dirty_regions=status.active_regions + status.resync_regions,
            scanners=self.scanners,
            compared_bytes=self.compared_bytes,
            repaired_bytes=self.repaired_bytes,
            unreadable=encode_ranges(self.unreadable[:1024]),
        )
