# SPDX-License-Identifier: GPL-2.0-only
"""Compares source and target, lease by lease: a state machine without I/O, threads or clock.

It acquires leases from the reader, obtains digests of both sides, and finishes each lease with the
differences. Subclasses choose the leases and handle the differences: `Repairer` sends them,
`Verifier` only reports them. A few jobs run at a time, each with its own buffer; `common.scan.job`
has the states of a job.

In COMPARING and COMPARING_BLOCKS a job is abandoned if the target refuses, sends an invalid answer,
or none in time. In any state it is dropped if the reader sends REVOKED or a connection is lost:
numbered batches may then be lost too, which the reader detects by the lost connection.

`handle` is the only entry point. Time arrives as `Tick`, results of I/O as events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

from bdr.common.errors import StaleCaptureError
from bdr.common.machine import Story, brief
from bdr.common.scan import events
from bdr.common.scan.digests import BLOCK_SECTORS, split
from bdr.common.scan.events import Action, Event, LogEvent, SendToReader, SendToTarget
from bdr.common.scan.job import Closed, Compared, Job, JobState, Suspected
from bdr.common.scan.plan import Chunk, Flags
from bdr.common.scan.settings import ComparerSettings
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Answer, Grant, Renew, Request, Revoked

WHOLE = -1
"""Instead of the index of a suspect: the digests are those of whole chunks."""
OTHER_LENGTH = "the target's answer has another length"


class Comparer(ABC):
    """See the module's docstring. One instance per process.

    Args:
        stream: of the capture whose underlying device is read.
    """

    def __init__(self, *, stream: bytes, settings: ComparerSettings | None = None) -> None:
        self.settings = settings or ComparerSettings()
        self.abandoned = 0
        """Number of abandoned leases."""
        self._stream = stream
        self._now_at = 0.0
        self._actions: list[Action] = []
        self._jobs: dict[int, Job] = {}
        self._draining: dict[int, Job] = {}
        """Dropped jobs whose buffer is still in use by a thread."""
        self._buffers = list(range(self.settings.buffers))
        self._requests: dict[int, tuple[Job, int]] = {}
        """Number of a checksum request, to its job and its first suspect, or `WHOLE`."""
        self._is_up = False
        self._next = 1
        self._backoff_until_at = 0.0
        self._timeouts = 0
        """Since a job was last compared."""
        self._story = Story()

    @property
    def open_leases(self) -> int:
        """Leases in progress."""
        return sum(job.has_lease for job in self._jobs.values())

    def handle(self, event: Event) -> list[Action]:
        """Handles one event; returns the actions, in order.

        Raises:
            InternalError: an invariant was violated; the message has the recent story.
        """
        actions = self._actions = []
        if not isinstance(event, events.Tick | events.RoomSeen):
            self._story.add(brief(event))
        match event:
            case events.Tick(now_at):
                self._on_tick(now_at)
            case events.LinksUp():
                self._is_up = True
            case events.LinkLost():
                self._is_up = False
                self._actions.append(events.DropUnsent())
                for job in list(self._jobs.values()):
                    self._lose(job)
            case events.Answered(answer):
                self._on_answer(answer)
            case events.DigestsArrived(message):
                self._on_digests(message)
            case events.ChunksRead() | events.BlocksHashed():
                self._on_result(event)
            case events.RoomSeen(batches):
                self._on_room(batches)
        self.check_invariants()
        return actions

    def check_invariants(self) -> None:
        """Raises InternalError if an invariant is violated."""
        held = [job.buffer for job in (*self._jobs.values(), *self._draining.values())]
        if (
            sorted(held + self._buffers) != list(range(self.settings.buffers))
            or any(job.state is JobState.CLOSED for job in self._jobs.values())
            or any(not job.is_in_thread for job in self._draining.values())
            or any(job.number not in self._jobs for job, _ in self._requests.values())
        ):
            raise self._story.error(
                f"comparer: jobs {sorted(self._jobs)}, over {sorted(self._draining)}, buffers "
                f"{self._buffers}"
            )

    # What subclasses define.

    @abstractmethod
    def _next_request(self, number: int) -> Request | None:
        """The request for a lease, for the job of this number; None if none is wanted."""

    @abstractmethod
    def _decline(self, grant: Grant) -> Request:
        """Ends a lease that was granted for a duplicate request."""

    @abstractmethod
    def _finish(self, job: Job) -> Request:
        """Ends the lease of a compared job."""

    @abstractmethod
    def _on_finished(self, answer: Answer) -> None:
        """Handles the reader's answer to that."""

    @abstractmethod
    def _give_up(self, job: Job, refused: DigestsRefused, why: str) -> None:
        """Ends the lease of a job that cannot be compared, temporarily or permanently."""

    def _lose(self, job: Job) -> None:
        """A job's lease was revoked, or a connection lost."""
        self._end(job)

    # Requests.

    def _on_tick(self, now_at: float) -> None:
        self._now_at = now_at
        for job in list(self._jobs.values()):
            waited_s = now_at - job.began_at
            if job.awaits_target and waited_s > self.settings.limit_s(self._timeouts):
                self._timeouts += 1
                self._give_up(job, DigestsRefused.NONE, "timeout")
            elif now_at - job.requested_at > self.settings.repeat_s:
                job.requested_at = now_at
                again = Renew(job.lease) if job.has_lease else job.request
                self._actions.append(SendToReader(again))

    def _on_room(self, batches: int) -> None:
        if not self._is_up or self._now_at < self._backoff_until_at:
            return
        while self._buffers and batches < self.settings.outgoing_batches:
            number = self._number()
            request = self._next_request(number)
            if request is None:
                return
            self._jobs[number] = Job(
                number=number,
                request=request,
                buffer=self._buffers.pop(),
                requested_at=self._now_at,
                story=self._story,
            )
            self._actions.append(SendToReader(request))

    def _on_answer(self, answer: Answer) -> None:
        match answer:
            case Grant():
                self._begin(answer)
            case Revoked(lease):
                job = self._by_lease(lease)
                if job is not None:
                    self._lose(job)
            case _:
                self._on_finished(answer)

    def _begin(self, grant: Grant) -> None:
        if grant.stream != self._stream:
            error = StaleCaptureError.of_stream(grant.stream, self._stream)
            self._actions.append(events.Stop(error))
            return
        job = self._jobs.get(grant.request)
        if job is None or job.state is not JobState.ACQUIRING:
            self._actions.append(SendToReader(self._decline(grant)))
            return
        job.fire(grant)
        job.began_at = self._now_at
        job.is_in_thread = True
        self._actions.append(events.Read(job.number, job.buffer, job.chunks))
        self._request_digests(job, job.chunks, block_sectors=0, suspect=WHOLE)

    def _request_digests(
        self, job: Job, chunks: list[Chunk], *, block_sectors: int, suspect: int
    ) -> None:
        number = self._number()
        self._requests[number] = (job, suspect)
        self._actions.append(SendToTarget(Checksums(number, job.epoch, block_sectors, chunks)))

    # Comparing.

    def _on_digests(self, message: Digests) -> None:
        if message.request not in self._requests:
            return  # of a closed job
        job, suspect = self._requests.pop(message.request)
        if message.refused is not DigestsRefused.NONE:
            self._give_up(job, message.refused, message.text)
        elif suspect == WHOLE:
            job.theirs = message.digests
            self._compare(job)
        else:
            job.their_blocks[suspect] = message.digests
            self._compare_blocks(job)

    def _on_result(self, result: events.ChunksRead | events.BlocksHashed) -> None:
        over = self._draining.pop(result.job, None)
        if over is not None:
            self._buffers.append(over.buffer)
            return
        job = self._jobs[result.job]
        job.is_in_thread = False
        if isinstance(result, events.ChunksRead):
            job.own, job.bad_blocks = result.digests, result.bad_blocks
            self._compare(job)
        else:
            job.own_blocks = result.digests
            self._compare_blocks(job)

    def _compare(self, job: Job) -> None:
        """Compares the digests of the chunks once those of both sides have arrived."""
        if not job.has_digests:
            return
        suspects = job.suspected()
        if suspects is None:
            self._give_up(job, DigestsRefused.NONE, OTHER_LENGTH)
        elif suspects:
            self._request_block_digests(job, suspects)
        else:
            self._finish_job(job, [])

    def _request_block_digests(self, job: Job, suspects: list[int]) -> None:
        job.fire(Suspected(suspects))
        job.began_at = self._now_at
        job.is_in_thread = True
        suspected = [job.chunks[index] for index in suspects]
        offsets = [job.offsets[index] for index in suspects]
        self._actions.append(events.HashBlocks(job.number, job.buffer, suspected, offsets))
        for begin, end in pairwise(split(suspected, self.settings.digests)):
            self._request_digests(
                job, suspected[begin:end], block_sectors=BLOCK_SECTORS, suspect=begin
            )
            job.requested_blocks += 1

    def _compare_blocks(self, job: Job) -> None:
        if not job.has_block_digests:
            return
        found = job.differing_blocks()
        if found is None:
            self._give_up(job, DigestsRefused.NONE, OTHER_LENGTH)
        else:
            self._finish_job(job, found)

    def _finish_job(self, job: Job, found: list[tuple[int, Flags]]) -> None:
        job.fire(Compared(found))
        self._timeouts = 0
        unreadable = job.unreadable()
        if unreadable:
            self._actions.append(LogEvent("unreadable", {"sectors": str(unreadable[:16])}))
        self._actions.append(SendToReader(self._finish(job)))

    # Ends.

    def _back_off(self, why: str, job: Job) -> None:
        """A lease was abandoned: no other is requested during the backoff."""
        self.abandoned += 1
        self._backoff_until_at = self._now_at + self.settings.backoff_s
        self._actions.append(LogEvent("abandoned", {"reason": why, "chunks": len(job.chunks)}))

    def _end(self, job: Job) -> None:
        """Drops a job; its buffer is reused once no thread uses it."""
        job.fire(Closed())
        del self._jobs[job.number]
        for number in [number for number, (its, _) in self._requests.items() if its is job]:
            del self._requests[number]
        if job.is_in_thread:
            self._draining[job.number] = job
        else:
            self._buffers.append(job.buffer)

    def _by_lease(self, lease: int) -> Job | None:
        has_it = (job for job in self._jobs.values() if job.has_lease and job.lease == lease)
        return next(has_it, None)

    def _number(self) -> int:
        self._next += 1
        return self._next
