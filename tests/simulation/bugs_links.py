# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of what judges a connection, or batches, by time: they show on a slow line."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any
from unittest import mock

from bdr.common.scan.settings import ComparerSettings
from bdr.common.source.scheduler import ResyncScheduler
from bdr.common.source.settings import SchedulerSettings, SourceSettings
from bdr.common.source.window import Window
from bdr.common.target import events
from bdr.common.target.node import TargetNode
from bdr.common.wire.connection import Life, TcpInfo
from tests.simulation.bugs import Patch, bug, handled, nothing, wrapped
from tests.simulation.options import CHUNK_SECTORS

_SLOW = {"rate": 40e3, "capacity": 64, "big_writes": 0.3, "writes": 160, "think_s": 0.0005}


@bug(**_SLOW)
def connection_has_a_limit_of_time_for_all_that_waits() -> Patch:
    """As heartbeats have, whose answer stands behind the payload."""

    def make(is_dead: Any) -> Any:
        def broken(self: Life, info: TcpInfo, now_at: float) -> Any:
            return is_dead(self, replace(info, heard_s=inf), now_at)

        return broken

    return wrapped(Life, "is_dead", make)


@bug(**_SLOW)
def batches_have_a_limit_of_time_to_arrive() -> Patch:
    def make(acknowledge: Any) -> Any:
        def broken(self: Window, **facts: Any) -> Any:
            return acknowledge(self, **facts | {"idle_s": 1 << 30})

        return broken

    return wrapped(Window, "acknowledge", make)


@bug(**_SLOW)
def part_of_a_batch_counts_as_nothing() -> Patch:
    return handled(TargetNode, events.BytesArrived, lambda _: nothing)


@bug(
    read_s=1.5,
    is_equal=False,
    assume_clean=False,
    faults={},
    source=SourceSettings(
        scheduler=SchedulerSettings(lease_chunks=3, lease_sectors=3 * CHUNK_SECTORS, lease_s=1.0)
    ),
    comparer=ComparerSettings(buffers=2, repeat_s=0.2, job_s=60.0),
)
def lease_has_a_limit_of_time_though_it_is_renewed() -> Patch:
    """A scan whose comparisons take longer makes no progress."""
    return mock.patch.object(ResyncScheduler, "renew", nothing)
