# SPDX-License-Identifier: GPL-2.0-only
"""The protocol under faults: 2,000 seeds, each another world."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import describe, failure_of

SEEDS = 2000
SEEDS_A_TEST = 50


@pytest.mark.parametrize("start", range(0, SEEDS, SEEDS_A_TEST))
def test_seeds_keep_every_promise(start: int) -> None:
    for seed in range(start, start + SEEDS_A_TEST):
        failure = failure_of(seed)
        assert failure is None, describe(seed, failure or "")
