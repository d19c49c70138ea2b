# SPDX-License-Identifier: GPL-2.0-only
"""The judge of the cuts accepts every prefix, and nothing else."""

from __future__ import annotations

import pytest

from tests.databases.ledger import Cut, Ledger

CUT = Cut(began_at=100.0, ended_at=101.0)


def ledger_of(*clients: list[tuple[float, float]]) -> Ledger:
    """Of each client, the (submitted, acknowledged) instants."""
    ledger = Ledger(len(clients))
    for client, transactions in enumerate(clients):
        ledger.submitted_at[client] = [submitted for submitted, _ in transactions]
        ledger.acknowledged_at[client] = [acknowledged for _, acknowledged in transactions]
    return ledger


TWO = ledger_of([(1, 2), (5, 6), (9, 10)], [(3, 4), (7, 8), (11, 12)])


@pytest.mark.parametrize(
    ("newest", "lost"), [({0: 3, 1: 3}, 0), ({0: 3, 1: 2}, 1), ({0: 1, 1: 1}, 4), ({}, 6)]
)
def test_a_prefix_of_what_was_committed_may_be_left(newest: dict[int, int], lost: int) -> None:
    found = TWO.judge(newest, CUT)
    assert (found.is_prefix, found.acknowledged, found.lost) == (True, 6, lost)


def test_one_that_survives_an_earlier_one_is_out_of_order() -> None:
    found = TWO.judge({0: 1, 1: 3}, CUT)
    assert found.out_of_order == ((1, 2), (1, 3))
    assert not found.is_prefix
    assert found.lost_tail_s == 94.0


def test_those_in_flight_at_the_same_time_may_be_left_in_any_order() -> None:
    overlapping = ledger_of([(1, 4)], [(2, 3)])
    assert overlapping.judge({0: 1}, CUT).is_prefix
    assert overlapping.judge({1: 1}, CUT).is_prefix


def test_one_that_was_submitted_behind_the_cut_cannot_be_there() -> None:
    late = ledger_of([(99.0, 99.5), (100.5, 100.7), (102.0, 103.0)])
    during = late.judge({0: 2}, CUT)
    assert during.is_prefix
    assert (during.acknowledged, during.lost, during.lost_tail_s) == (1, 0, 0.0)
    assert late.judge({0: 3}, CUT).later_than_cut == ((0, 3),)


def test_one_that_was_durable_on_the_target_must_be_left() -> None:
    cut = Cut(began_at=100.0, ended_at=101.0, durable_at=6.5)
    assert TWO.judge({0: 2, 1: 1}, cut).is_prefix
    found = TWO.judge({0: 1, 1: 1}, cut)
    assert (found.is_prefix, found.durable, found.lost_durable) == (False, 3, 1)


@pytest.mark.parametrize("newest", [{0: 4, 1: 3}, {2: 1}])
def test_one_that_was_never_submitted_is_unknown(newest: dict[int, int]) -> None:
    assert TWO.judge(newest, CUT).unknown


def test_order_counts_among_those_behind_the_cut_too() -> None:
    """The source lives on after the cut; what survives of that is none of its prefixes."""
    late = ledger_of([(99.0, 100.2), (100.3, 100.4)], [(100.5, 100.6)])
    assert not late.judge({1: 1}, CUT).is_prefix
