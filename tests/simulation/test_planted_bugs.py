# SPDX-License-Identifier: GPL-2.0-only
"""The checkers bite: each known bug, planted, is found by some seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.seeds import failure_of
from tests.simulation.world import Options

SEEDS_MAX = 300


def seeds_until_found(bug: Bug, seeds_max: int = SEEDS_MAX) -> tuple[int, str] | None:
    """How many seeds it took, and what the first finder said."""
    with bug.plant():
        for seed in range(seeds_max):
            failure = failure_of(seed, replace(Options.drawn(seed), **bug.focus))
            if failure is not None:
                return seed + 1, failure
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_found_and_nothing_without_it(bug: Bug) -> None:
    found = seeds_until_found(bug)
    assert found is not None, f"{bug.name} survived {SEEDS_MAX} seeds"
    seed = found[0] - 1
    assert failure_of(seed, replace(Options.drawn(seed), **bug.focus)) is None


if __name__ == "__main__":
    for each in BUGS:
        print(f"{each.name:45}", seeds_until_found(each), flush=True)
