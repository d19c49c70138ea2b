# SPDX-License-Identifier: GPL-2.0-only
"""No age is younger than true, through kills of every stage, an overflow and a scan."""

from __future__ import annotations

import os

import pytest

from tests.pipeline.ages import RPO_S, judge, settings
from tests.pipeline.hosts import MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture

ROUNDS = int(os.environ.get("BDR_TEST_AGE_ROUNDS", "1"))


@pytest.mark.timeout(240)
def test_age_is_never_younger_than_true_and_0_at_rest(make_hosts: MakeHosts) -> None:
    chosen, ports = settings()
    hosts = make_hosts(**chosen)
    hosts.start()
    witness = judge(hosts, ports, rounds=ROUNDS)
    # Monitors that begin do not answer, and a target that is away says nothing.
    assert witness.known > witness.looks / 4
    true_s, said_s = witness.most_s["source"]
    assert min(true_s, said_s) > RPO_S
    assert "target" in witness.most_s
