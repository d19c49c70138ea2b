# SPDX-License-Identifier: GPL-2.0-only
"""A scanner's half of the protocol: a state machine without I/O, threads or clock.

It asks the reader for work, has both sides digested, and says what is to be sent. A
few jobs run at a time, each with a buffer of its own:

=========== ============================================ =========================
stage       waits for                                    then
=========== ============================================ =========================
ASKING      WORK of the reader; asks again               COMPARING
COMPARING   digests of the pieces, of both sides         BLOCKS if any differs,
                                                         else COMMITTING
BLOCKS      digests of the blocks of those, of both      COMMITTING
COMMITTING  COMMITTED of the reader, then all is sent    OVER
OVER        a thread that may still use the buffer       forgotten
=========== ============================================ =========================

From COMPARING and BLOCKS a job is given up when the target refuses, answers nonsense,
or takes too long: its pieces go back to the reader. From anywhere it is forgotten when
the reader says DROPPED or a connection is lost: numbered batches may then be lost too,
and the reader learns of that by the lost connection itself.

`handle` is the only way in. Time comes as `Tick`, results of I/O come as events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from bdr.common.errors import BdrError, InternalError, StaleCaptureError
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.scan.digests import BLOCK_SECTORS, differing, digests_wanted
from bdr.common.scan.plan import Flags, Piece, joined, unpack_bits
from bdr.common.scan.repair import BATCH_BLOCKS_MAX, Repair, build_batch, group_blocks
from bdr.common.source import scheduler
from bdr.common.wire import control as wire

# Events: what happened.


@dataclass(frozen=True, slots=True)
class Tick:
    """Time is now `now_s`; comes before other events."""

    now_s: float


@dataclass(frozen=True, slots=True)
class LinksUp:
    """Reader and target are connected, all of it."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A connection was lost; all others were dropped with it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The reader said something."""

    answer: scheduler.Answer


@dataclass(frozen=True, slots=True)
class DigestsArrived:
    """The target said something."""

    message: wire.Digests


@dataclass(frozen=True, slots=True)
class PiecesRead:
    """A `Read` is done."""

    job: int
    digests: bytes
    """One a piece, whatever stands in the buffer where it could not be read."""
    bad_blocks: Mapping[int, list[int]]
    """Index of a piece to those of its blocks that cannot be read."""


@dataclass(frozen=True, slots=True)
class BlocksHashed:
    """A `HashBlocks` is done."""

    job: int
    digests: Sequence[bytes]
    """Of each piece, those of its blocks."""


@dataclass(frozen=True, slots=True)
class RoomSeen:
    """So many batches wait to be sent; comes at the end of each round."""

    batches: int


Event = Tick | LinksUp | LinkLost | Answered | DigestsArrived | PiecesRead | BlocksHashed | RoomSeen

# Actions: what to do.


@dataclass(frozen=True, slots=True)
class TellOffice:
    """To the reader; may be lost with the connection."""

    request: scheduler.Request


@dataclass(frozen=True, slots=True)
class AskTarget:
    """To the target; may be lost with the connection."""

    message: wire.Checksums


@dataclass(frozen=True, slots=True)
class Read:
    """Read the pieces into the buffer, one behind the other, and make their digests."""

    job: int
    buffer: int
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """Make digests of the blocks of these pieces, which stand in the buffer."""

    job: int
    buffer: int
    pieces: list[Piece]
    offsets: list[int]
    """Where each stands, in bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch has of a piece."""

    sector: int
    offset: int
    length: int
    """Where the piece stands in the buffer, in bytes."""
    blocks: Flags
    excluded: Flags | None


@dataclass(frozen=True, slots=True)
class SendBatch:
    """Build this resync batch at once, for its buffer is used anew after it, and send it."""

    buffer: int
    epoch: int
    number: int
    first: int
    parts: list[Part]

    def build(self, buffer: memoryview, stream: bytes) -> tuple[wire.BatchHeader, bytes, bytes]:
        """Its header, its slots' headers and its payload.

        Args:
            buffer: what `buffer` is the number of.
            stream: of the capture.
        """
        headers, payload = build_batch(
            [
                Repair(
                    part.sector,
                    buffer[part.offset : part.offset + part.length],
                    part.blocks,
                    part.excluded,
                )
                for part in self.parts
            ]
        )
        count = len(payload) // PAYLOAD_BYTES
        header = wire.BatchHeader(
            wire.BatchKind.RESYNC,
            wire.Mark.NONE,
            stream,
            self.epoch,
            self.number,
            self.first,
            count,
        )
        return header, headers, payload


