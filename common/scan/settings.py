# SPDX-License-Identifier: GPL-2.0-only
"""Limits and times of a comparer."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.scan.repair import BATCH_BLOCKS_MAX
from bdr.common.wire.codec import DIGESTS_MAX


@dataclass(frozen=True, slots=True)
class ComparerSettings:
    """Limits and times."""

    buffers: int = 3
    """Jobs at a time: one is read, one is compared, one is sent."""
    outgoing_batches: int = 32
    """With so many batches to send, no more work is asked for."""
    repeat_s: float = 2.0
    job_s: float = 25.0
    """A lease takes no longer, or is given up."""
    backoff_s: float = 0.25
    """After a lease that was given up."""
    batch_blocks: int = BATCH_BLOCKS_MAX
    digests: int = DIGESTS_MAX
    """Most that one request for checksums asks for."""
