# SPDX-License-Identifier: GPL-2.0-only
"""A command's comparer: differences are reported.

A block is not reported as differing merely because a write was in flight: see
`common.source.scheduler`. A differing block that was written during the comparison is compared
again, a few times, and counted as busy if it was written each time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from bdr.common.scan.comparer import Comparer
from bdr.common.scan.digests import BLOCK_SECTORS
from bdr.common.scan.events import Finished, Interrupted, LogEvent, Progress, SendToReader
from bdr.common.scan.job import Job, JobState
from bdr.common.scan.plan import CHUNK_SECTORS, Chunk, joined
from bdr.common.scan.settings import ComparerSettings
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Answer, Grant, Request, Verified, VerifyBegin, VerifyEnd


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """Limits and timeouts."""

    lease_chunks: int = 16
    small_chunks: int = 64
    """For a lease of single blocks that are compared again."""
    tries: int = 8
    """Most repetitions for a busy block."""
    pause_s: float = 0.25
    """Before each repetition."""
    no_progress_s: float = 20.0
    """Without progress for this time, the verification is interrupted, if a connection is down or
    the target cannot answer."""
    waiting_s: float = 600.0
    """The same, if nothing is known to be wrong: all that was sent before must be durable first,
    which takes long on a slow link."""


@dataclass(slots=True)
class Findings:
    """Results; ranges are of sectors, ascending and merged."""

    differing: list[Chunk] = field(default_factory=list)
    unreadable: list[Chunk] = field(default_factory=list)
    busy: list[Chunk] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    """Why ranges are unreadable on the target."""
    compared_bytes: int = 0


def chunks_of(ranges: list[Chunk]) -> list[Chunk]:
    """Ranges, split into chunks of 1 MiB at most."""
    return [
        (at, min(CHUNK_SECTORS, sector + sectors - at))
        for sector, sectors in ranges
        for at in range(sector, sector + sectors, CHUNK_SECTORS)
    ]


class Verifier(Comparer):
    """Compares the given ranges once.

    Args:
        stream: of the capture whose underlying device is read.
        ranges: of sectors, ascending.
    """

    def __init__(
        self,
        *,
        stream: bytes,
        ranges: list[Chunk],
        settings: ComparerSettings | None = None,
        verify: VerifySettings | None = None,
    ) -> None:
        super().__init__(stream=stream, settings=settings)
        self.findings = Findings()
        self.is_finished = False
        self._verify = verify or VerifySettings()
        self._todo = deque(_groups(chunks_of(ranges), self._verify.lease_chunks))
        self._requested: dict[int, list[Chunk]] = {}
        """Job number, to the requested chunks."""
        self._again: list[Chunk] = []
        self._tries = 0
        self._wait_until_at: float | None = None
        """When the busy blocks are compared again."""
        self._progress_at: float | None = None
        self._abandoned_before = 0
        """Leases that were abandoned before the last progress."""

    # Asking.

    def _on_tick(self, now_at: float) -> None:
        super()._on_tick(now_at)
        if self._progress_at is None:
            self._progress_at = now_at
        if self.is_finished:
            return
        if not self._todo and not self._jobs:
            self._end_round(now_at)
        elif now_at - self._progress_at > self._patience_s():
            self.is_finished = True
            self._actions.append(Interrupted())

    def _patience_s(self) -> float:
        is_hindered = not self._is_up or self.abandoned > self._abandoned_before
        return self._verify.no_progress_s if is_hindered else self._verify.waiting_s

    def _end_round(self, now_at: float) -> None:
        """Everything was compared; busy blocks are compared again."""
        self._progress_at = now_at
        if not self._again or self._tries == self._verify.tries:
            found = self.findings
            found.busy = joined(self._again)
            found.differing, found.unreadable = joined(found.differing), joined(found.unreadable)
            self.is_finished = True
            self._actions.append(Finished())
        elif self._wait_until_at is None:
            self._wait_until_at = now_at + self._verify.pause_s
        elif now_at >= self._wait_until_at:
            self._wait_until_at = None
            self._tries += 1
            again, self._again = sorted(set(self._again)), []
            self._todo.extend(_groups(again, self._verify.small_chunks))

    def _next_request(self, number: int) -> Request | None:
        if self.is_finished or not self._todo:
            return None
        self._requested[number] = self._todo.popleft()
        return VerifyBegin(number, self._requested[number])

    def _decline(self, grant: Grant) -> Request:
        return VerifyEnd(grant.lease)

    # Ends.

    def _finish(self, job: Job) -> Request:
        return VerifyEnd(job.lease)

    def _on_finished(self, answer: Answer) -> None:
        if not isinstance(answer, Verified):
            self._actions.append(LogEvent("unexpected", {"answer": type(answer).__name__}))
            return
        job = self._by_lease(answer.lease)
        if job is not None and job.state is JobState.FINISHING:
            self._judge(job, answer.busy)
            self._verified(job)

    def _give_up(self, job: Job, refused: DigestsRefused, why: str) -> None:
        self._actions.append(SendToReader(VerifyEnd(job.lease)))
        if not refused.is_permanent:
            self._back_off(why, job)
            self._lose(job)
        elif len(job.chunks) > 1:
            # At least one chunk fails: compare each individually.
            self._todo.extendleft([chunk] for chunk in reversed(self._requested.pop(job.number)))
            self._end(job)
        else:
            self.findings.unreadable += job.chunks
            self.findings.reasons.add(why)
            self._verified(job)

    def _lose(self, job: Job) -> None:
        self._todo.appendleft(self._requested.pop(job.number))
        self._end(job)

    def _verified(self, job: Job) -> None:
        """A job's chunks were compared in this round."""
        del self._requested[job.number]
        self._progress_at = self._now_at
        self._abandoned_before = self.abandoned
        if not self._tries:
            self.findings.compared_bytes += job.size_bytes
            self._actions.append(Progress(job.size_bytes))
        self._end(job)

    def _judge(self, job: Job, busy: bytes) -> None:
        busy_sectors = job.by_chunk(busy)
        self.findings.unreadable += job.unreadable()
        for index, blocks in job.differing:
            sector, sectors = job.chunks[index]
            for block in np.flatnonzero(blocks).tolist():
                first = block * BLOCK_SECTORS
                count = min(BLOCK_SECTORS, sectors - first)
                is_busy = busy_sectors[index][first : first + count].any()
                found = self._again if is_busy else self.findings.differing
                found.append((sector + first, count))


def _groups(chunks: list[Chunk], count: int) -> list[list[Chunk]]:
    return [chunks[at : at + count] for at in range(0, len(chunks), count)]
