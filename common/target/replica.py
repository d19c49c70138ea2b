# SPDX-License-Identifier: GPL-2.0-only
"""The replica's record, and the jobs that lead to it. No I/O here.

A source that does not go on where the replica stands changes what the replica is with its
first batch, not with its greeting: until then it stays what it was.
"""

from __future__ import annotations

from dataclasses import replace

from bdr.common.target.admission import Start
from bdr.common.target.age import Age
from bdr.common.target.extents import NO_EXTENTS, Extents
from bdr.common.target.hook import Cause
from bdr.common.target.job import Job
from bdr.common.target.job_queue import JOBS_MAX, JobQueue
from bdr.common.target.record import ANY_SOURCE, NO_SOURCE, ReplicaRecord
from bdr.common.wire.batch import (
    RECENT_BATCHES_MAX,
    AcceptedBatch,
    Batch,
    BatchHeader,
    BatchKind,
    Marker,
)
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello, Ping
from bdr.common.wire.statement import NO_STATEMENT, Statement

_USABLE = (Condition.CONSISTENT, Condition.CATCHING_UP, Condition.UNVERIFIED)
_DECLARED = {
    Marker.CONSISTENT: Condition.CONSISTENT,
    Marker.INCONSISTENT: Condition.INCONSISTENT,
    Marker.UNVERIFIED: Condition.UNVERIFIED,
}


class Replica:
    """Each change of the record is a job.

    Args:
        record: what the target remembered when its process began.
        stride: random. The first epoch is so far beyond the last one known: a target that went
            back would else give out epochs again, of which batches may be under way. And a
            source that does not resume counts its changes from so far beyond: one that went
            back to a time before that has other numbers.
    """

    def __init__(self, record: ReplicaRecord, *, stride: int = 0) -> None:
        self._stride = stride
        self._epoch_stride = stride
        self.record = record.at_start()
        """The record once every job so far is durable."""
        self.jobs = JobQueue()
        self.age = Age(as_of_utc=self.record.as_of_utc)
        self.now_at = 0.0
        self.now_utc = 0
        self._generation_before = self.record.generation
        """As it was before the last greeting."""
        self._start: ReplicaRecord | None = None
        """What it is made by the first batch of a source that begins elsewhere."""

    @property
    def expected(self) -> ReplicaRecord:
        """Before the next batch."""
        return self._start or self.record

    @property
    def is_crowded(self) -> bool:
        """Whether messages may create no more jobs."""
        return self.jobs.waiting >= JOBS_MAX

    def begin_session(self, hello: Hello, start: Start) -> Job:
        """A source goes on, or begins, there, in an epoch of its own."""
        epoch = self.record.epoch + 1 + self._epoch_stride
        self._epoch_stride = 0
        record = replace(self.record, epoch=epoch, clean=False)
        self._generation_before = record.generation
        if record.adopts == ANY_SOURCE:
            record = replace(record, adopts=hello.source)  # the next source is this one
        if start.is_known:
            self._start = None
            size = hello.device_sectors
            return self._advance(
                replace(record, generation=hello.generations[0], source_sectors=size)
            )
        changes = hello.acknowledged
        if start.condition is Condition.UNKNOWN:
            changes = max(hello.counted, record.changes) + 1 + self._stride
        self._start = replace(
            record,
            source=hello.source,
            source_sectors=hello.device_sectors,
            as_of_ns=0,
            generation=hello.generations[0],
            stream=hello.stream,
            slot=start.slot,
            changes=changes,
            recent=(),
            condition=start.condition,
            adopts=NO_SOURCE,
            is_given_up=False,
        )
        if record.generation in hello.generations:
            # There may be many sessions before the first batch; the source keeps 256.
            record = replace(record, generation=hello.generations[0])
        return self._advance(record)

    def departure(self, header: BatchHeader) -> Cause | None:
        """Why a usable replica would be no longer what it is with this batch; else None."""
        if self.record.condition not in _USABLE:
            return None
        if self._start is not None:
            return Cause.COMPARE
        is_gap = header.marker is Marker.INCONSISTENT
        return Cause.INCONSISTENT if is_gap or header.kind is BatchKind.RESYNC else None

    def accept(self, batch: Batch, extents: Extents) -> Job:
        """The next batch in order was accepted; it consists of these extents."""
        header, before = batch.header, self.expected
        self._start = None
        condition, changes, recent = before.condition, before.changes, before.recent
        match header.kind:
            case BatchKind.LIVE:
                accepted = AcceptedBatch(
                    header.epoch, header.number, header.first, header.count, batch.digest
                )
                recent = (*recent[1 - RECENT_BATCHES_MAX :], accepted)
            case BatchKind.MARKER:
                changes += 1
                condition = _DECLARED[header.marker]
            case BatchKind.RESYNC:
                changes += 1
                # Repairs come from another moment than what is beside them.
                condition = Condition.INCONSISTENT
        record = replace(
            before, slot=header.end, changes=changes, recent=recent, condition=condition
        )
        said = header.statement
        if said.said_ns:
            record = replace(record, as_of_ns=said.until_ns, as_of_utc=said.as_of_utc)
        return self._advance(record, extents, batch.headers, batch.payload, said)

    def disown(self) -> Job:
        """The source of the last greeting is none of this replica's: it counts for nothing."""
        return self._advance(replace(self.record, generation=self._generation_before))

    def remember(self, ping: Ping) -> Job | None:
        """What its source says of itself; None if that is no news."""
        self.age.said(ping.statement)
        record = self.record
        if self._start is not None or self.is_crowded:
            return None
        left_bytes = ping.left_bytes if record.condition.needs_scan else 0
        known = record.left_bytes, record.generation
        if (left_bytes, ping.generation) == known:
            return None
        return self._advance(replace(record, left_bytes=left_bytes, generation=ping.generation))

    def durable(self, job: int) -> None:
        """Every job up to this one is durable."""
        self.jobs.done(job)
        self.age.durable(job)

    def close(self) -> Job:
        """The last job before a clean stop: the device has no writes beyond the record's slot."""
        return self._advance(replace(self.record, clean=True))

    def _advance(
        self,
        record: ReplicaRecord,
        extents: Extents = NO_EXTENTS,
        headers: Buffer = b"",
        payload: Buffer = b"",
        statement: Statement = NO_STATEMENT,
    ) -> Job:
        if record.condition is not self.record.condition:
            record = replace(record, since_utc=self.now_utc)
        if not record.condition.needs_scan:
            record = replace(record, left_bytes=0)
        self.record = record
        number = self.jobs.put(len(payload), now_at=self.now_at)
        self.age.accepted(number, statement)
        return Job(number, extents, headers, payload, record)
