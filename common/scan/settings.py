# SPDX-License-Identifier: GPL-2.0-only
"""Limits and timeouts of a comparer."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.scan.repair import BATCH_BLOCKS_MAX
from bdr.common.wire.codec import DIGESTS_MAX


@dataclass(frozen=True, slots=True)
class ComparerSettings:
    """Limits and timeouts."""

    buffers: int = 3
    """Concurrent jobs: one is read, one is compared, one is sent."""
    outgoing_batches: int = 32
    """With this many batches in the send queue, no more leases are requested."""
    repeat_s: float = 2.0
    job_s: float = 25.0
    """A lease that takes longer is abandoned."""
    backoff_s: float = 0.25
    """After an abandoned lease."""
    batch_blocks: int = BATCH_BLOCKS_MAX
    digests: int = DIGESTS_MAX
    """Most digests per checksum request."""
