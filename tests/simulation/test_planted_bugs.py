# SPDX-License-Identifier: GPL-2.0-only
"""The checkers bite: each known bug, planted, is found by some seed.

python -m tests.simulation.test_planted_bugs [NAME...]     how many seeds each took
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.options import Options
from tests.simulation.seeds import failure_of

SEEDS_MAX = 500

for _file in sorted(Path(__file__).parent.glob("bugs_*.py")):
    import_module(f"tests.simulation.{_file.stem}")  # it fills the list


def options_of(bug: Bug, seed: int) -> Options:
    return replace(Options.drawn(seed), **bug.focus)


def seeds_until_found(bug: Bug, seeds_max: int = SEEDS_MAX) -> tuple[int, str] | None:
    """How many seeds it took, and what the first finder said."""
    with bug.plant():
        for seed in range(seeds_max):
            failure = failure_of(seed, options_of(bug, seed))
            if failure is not None:
                return seed + 1, failure
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_found_and_nothing_without_it(bug: Bug) -> None:
    found = seeds_until_found(bug)
    assert found is not None, f"{bug.name} survived {SEEDS_MAX} seeds"
    seed = found[0] - 1
    assert failure_of(seed, options_of(bug, seed)) is None


if __name__ == "__main__":
    for each in BUGS:
        if not sys.argv[1:] or each.name in sys.argv[1:]:
            print(f"{each.name:60}", seeds_until_found(each), flush=True)
