# SPDX-License-Identifier: GPL-2.0-only
"""A scanner's comparer: differences are sent, at the position that the reader assigns."""

from __future__ import annotations

from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.comparer import Comparer
from bdr.common.scan.events import LogEvent, RepairPart, SendBatch, SendToReader
from bdr.common.scan.job import Job, JobState
from bdr.common.scan.plan import Flags
from bdr.common.scan.repair import group_blocks
from bdr.common.scan.settings import ComparerSettings
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Acquire, Answer, Commit, Committed, Grant, Request


class Repairer(Comparer):
    """Requests leases indefinitely.

    Attributes:
        compared_bytes: of completed jobs.
    """

    def __init__(self, *, stream: bytes, settings: ComparerSettings | None = None) -> None:
        super().__init__(stream=stream, settings=settings)
        self.compared_bytes = 0

    def _next_request(self, number: int) -> Request | None:
        return Acquire(number)

    def _decline(self, grant: Grant) -> Request:
        return Commit(grant.lease, 0, 0, grant.ranges, [])

    def _finish(self, job: Job) -> Request:
        groups = self._groups(job)
        blocks = sum(int(flags.sum()) for group in groups for _, flags in group)
        return Commit(job.lease, len(groups), blocks, [], job.unreadable())

    def _on_finished(self, answer: Answer) -> None:
        if not isinstance(answer, Committed):
            self._actions.append(LogEvent("unexpected", {"answer": type(answer).__name__}))
            return
        job = self._by_lease(answer.lease)
        if job is not None and job.state is JobState.FINISHING:
            self._send(job, answer)
            self.compared_bytes += job.size_bytes
            self._end(job)

    def _give_up(self, job: Job, refused: DigestsRefused, why: str) -> None:
        """Returns the lease, whether the target's refusal is temporary or permanent."""
        self._back_off(why, job)
        self._actions.append(SendToReader(Commit(job.lease, 0, 0, job.chunks, [])))
        self._end(job)

    def _groups(self, job: Job) -> list[list[tuple[int, Flags]]]:
        """For each batch, chunks and flags of their blocks."""
        return group_blocks(job.differing, limit=self.settings.batch_blocks)

    def _send(self, job: Job, committed: Committed) -> None:
        excluded = job.by_chunk(committed.excluded) if committed.excluded else None
        sizes = job.sizes
        for at, group in enumerate(self._groups(job)):
            parts = [
                RepairPart(
                    job.chunks[index][0],
                    job.offsets[index],
                    sizes[index] * SECTOR_BYTES,
                    blocks,
                    excluded[index] if excluded else None,
                )
                for index, blocks in group
            ]
            number = committed.number + at
            self._actions.append(
                SendBatch(job.buffer, committed.epoch, number, committed.first, parts)
            )
