# SPDX-License-Identifier: GPL-2.0-only
"""The replica's record, and the jobs that change it. No I/O here."""

from __future__ import annotations

from dataclasses import replace

from bdr.common.target.admission import Start
from bdr.common.target.extents import NO_EXTENTS, Extents
from bdr.common.target.job import Job
from bdr.common.target.job_queue import JOBS_MAX, JobQueue
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import Batch, BatchKind, Marker
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition


class Replica:
    """Turns each change of the record into a job.

    Args:
        record: as loaded at the start of the process.
    """

    def __init__(self, record: ReplicaRecord) -> None:
        self.record = record.at_start()
        """The record once every job so far is durable."""
        self.jobs = JobQueue()
        self.now_at = 0.0
        self.now_utc = 0

    @property
    def is_crowded(self) -> bool:
        """Whether messages may create no more jobs."""
        return self.jobs.waiting >= JOBS_MAX

    def begin_session(self, stream: bytes, start: Start) -> Job:
        """A source of this stream continues from there, in a new epoch."""
        return self._advance(
            replace(
                self.record,
                stream=stream,
                slot=start.slot,
                epoch=self.record.epoch + 1,
                condition=start.condition,
                clean=False,
            )
        )

    def accept(self, batch: Batch, extents: Extents) -> Job:
        """The next batch in order was accepted; it has these extents."""
        header = batch.header
        condition = self.record.condition
        if header.kind is BatchKind.MARKER:
            is_consistent = header.marker is Marker.CONSISTENT
            condition = Condition.CONSISTENT if is_consistent else Condition.INCONSISTENT
        record = replace(
            self.record, slot=header.end, condition=condition, accepted_utc=self.now_utc
        )
        return self._advance(record, extents, batch.headers, batch.payload)

    def remember_left(self, left_bytes: int) -> Job | None:
        """Records the bytes left to compare, as reported by the source; None if unchanged."""
        record = self.record
        is_news = record.condition.needs_scan and left_bytes != record.left_bytes
        if not is_news or self.is_crowded:
            return None
        return self._advance(replace(record, left_bytes=left_bytes))

    def close(self) -> Job:
        """The last job before a clean stop: the device has no writes beyond the record's slot."""
        return self._advance(replace(self.record, clean=True))

    def _advance(
        self,
        record: ReplicaRecord,
        extents: Extents = NO_EXTENTS,
        headers: Buffer = b"",
        payload: Buffer = b"",
    ) -> Job:
        if record.condition is not self.record.condition:
            record = replace(record, since_utc=self.now_utc)
        if not record.condition.needs_scan:
            record = replace(record, left_bytes=0)
        self.record = record
        number = self.jobs.put(len(payload), now_at=self.now_at)
        return Job(number, extents, headers, payload, record)
