# SPDX-License-Identifier: GPL-2.0-only
"""What a target does to its device: the unit that its stores write and its journal keeps."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.target.extents import Extents
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.codec import Buffer


@dataclass(frozen=True, slots=True)
class Job:
    """Apply `extents` of `payload`, after all earlier jobs; then make it durable.

    `record` is what must be remembered once the job is durable. `headers` are the
    slots' headers that the extents were planned from, for a journal to keep.
    """

    number: int
    """1, 2, 3 ... within an applier process."""
    extents: Extents
    headers: Buffer
    payload: Buffer
    record: ReplicaRecord
