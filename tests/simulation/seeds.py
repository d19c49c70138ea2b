# SPDX-License-Identifier: GPL-2.0-only
"""Runs seeds: `python -m tests.simulation.seeds --seeds 1000 --start 0`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from bdr.common.errors import BdrError
from tests.simulation.source import BrokenRuleError
from tests.simulation.world import Options, World

TRACE_LINES = 400


def failure_of(seed: int, options: Options | None = None) -> str | None:
    """Runs a seed; what went wrong, or None."""
    try:
        World(seed, options).run()
    except (BrokenRuleError, BdrError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def describe(seed: int, failure: str) -> str:
    """What to print about a failing seed."""
    return f"seed {seed}: {failure}\nreplay with its trace: make simulate SEEDS=1 SEED_START={seed}"


def main() -> int:
    """Exit code 1 if any seed failed."""
    parser = argparse.ArgumentParser(description="Runs the simulator.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="past failing seeds")
    parser.add_argument("--trace-lines", type=int, default=TRACE_LINES)
    arguments = parser.parse_args()
    begun_s = time.process_time()
    failed = []
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        failure = failure_of(seed)
        if failure is None:
            continue
        failed.append(seed)
        if not arguments.keep_going:
            _print_trace(seed, arguments.trace_lines)
        print(describe(seed, failure), flush=True)
        if not arguments.keep_going:
            return 1
    took_s = time.process_time() - begun_s
    rate = arguments.seeds / took_s * 60
    print(
        f"{arguments.seeds} seeds, {len(failed)} failed, {took_s:.1f} s of CPU, {rate:.0f} a minute"
    )
    return 1 if failed else 0


def _print_trace(seed: int, lines: int) -> None:
    trace: list[str] = []
    world = World(seed, trace=trace)
    print(world.options)
    with contextlib.suppress(BrokenRuleError, BdrError, AssertionError):
        world.run()
    print(*trace[-lines:], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
