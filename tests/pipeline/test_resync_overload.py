# SPDX-License-Identifier: GPL-2.0-only
"""Writes that are faster than the link: no flapping, nobody waits, and it heals."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deploy.command import wait_for
from tests.pipeline.overload import Load, over_a_link
from tests.pipeline.pair import DEADLINE_S, MIB

OVERFLOWS = 5
PAUSES_S = 0 + 1 + 2 + 4
"""What lies between the beginnings of so many, at least: common/source/overflow.py."""


@pytest.mark.timeout(240)
def test_overload_does_not_flap_and_heals_when_the_load_falls_below_the_link_rate(
    directory: Path,
) -> None:
    with over_a_link(directory, size=16 * MIB, writes=512, link_rate=2 * MIB) as (pair, _):
        load = Load(pair, rate=32 * MIB)
        try:
            wait_for(lambda: pair.status().overflows > 0, what="overflow", timeout_s=DEADLINE_S)
            began_at = time.monotonic()
            wait_for(
                lambda: pair.status().overflows >= OVERFLOWS,
                what=f"{OVERFLOWS} overflows",
                timeout_s=DEADLINE_S,
            )
            assert time.monotonic() - began_at > PAUSES_S - 1
            # Under load still, but less than the link takes.
            load.rate = MIB / 2
            pair.wait_logged("v-reader", "event=condition condition=INCONSISTENT")
            wait_for(
                lambda: (
                    not pair.status().resync_regions
                    and not pair.status().active_regions
                    and pair.condition() == "CONSISTENT"
                ),
                what="a consistent replica under the smaller load",
                timeout_s=90,
            )
        finally:
            load.stop()
        # The application has waited for its disk only.
        assert load.slowest_s < 2
        pair.wait_consistent()
        assert pair.becomes_identical()
