# SPDX-License-Identifier: GPL-2.0-only
"""Overflow, the kill of any stage during the resync, more writes: round after round."""

from __future__ import annotations

import random

import pytest

from common.ring import Mode
from deploy.command import wait_for
from tests.pipeline.pair import DEADLINE_S, MIB
from tests.pipeline.test_resync_scan import MakePair, fill, make_pair

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
    rng = random.Random(24)
    fill(pair, 24, extents=50)
    pair.start()
    pair.wait_consistent()
    stages = pair.stages()
    for _ in range(ROUNDS):
        overflows = pair.status().overflows
        with pair.frozen("v-applier"):
            while pair.status().overflows == overflows:
                pair.scribble(rng, 50)
            pair.scribble(rng, rng.randrange(200))
        wait_for(lambda: pair.status().mode is Mode.STREAM, what="the resync", timeout_s=DEADLINE_S)
        pair.kill(rng.choice(stages))
        pair.scribble(rng, 50)
        pair.wait_consistent()
        assert pair.becomes_identical()
