# SPDX-License-Identifier: GPL-2.0-only
"""Limits and timeouts of a comparer."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.scan.repair import BATCH_BLOCKS_MAX
from bdr.common.wire.codec import DIGESTS_MAX

_DOUBLINGS_MAX = 6


@dataclass(frozen=True, slots=True)
class ComparerSettings:
    """Limits and timeouts."""

    buffers: int = 3
    """Concurrent jobs: one is read, one is compared, one is sent."""
    outgoing_batches: int = 32
    """With this many batches in the send queue, no more leases are requested."""
    repeat_s: float = 2.0
    """A request for a lease is repeated after this time, and a lease renewed."""
    job_s: float = 25.0
    """See `limit_s`."""
    backoff_s: float = 0.25
    """After an abandoned lease."""
    batch_blocks: int = BATCH_BLOCKS_MAX
    digests: int = DIGESTS_MAX
    """Most digests per checksum request."""

    def limit_s(self, timeouts: int) -> float:
        """How long the next digests of a job may take; doubles with each job that was abandoned.

        The target's answers share the line with what is queued before them.
        """
        return self.job_s * 2.0 ** min(timeouts, _DOUBLINGS_MAX)
