# SPDX-License-Identifier: GPL-2.0-only
"""A link on which one batch takes longer than any limit of time: slow, and nothing is lost.

The longer form, up to four senders and scans: `make bench-slow-link`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.command import wait_for
from deploy.namespaces import Namespaces
from tests.bench.slow_link import Measured, measure, start_over
from tests.pipeline.line import Line, Shape
from tests.pipeline.pair import BLOCK_BYTES, DEADLINE_S, Pair

SLOW = Shape(rate=125_000, delay_s=0.15, loss=0.01, queue_bytes=512 << 10)
"""1 Mbit/s, 300 ms there and back; the queue is of four seconds."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["live", "scan"])
def test_slow_link_carries_what_it_can_and_loses_no_connection(tmp_path: Path, kind: str) -> None:
    measured: Measured = measure(
        tmp_path, SLOW, kind=kind, senders=2, payload_bytes=2 << 20, bare_s=6.0
    )
    assert measured.lost == 0
    assert measured.sessions == 1
    # Most of it is the start and the end of so short a run; the bench asks for more.
    assert measured.share > 0.5, measured


STOPPED_S = 15.0
"""Longer than heartbeats would wait, and than the status waits for an answer."""


@pytest.fixture
def over_a_line(tmp_path: Path) -> Iterator[tuple[Pair, Line]]:
    """A pair at work over a fast line."""
    shape = Shape(rate=12_500_000, delay_s=0.01)
    with (
        Namespaces() as net,
        Line(net, shape) as line,
        Pair(tmp_path, size=16 << 20, senders=1) as pair,
    ):
        start_over(net, pair)
        pair.client.write(0, bytes(BLOCK_BYTES))
        pair.settle()
        yield pair, line


@pytest.mark.timeout(240)
def test_line_that_swallows_everything_is_noticed_in_a_bounded_time(
    over_a_line: tuple[Pair, Line],
) -> None:
    pair, line = over_a_line
    with line.swallowing():
        pair.client.write(0, bytes(BLOCK_BYTES))
        pair.wait_logged("v-sender-1", "event=connection-lost")
    pair.settle()
    assert pair.becomes_identical()
    assert pair.stack.log("v-applier").count("event=unknown-position") == 1


@pytest.mark.timeout(240)
def test_target_that_is_stopped_for_long_loses_no_connection(
    over_a_line: tuple[Pair, Line],
) -> None:
    pair, _ = over_a_line
    with pair.frozen("v-applier"):
        pair.client.write(0, bytes(BLOCK_BYTES))
        # Its length is what is tested: nothing is waited for by it.
        time.sleep(STOPPED_S)
    wait_for(lambda: pair.status().tail == 2, what="the second write", timeout_s=DEADLINE_S)
    assert pair.stack.log("v-sender-1").count("event=connection-lost") == 0
    assert pair.stack.log("v-reader").count("event=streaming") == 1
