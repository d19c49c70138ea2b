# SPDX-License-Identifier: GPL-2.0-only
"""A change of the target's device: the unit of stores and journal."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.target.extents import Extents
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.codec import Buffer


@dataclass(frozen=True, slots=True)
class Job:
    """Apply `extents` of `payload`, after all earlier jobs, and make it durable.

    `record` becomes the replica's record once the job is durable. `headers` are the slots' headers
    from which the extents were planned, for the journal.
    """

    number: int
    """1, 2, 3 ... per applier process."""
    extents: Extents
    headers: Buffer
    payload: Buffer
    record: ReplicaRecord
