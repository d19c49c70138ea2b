# SPDX-License-Identifier: GPL-2.0-only
"""A blank or stale target becomes a replica by itself, under live writes and kills."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.command import wait_for
from tests.pipeline.pair import BLOCK_BYTES, DEADLINE_S, MIB
from tests.pipeline.scanned import ScannedPair, fill, writing

MakePair = Callable[..., ScannedPair]


@pytest.fixture
def make_pair(directory: Path) -> Iterator[MakePair]:
    with contextlib.ExitStack() as stack:

        def make(**settings: object) -> ScannedPair:
            return stack.enter_context(ScannedPair(directory, **settings))  # type: ignore[arg-type]

        yield make


@pytest.mark.parametrize("options", [[], ["--journal", "none"]], ids=["journal", "none"])
def test_blank_target_becomes_a_replica_under_live_writes(
    make_pair: MakePair, options: list[str]
) -> None:
    pair = make_pair(size=128 * MIB, scanners=2, applier_options=options)
    fill(pair, 1, extents=40)
    with pair.target.open("r+b") as file:
        file.write(b"something else" * 100_000)
    pair.adopt()
    pair.start()
    with writing(pair, 2):
        pair.wait_logged("v-applier", "condition=CONSISTENT")
    pair.wait_consistent()
    assert pair.becomes_identical()
    assert pair.stack.log("v-applier").count("condition=UNKNOWN") == 2  # found, and welcomed


def test_overflow_is_repaired_by_moving_what_changed(make_pair: MakePair) -> None:
    pair = make_pair(size=256 * MIB, writes=1024)
    fill(pair, 1, extents=200)
    pair.start()
    pair.wait_consistent()
    rng = random.Random(3)
    before = pair.scan_report()
    with pair.frozen("v-applier"):
        while pair.status().overflows == 0:
            pair.client.write(0, rng.randbytes(MIB))
        places = [rng.randrange(pair.size // BLOCK_BYTES) * BLOCK_BYTES for _ in range(30)]
        for place in places:
            pair.client.write(place, rng.randbytes(BLOCK_BYTES))
    pair.wait_consistent()
    assert pair.becomes_identical()
    report = pair.scan_report()
    assert report.compared_bytes - before.compared_bytes <= (30 + 32) * 65536
    assert report.repaired_bytes - before.repaired_bytes <= 2 * MIB
    said = pair.stack.log("v-applier")
    assert said.count("event=condition condition=UNVERIFIED") == 1
    assert said.count("event=condition condition=INCONSISTENT") == 1


@pytest.mark.timeout(300)
def test_kills_of_every_stage_during_a_scan_lose_nothing(make_pair: MakePair) -> None:
    pair = make_pair(
        size=256 * MIB, scanners=2, reader_options=["--scan-rate", str(40 * MIB)], senders=1
    )
    fill(pair, 4, extents=300)
    pair.start()
    wait_for(lambda: pair.status().resync_regions > 0, what="the scan", timeout_s=DEADLINE_S)

    def has_less_than(regions: int) -> bool:
        return pair.status().resync_regions < regions

    with writing(pair, 5):
        for stage in ("v-scanner-1", "v-applier", "v-reader", "v-sender-1", "v-scanner-2"):
            left = pair.status().resync_regions
            wait_for(
                partial(has_less_than, left),
                what=f"progress before the kill of {stage}",
                timeout_s=DEADLINE_S,
            )
            pair.kill(stage)
    pair.wait_consistent(120)
    assert pair.becomes_identical()
    # A known target that goes on needs no full scan.
    assert pair.stack.log("v-applier").count("event=unknown-position") == 1


def test_scanner_that_comes_late_finds_all_that_was_missed(make_pair: MakePair) -> None:
    pair = make_pair(scanners=1)
    pair.start()
    pair.wait_consistent()
    pair.stack.stop("v-scanner-1")
    rng = random.Random(6)
    for _ in range(2):
        overflows = pair.status().overflows
        with pair.frozen("v-applier"):
            while pair.status().overflows == overflows:
                pair.scribble(rng, 100)
            pair.scribble(rng, 100)
        wait_for(lambda: pair.status().mode.name == "STREAM", what="STREAM", timeout_s=DEADLINE_S)
    pair.settle()
    assert pair.status().resync_regions > 0
    pair.stack.start("v-scanner-1")
    pair.wait_consistent()
    assert pair.becomes_identical()


def test_assumed_clean_pair_is_not_scanned(make_pair: MakePair) -> None:
    pair = make_pair(reader_options=["--assume-clean"])
    pair.start()
    pair.scribble(random.Random(7), 100)
    pair.wait_consistent()
    assert pair.scan_report().compared_bytes == 0
    assert "event=assume-clean" in pair.stack.log("v-reader")
    assert pair.becomes_identical()


def test_frozen_scanner_holds_nothing_up(make_pair: MakePair) -> None:
    pair = make_pair(size=96 * MIB, scanners=2, reader_options=["--scan-rate", str(20 * MIB)])
    fill(pair, 8, extents=100)
    pair.start()
    wait_for(lambda: 0 < pair.status().resync_regions < 1400, what="progress", timeout_s=DEADLINE_S)
    with pair.frozen("v-scanner-1"):
        pair.wait_consistent(90)
    assert pair.becomes_identical()


@pytest.mark.timeout(300)
def test_mostly_empty_device_moves_little_more_than_its_data(make_pair: MakePair) -> None:
    """8 GiB of which 1 GiB is there; the rest is holes, which cost no bytes."""
    pair = make_pair(size=8 << 30, writes=65536)
    block = random.Random(1).randbytes(MIB)
    with pair.source.open("r+b") as file:
        for at in range(1024):
            file.seek(at * 8 * MIB)
            file.write(at.to_bytes(4, "little") + block[4:])
    pair.start()
    with writing(pair, 2):
        pair.wait_logged("v-applier", "condition=CONSISTENT")
    pair.wait_consistent()
    assert pair.becomes_identical()
    # Live writes have replaced a little of it.
    assert 900 * MIB < pair.scan_report().repaired_bytes < 1100 * MIB
