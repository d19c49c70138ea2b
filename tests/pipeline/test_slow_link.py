# SPDX-License-Identifier: GPL-2.0-only
"""A link on which one batch takes longer than any limit of time: slow, and nothing is lost.

The longer form, up to four senders and scans: `make bench-slow-link`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.slow_link import Measured, measure
from tests.pipeline.line import Shape

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
