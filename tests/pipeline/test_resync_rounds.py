# SPDX-License-Identifier: GPL-2.0-only
"""Overflow, the kill of any stage during the resync, more writes: round after round.

A shorter run on the kernel module: `tests/kernel/test_resync.py`.
"""

from __future__ import annotations

import random

import pytest

from tests.pipeline.pair import MIB
from tests.pipeline.scanned import fill, survive_rounds
from tests.pipeline.test_resync_scan import MakePair, make_pair

__all__ = ["make_pair"]  # a fixture

ROUNDS = 24


@pytest.mark.timeout(600)
def test_rounds_of_overflow_and_kills_end_identical(make_pair: MakePair) -> None:
    pair = make_pair(
        size=96 * MIB,
        writes=1024,
        scanners=2,
        senders=1,
        reader_options=["--scan-rate", str(100 * MIB)],
    )
    fill(pair, 24, extents=50)
    pair.start()
    pair.wait_consistent()
    survive_rounds(pair, random.Random(24), rounds=ROUNDS)
