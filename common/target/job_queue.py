# SPDX-License-Identifier: GPL-2.0-only
"""Jobs that are not durable yet."""

from __future__ import annotations

from dataclasses import dataclass

QUEUED_BYTES_MAX = 96 << 20
"""More than any window; beyond it, a source that exceeds its window is not read."""
QUEUED_JOBS_MAX = 1024
"""The same for jobs, some of which have no bytes."""
JOBS_MAX = 2048
"""More than the batches of any window; beyond it, messages create no more jobs."""


@dataclass(slots=True)
class _Queued:
    size: int
    put_at: float


class JobQueue:
    """Numbers jobs 1, 2, 3 ..., and tracks those that are not durable."""

    def __init__(self) -> None:
        self.last = 0
        """Number of the last job."""
        self.durable = 0
        """Every job up to this number is durable."""
        self.durable_bytes = 0
        """Payload of durable jobs."""
        self.queued_bytes = 0
        self._queued: dict[int, _Queued] = {}

    @property
    def waiting(self) -> int:
        """Number of jobs that are not durable."""
        return self.last - self.durable

    @property
    def is_full(self) -> bool:
        """Whether no more batches should be read."""
        return self.queued_bytes > QUEUED_BYTES_MAX or self.waiting > QUEUED_JOBS_MAX

    def put(self, size: int, *, now_at: float) -> int:
        """Adds a job with `size` bytes of payload; returns its number."""
        self.last += 1
        self._queued[self.last] = _Queued(size, now_at)
        self.queued_bytes += size
        return self.last

    def done(self, job: int) -> None:
        """Every job up to this one is durable."""
        for number in range(self.durable + 1, job + 1):
            size = self._queued.pop(number).size
            self.queued_bytes -= size
            self.durable_bytes += size
        self.durable = job

    def oldest_s(self, now_at: float) -> float:
        """Age of the oldest job that is not durable; 0 if there is none."""
        oldest = next(iter(self._queued.values()), None)
        return now_at - oldest.put_at if oldest else 0.0