@dataclass(frozen=True, slots=True)
class Note:
    """Worth a line in the log."""

    topic: str
    facts: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process with this error."""

    error: BdrError


Action = TellOffice | AskTarget | Read | HashBlocks | SendBatch | Note | Stop


class Stage(Enum):
    """Where a job stands."""

    ASKING = auto()
    COMPARING = auto()
    BLOCKS = auto()
    COMMITTING = auto()
    OVER = auto()


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.ASKING: frozenset({Stage.COMPARING, Stage.OVER}),
    Stage.COMPARING: frozenset({Stage.BLOCKS, Stage.COMMITTING, Stage.OVER}),
    Stage.BLOCKS: frozenset({Stage.COMMITTING, Stage.OVER}),
    Stage.COMMITTING: frozenset({Stage.OVER}),
    Stage.OVER: frozenset(),
}


@dataclass(frozen=True, slots=True)
class ComparerSettings:
    """Limits and times."""

    buffers: int = 3
    """Jobs at a time: one is read, one is compared, one is sent."""
    outgoing_batches: int = 32
    """With so many batches to send, no more work is asked for."""
    ask_again_s: float = 2.0
    job_s: float = 25.0
    """A ticket takes no longer, or is given back."""
    rest_s: float = 0.25
    """After a ticket that was given back."""
    batch_blocks: int = BATCH_BLOCKS_MAX
    digests: int = wire.DIGESTS_MAX
    """Most that one request for checksums asks for."""


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    """Also that of its question."""
    buffer: int
    asked_s: float
    stage: Stage = Stage.ASKING
    began_s: float = 0.0
    ticket: int = 0
    epoch: int = 0
    pieces: list[Piece] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bad_blocks: Mapping[int, list[int]] = field(default_factory=dict)
    own: bytes | None = None
    theirs: bytes | None = None
    suspects: list[int] = field(default_factory=list)
    """Pieces that are compared by blocks."""
    own_blocks: Sequence[bytes] | None = None
    their_blocks: dict[int, bytes] = field(default_factory=dict)
    """By the position in `suspects` of the first piece that was asked for."""
    asked_blocks: int = 0
    groups: list[list[tuple[int, Flags]]] = field(default_factory=list)
    """Of each batch: pieces, and which of their blocks."""
    is_in_thread: bool = False


class Comparer:
    """See the module's text. One instance lives as long as its scanner process.

    Args:
        stream: of the capture whose device below is read.

    Attributes:
        compared_bytes: of jobs that came to their end.
        abandoned: tickets that were given back.
    """

    def __init__(self, *, stream: bytes, settings: ComparerSettings | None = None) -> None:
        self.settings = settings or ComparerSettings()
        self.compared_bytes = 0
        self.abandoned = 0
        self._stream = stream
        self._jobs: dict[int, _Job] = {}
        self._over: dict[int, _Job] = {}
        """Forgotten, but a thread still uses the buffer."""
        self._buffers = list(range(self.settings.buffers))
        self._requests: dict[int, tuple[_Job, int]] = {}
        """Request for checksums, to its job and to the first suspect, or -1."""
        self._is_up = False
        self._next = 1
        self._rest_until_s = 0.0
        self._now_s = 0.0
        self._story: deque[str] = deque(maxlen=32)

    @property
    def open_tickets(self) -> int:
        """How many are being worked on."""
        return sum(job.stage is not Stage.ASKING for job in self._jobs.values())

    def handle(self, event: Event) -> list[Action]:
        """Takes one event; returns what to do, in order.

        Raises:
            InternalError: an invariant broke; the message holds the recent story.
        """
        actions: list[Action] = []
        if not isinstance(event, Tick | RoomSeen):
            self._story.append(str(event)[:200])
        match event:
            case Tick(now_s):
                self._on_tick(now_s, actions)
            case LinksUp():
                self._is_up = True
            case LinkLost():
                self._is_up = False
                for job in list(self._jobs.values()):
                    self._end(job)
            case Answered(answer):
                self._on_answer(answer, actions)
            case DigestsArrived(message):
                self._on_digests(message, actions)
            case PiecesRead() | BlocksHashed():
                self._on_result(event, actions)
            case RoomSeen(batches):
                self._on_room(batches, actions)
        self.check_invariants()
        return actions

    def check_invariants(self) -> None:
        """Raises InternalError where the state contradicts itself."""
        held = [job.buffer for job in (*self._jobs.values(), *self._over.values())]
        if (
            sorted(held + self._buffers) != list(range(self.settings.buffers))
            or any(job.stage is Stage.OVER for job in self._jobs.values())
            or any(not job.is_in_thread for job in self._over.values())
            or any(job.number not in self._jobs for job, _ in self._requests.values())
        ):
            raise InternalError(
                f"comparer: jobs {self._jobs}, over {self._over}, buffers {self._buffers}; story: "
                f"{list(self._story)}"
            )

    # Asking.

    def _on_tick(self, now_s: float, actions: list[Action]) -> None:
        self._now_s = now_s
        for job in list(self._jobs.values()):
            if job.stage is Stage.ASKING:
                if now_s - job.asked_s > self.settings.ask_again_s:
                    job.asked_s = now_s
                    actions.append(TellOffice(scheduler.Ask(job.number)))
            elif job.stage is not Stage.COMMITTING and now_s - job.began_s > self.settings.job_s:
                self._abandon(job, "it takes too long", actions)

    def _on_room(self, batches: int, actions: list[Action]) -> None:
        if not self._is_up or self._now_s < self._rest_until_s:
            return
        while self._buffers and batches < self.settings.outgoing_batches:
            job = _Job(self._number(), self._buffers.pop(), self._now_s)
            self._jobs[job.number] = job
            actions.append(TellOffice(scheduler.Ask(job.number)))

    def _on_answer(self, answer: scheduler.Answer, actions: list[Action]) -> None:
        match answer:
            case scheduler.Work():
                self._begin(answer, actions)
            case scheduler.Committed():
                self._send(answer, actions)
            case scheduler.Dropped(ticket):
                job = self._by_ticket(ticket)
                if job is not None:
                    self._end(job)
            case _:
                actions.append(Note("unexpected", {"answer": type(answer).__name__}))

    def _begin(self, work: scheduler.Work, actions: list[Action]) -> None:
        if work.stream != self._stream:
            actions.append(Stop(StaleCaptureError.of_stream(work.stream, self._stream)))
            return
        job = self._jobs.get(work.ask)
        if job is None or job.stage is not Stage.ASKING:
            # The answer to a question that was asked twice.
            actions.append(TellOffice(scheduler.Commit(work.ticket, 0, 0, work.ranges, b"")))
            return
        self._enter(job, Stage.COMPARING)
        job.began_s = self._now_s
        job.ticket, job.epoch = work.ticket, work.epoch
        job.pieces = wire.decode_ranges(work.ranges)
        at = 0
        for _, sectors in job.pieces:
            job.offsets.append(at)
            at += sectors * SECTOR_BYTES
        job.is_in_thread = True
        actions.append(Read(job.number, job.buffer, job.pieces))
        self._ask_target(job, job.pieces, block_sectors=0, suspect=-1, actions=actions)

    def _ask_target(
        self,
        job: _Job,
        pieces: list[Piece],
        *,
        block_sectors: int,
        suspect: int,
        actions: list[Action],
    ) -> None:
        number = self._number()
        self._requests[number] = (job, suspect)
        ranges = wire.encode_ranges(pieces)
        actions.append(AskTarget(wire.Checksums(number, job.epoch, block_sectors, ranges)))

    # Comparing.

    def _on_digests(self, message: wire.Digests, actions: list[Action]) -> None:
        if message.request not in self._requests:
            return  # of a job that is over
        job, suspect = self._requests.pop(message.request)
        if message.text:
            self._abandon(job, message.text, actions)
        elif suspect < 0:
            job.theirs = message.digests
            self._compare(job, actions)
        else:
            job.their_blocks[suspect] = message.digests
            self._compare_blocks(job, actions)

    def _on_result(self, result: PiecesRead | BlocksHashed, actions: list[Action]) -> None:
        over = self._over.pop(result.job, None)
        if over is not None:
            self._buffers.append(over.buffer)
            return
        job = self._jobs[result.job]
        job.is_in_thread = False
        if isinstance(result, PiecesRead):
            job.own, job.bad_blocks = result.digests, result.bad_blocks
            self._compare(job, actions)
        else:
            job.own_blocks = result.digests
            self._compare_blocks(job, actions)

    def _compare(self, job: _Job, actions: list[Action]) -> None:
        """Both sides' digests of the pieces are there, or the first of them."""
        if job.own is None or job.theirs is None:
            return
        if len(job.own) != len(job.theirs):
            self._abandon(job, "the target's answer has another length", actions)
            return
        differs = differing(job.own, job.theirs)
        differs[list(job.bad_blocks)] = True
        job.suspects = np.flatnonzero(differs).tolist()
        if not job.suspects:
            self._commit(job, actions)
            return
        self._enter(job, Stage.BLOCKS)
        job.is_in_thread = True
        suspected = [job.pieces[index] for index in job.suspects]
        offsets = [job.offsets[index] for index in job.suspects]
        actions.append(HashBlocks(job.number, job.buffer, suspected, offsets))
        at = 0
        while at < len(suspected):
            end, digests = at, 0
            while end < len(suspected):
                digests += digests_wanted([suspected[end]], BLOCK_SECTORS)
                if digests > self.settings.digests:
                    break
                end += 1
            self._ask_target(
                job,
                suspected[at:end],
                block_sectors=BLOCK_SECTORS,
                suspect=at,
                actions=actions,
            )
            job.asked_blocks += 1
            at = end

    def _compare_blocks(self, job: _Job, actions: list[Action]) -> None:
        if job.own_blocks is None or len(job.their_blocks) < job.asked_blocks:
            return
        theirs = b"".join(job.their_blocks[at] for at in sorted(job.their_blocks))
        if len(theirs) != sum(map(len, job.own_blocks)):
            self._abandon(job, "the target's answer has another length", actions)
            return
        at = 0
        chosen: list[tuple[int, Flags]] = []
        for index, own in zip(job.suspects, job.own_blocks, strict=True):
            blocks = differing(own, theirs[at : at + len(own)])
            blocks[job.bad_blocks.get(index, [])] = False
            at += len(own)
            chosen.append((index, blocks))
        job.groups = group_blocks(chosen, limit=self.settings.batch_blocks)
        self._commit(job, actions)

    # Committing.

    def _commit(self, job: _Job, actions: list[Action]) -> None:
        self._enter(job, Stage.COMMITTING)
        blocks = sum(int(flags.sum()) for group in job.groups for _, flags in group)
        unreadable = joined(_unreadable(job))
        if unreadable:
            actions.append(Note("unreadable", {"sectors": str(unreadable[:16])}))
        ranges = wire.encode_ranges(unreadable)
        actions.append(
            TellOffice(scheduler.Commit(job.ticket, len(job.groups), blocks, b"", ranges))
        )

    def _send(self, committed: scheduler.Committed, actions: list[Action]) -> None:
        job = self._by_ticket(committed.ticket)
        if job is None or job.stage is not Stage.COMMITTING:
            return
        sizes = [sectors for _, sectors in job.pieces]
        excluded: list[Flags | None] = [None] * len(sizes)
        if committed.excluded:
            flags = unpack_bits(committed.excluded, sum(sizes))
            excluded = list(np.split(flags, np.cumsum(sizes)[:-1]))
        for at, group in enumerate(job.groups):
            parts = [
                Part(
                    job.pieces[index][0],
                    job.offsets[index],
                    sizes[index] * SECTOR_BYTES,
                    blocks,
                    excluded[index],
                )
                for index, blocks in group
            ]
            actions.append(
                SendBatch(
                    job.buffer, committed.epoch, committed.number + at, committed.first, parts
                )
            )
        self.compared_bytes += sum(sizes) * SECTOR_BYTES
        self._end(job)

    # Ends.

    def _abandon(self, job: _Job, why: str, actions: list[Action]) -> None:
        """Gives a ticket back."""
        self.abandoned += 1
        self._rest_until_s = self._now_s + self.settings.rest_s
        again = wire.encode_ranges(job.pieces)
        actions.append(Note("abandoned", {"why": why, "pieces": len(job.pieces)}))
        actions.append(TellOffice(scheduler.Commit(job.ticket, 0, 0, again, b"")))
        self._end(job)

    def _end(self, job: _Job) -> None:
        """Forgets a job; its buffer is used again when no thread works on it."""
        self._enter(job, Stage.OVER)
        del self._jobs[job.number]
        for number in [number for number, (its, _) in self._requests.items() if its is job]:
            del self._requests[number]
        if job.is_in_thread:
            self._over[job.number] = job
        else:
            self._buffers.append(job.buffer)

    def _enter(self, job: _Job, stage: Stage) -> None:
        if stage not in TRANSITIONS[job.stage]:
            raise InternalError(
                f"comparer: {job.stage.name} -> {stage.name}; story: {list(self._story)}"
            )
        job.stage = stage

    def _by_ticket(self, ticket: int) -> _Job | None:
        return next(
            (
                job
                for job in self._jobs.values()
                if job.stage is not Stage.ASKING and job.ticket == ticket
            ),
            None,
        )

    def _number(self) -> int:
        self._next += 1
        return self._next


def _unreadable(job: _Job) -> list[Piece]:
    """What of its pieces cannot be read, block by block."""
    found = []
    for index, blocks in job.bad_blocks.items():
        sector, sectors = job.pieces[index]
        for block in blocks:
            at = block * BLOCK_SECTORS
            found.append((sector + at, min(BLOCK_SECTORS, sectors - at)))
    return found
