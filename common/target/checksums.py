# SPDX-License-Identifier: GPL-2.0-only
"""Queue of requests for checksums.

A request is processed when everything accepted before it is durable.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bdr.common.target.events import MakeDigests, Peer
from bdr.common.wire.codec import DIGESTS_MAX, RANGES_MAX
from bdr.common.wire.control import Checksums
from bdr.common.wire.reasons import DigestsRefused

REQUESTS_MAX = 256
"""Queued or in progress; more are refused."""
RANGE_SECTORS_MAX = 2048
"""1 MiB."""

REFUSED_TEXTS = {
    DigestsRefused.NO_SESSION: "the session of this epoch is not open",
    DigestsRefused.BUSY: "too many requests are queued",
    DigestsRefused.BAD_RANGES: "the ranges exceed the device, or are too many or too long",
}
"""Texts for log and users."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: int
    """Number of the job that must be durable first."""
    made: MakeDigests


class ChecksumQueue:
    """A FIFO queue.

    Args:
        device_sectors: size of the target.
    """

    def __init__(self, *, device_sectors: int) -> None:
        self._device_sectors = device_sectors
        self._waiting: deque[_Waiting] = deque()
        self._in_progress = 0

    def put(self, peer: Peer, request: Checksums, *, last_job: int) -> DigestsRefused:
        """Queues a request, or returns why it is refused.

        Args:
            last_job: number of the last job.
        """
        if not self._is_possible(request):
            return DigestsRefused.BAD_RANGES
        if len(self._waiting) + self._in_progress >= REQUESTS_MAX:
            return DigestsRefused.BUSY
        self._waiting.append(_Waiting(last_job, MakeDigests(peer, request)))
        return DigestsRefused.NONE

    def ready(self, durable_job: int) -> list[MakeDigests]:
        """Removes and returns the requests that can be processed."""
        found = []
        while self._waiting and self._waiting[0].job <= durable_job:
            found.append(self._waiting.popleft().made)
        self._in_progress += len(found)
        return found

    def done(self) -> None:
        """A request was answered."""
        self._in_progress -= 1

    def _is_possible(self, request: Checksums) -> bool:
        """Whether its ranges are within the device, and its answer fits a message."""
        size = request.block_sectors
        digests = 0
        for sector, sectors in request.ranges:
            if not 0 < sectors <= RANGE_SECTORS_MAX or sector + sectors > self._device_sectors:
                return False
            digests += -(-sectors // size) if size else 1
        return len(request.ranges) <= RANGES_MAX and digests <= DIGESTS_MAX
