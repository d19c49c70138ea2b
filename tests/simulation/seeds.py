# SPDX-License-Identifier: GPL-2.0-only
"""Runs seeds: `python -m tests.simulation.seeds --seeds 1000 --start 0`.

Prints what they have exercised: how often each fault struck, and which transitions of the
machines' tables were reached.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from bdr.common.errors import BdrError
from tests.simulation.coverage import Transition, every_transition, recorded
from tests.simulation.options import Options
from tests.simulation.source import BrokenRuleError
from tests.simulation.world import World

TRACE_LINES = 400
SEEDS_A_TASK = 20


@dataclass
class Tally:
    """What some seeds have shown."""

    failures: dict[int, str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    transitions: Counter[Transition] = field(default_factory=Counter)
    cpu_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes another's in."""
        self.failures |= other.failures
        self.faults += other.faults
        self.transitions += other.transitions
        self.cpu_s += other.cpu_s


def failure_of(seed: int, options: Options | None = None) -> str | None:
    """Runs a seed; what went wrong, or None."""
    return _failure(World(seed, options))


def _failure(world: World) -> str | None:
    try:
        world.run()
    except (BrokenRuleError, BdrError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def tally(seeds: range) -> Tally:
    """Runs these seeds."""
    found = Tally()
    begun_at = time.process_time()
    with recorded(found.transitions):
        for seed in seeds:
            world = World(seed)
            failure = _failure(world)
            if failure is not None:
                found.failures[seed] = failure
            found.faults += world.faults.counts
    found.cpu_s = time.process_time() - begun_at
    return found


def describe(seed: int, failure: str) -> str:
    """What to print about a failing seed."""
    return f"seed {seed}: {failure}\nreplay with its trace: make simulate SEEDS=1 SEED_START={seed}"


def main() -> int:
    """Exit code 1 if any seed failed, or a transition that must be reached was not."""
    parser = argparse.ArgumentParser(description="Runs the simulator.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--keep-going", action="store_true", help="past failing seeds")
    parser.add_argument("--trace-lines", type=int, default=TRACE_LINES)
    parser.add_argument(
        "--every-transition", action="store_true", help="fail if one is never reached"
    )
    arguments = parser.parse_args()
    end = arguments.start + arguments.seeds
    tasks = [
        range(at, min(at + SEEDS_A_TASK, end)) for at in range(arguments.start, end, SEEDS_A_TASK)
    ]
    total = Tally()
    with multiprocessing.Pool(min(arguments.jobs, len(tasks))) as pool:
        for found in pool.imap_unordered(tally, tasks):
            total.add(found)
            for seed, failure in found.failures.items():
                print(describe(seed, failure), flush=True)
            if found.failures and not arguments.keep_going:
                _print_trace(min(found.failures), arguments.trace_lines)
                return 1
    missing = _print(arguments.seeds, total)
    return 1 if total.failures or (missing and arguments.every_transition) else 0


def _print(seeds: int, total: Tally) -> list[Transition]:
    rate = seeds / total.cpu_s * 60
    print(
        f"{seeds} seeds, {len(total.failures)} failed, {total.cpu_s:.0f} s of CPU, {rate:.0f} a "
        "minute of it"
    )
    print("faults: " + ", ".join(f"{name} {count}" for name, count in total.faults.most_common()))
    possible = every_transition()
    missing = sorted(possible - total.transitions.keys())
    reached = len(possible) - len(missing)
    print(f"transitions: {reached} of {len(possible)} reached")
    for machine, before, event, after in missing:
        print(f"  never: {machine}: {before} <- {event}: {after}")
    return missing


def _print_trace(seed: int, lines: int) -> None:
    trace: list[str] = []
    world = World(seed, trace=trace)
    print(world.options)
    with contextlib.suppress(BrokenRuleError, BdrError, AssertionError):
        world.run()
    print(*trace[-lines:], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
