# SPDX-License-Identifier: GPL-2.0-only
"""`bdr verify` and `bdr resync`: exact where both differ, silent where they do not."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from tests.pipeline.pair import BLOCK_BYTES, MIB
from tests.pipeline.scanned import ScannedPair, fill, writing
from tests.pipeline.test_resync_scan import MakePair, make_pair

__all__ = ["make_pair"]  # a fixture


def verify(pair: ScannedPair, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and what was found."""
    done = pair.bdr("verify", "--json", *options)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_corrupted_blocks_are_found_exactly_and_repaired(make_pair: MakePair, count: int) -> None:
    pair = make_pair(size=128 * MIB)
    fill(pair, 1, extents=100)
    pair.start()
    pair.wait_consistent()
    assert pair.becomes_identical()
    rng = random.Random(count)
    blocks = sorted(rng.sample(range(pair.size // BLOCK_BYTES), count))
    with pair.target.open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK_BYTES + rng.randrange(BLOCK_BYTES))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    code, found = verify(pair)
    assert code == 1
    assert found["is_equal"] is False
    assert [
        sector // 8 + i for sector, sectors in found["differing"] for i in range(sectors // 8)
    ] == blocks
    code, found = verify(pair, "--repair")
    assert (code, found["still_differing"]) == (0, [])
    assert len(found["differing"]) > 0
    pair.wait_consistent()
    assert pair.becomes_identical()
    assert verify(pair)[0] == 0


@pytest.mark.timeout(300)
def test_busy_healthy_pair_raises_no_false_alarm_in_20_runs(make_pair: MakePair) -> None:
    pair = make_pair(size=64 * MIB)
    fill(pair, 1, extents=50)
    pair.start()
    pair.wait_consistent()
    with writing(pair, 9):
        for _ in range(20):
            code, found = verify(pair)
            assert (code, found["differing"]) == (0, []), found


def test_verify_without_a_peer_says_so(make_pair: MakePair) -> None:
    pair = make_pair()
    done = pair.bdr("verify")
    assert done.returncode == 2
    assert "no reader answers" in done.stderr
    pair.stack.add(pair.source_programs)
    done = pair.bdr("verify")
    assert done.returncode == 2
    assert "the target does not answer" in done.stderr


def test_resync_full_compares_everything_and_waits(make_pair: MakePair) -> None:
    pair = make_pair(size=64 * MIB)
    fill(pair, 2, extents=20)
    pair.start()
    pair.wait_consistent()
    before = pair.scan_report()
    with pair.target.open("r+b") as file:
        file.write(b"corrupt")
    done = pair.bdr("resync", "--full")
    assert done.returncode == 0, done.stderr
    assert pair.scan_report().compared_bytes - before.compared_bytes == pair.size
    assert pair.becomes_identical()


def test_resync_without_a_scanner_says_so(make_pair: MakePair) -> None:
    pair = make_pair(scanners=0)
    pair.start()
    pair.wait_logged("v-applier", "condition=INCONSISTENT")
    done = pair.bdr("resync")
    assert done.returncode == 2
    assert "no scanner is running" in done.stderr
