# SPDX-License-Identifier: GPL-2.0-only
"""Sessions with regions to be repaired, and what scanners and commands ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from bdr.common.capture.api import CaptureInfo
from bdr.common.ring.layout import Op
from bdr.common.source.settings import SchedulerSettings, SourceSettings
from bdr.common.wire.condition import Condition
from bdr.common.wire.scan import Acquire, Answer, Commit, Grant, Query, ResyncStatus
from tests.support.source_rig import INFO, STATUS, SourceRig, answers, streaming

REGIONS = 256
SCANNED = replace(INFO, device_sectors=REGIONS * 128, capacity=1 << 16, regions=REGIONS)


def scanning(
    dirty: Iterable[int],
    *,
    condition: Condition = Condition.INCONSISTENT,
    info: CaptureInfo = SCANNED,
    **limits: Any,
) -> SourceRig:
    """A session with an empty ring and these regions to be repaired."""
    status = replace(STATUS, head=STATUS.tail, device_sectors=info.device_sectors)
    settings = SourceSettings(scheduler=SchedulerSettings(**limits), status_interval_s=0.0)
    rig = streaming(status, condition=condition, info=info, dirty=dirty, settings=settings)
    rig.look()
    return rig


def acquire(rig: SourceRig, number: int = 1) -> Grant:
    (grant,) = rig.request(Acquire(number))
    assert isinstance(grant, Grant)
    return grant


def commit(rig: SourceRig, grant: Grant, batches: int = 0, **ranges: Any) -> list[Answer]:
    found = {"again": [], "unreadable": []} | ranges
    return rig.request(Commit(grant.lease, batches, 0, **found))


def write(rig: SourceRig, sector: int, sectors: int = 8, op: Op = Op.WRITE) -> None:
    """A live batch of one write is dispatched."""
    rig.capture.publish(op=op, sector=sector, sectors=sectors)
    assert rig.next_batch() is not None


def pass_time(rig: SourceRig, seconds: int, *, durable: int, accepted: int) -> list[Answer]:
    """While the target is alive, and says no more than this."""
    found = []
    for _ in range(seconds):
        found += answers(rig.tick(rig.now_at + 1))
        found += answers(rig.ack(durable, accepted))
    return found


def bits(flags: bytes) -> list[int]:
    """Which are set."""
    every = np.unpackbits(np.frombuffer(flags, np.uint8), bitorder="little")
    return np.flatnonzero(every).tolist()


def query(rig: SourceRig) -> ResyncStatus:
    (status,) = rig.request(Query(99), b"command")
    assert isinstance(status, ResyncStatus)
    return status
