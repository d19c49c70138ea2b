# SPDX-License-Identifier: GPL-2.0-only
"""Requests for checksums: which are refused, and when the others are taken up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.target.checksums import RANGE_SECTORS_MAX, REQUESTS_MAX
from bdr.common.target.events import Action, DigestsMade, MakeDigests
from bdr.common.wire.codec import DIGESTS_MAX, RANGES_MAX, Range
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.reasons import DigestsRefused
from tests.support.target_rig import (
    EPOCH,
    HELLO,
    RECORD,
    TargetRig,
    damaged,
    jobs,
    make_batch,
    messages,
    of,
    open_session,
)

SCANNER = b"scanner"
SECTORS = 1 << 20
BIG = replace(RECORD, device_sectors=SECTORS)


def ask(
    rig: TargetRig,
    number: int = 1,
    *,
    epoch: int = EPOCH,
    block_sectors: int = 0,
    ranges: list[Range] | None = None,
) -> list[Action]:
    ranges = [(0, 8)] if ranges is None else ranges
    return rig.say(Checksums(number, epoch, block_sectors, ranges), SCANNER)


def refused(actions: list[Action]) -> DigestsRefused:
    """Why; the answer has no digests."""
    (answer,) = messages(actions)
    assert isinstance(answer, Digests)
    assert answer.digests == b""
    assert answer.text
    assert of(MakeDigests, actions) == []
    return answer.refused


def made(actions: list[Action]) -> list[int]:
    """Numbers of the requests that are taken up."""
    return [action.request.request for action in of(MakeDigests, actions)]


def test_request_is_taken_up_at_once_when_nothing_waits_for_the_disk() -> None:
    rig = open_session()
    request = Checksums(1, EPOCH, 8, [(0, 8), (64, 8)])
    assert rig.say(request, SCANNER) == [MakeDigests(SCANNER, request)]


def test_request_waits_until_what_was_accepted_before_it_is_durable() -> None:
    rig = open_session()
    (first,) = jobs(rig.bring(make_batch(1, 50)))
    assert ask(rig, 1) == []
    rig.bring(make_batch(2, 51))
    assert ask(rig, 2) == []
    assert made(rig.durable(first.number)) == [1]
    assert made(rig.durable()) == [2]
    assert made(rig.durable()) == []


def test_requests_are_taken_up_in_their_order() -> None:
    rig = open_session()
    rig.bring(make_batch(1, 50))
    assert [ask(rig, number) for number in (3, 1, 2)] == [[], [], []]
    assert made(rig.durable()) == [3, 1, 2]


def test_acknowledgement_goes_before_the_requests_that_waited() -> None:
    rig = open_session()
    rig.bring(make_batch(1, 50))
    ask(rig)
    assert [type(action).__name__ for action in rig.durable()] == ["Send", "MakeDigests"]


def test_digests_go_to_the_peer_that_asked() -> None:
    rig = open_session()
    ask(rig)
    digests = Digests(1, bytes(16), DigestsRefused.NONE, "")
    (action,) = rig.handle(DigestsMade(SCANNER, digests))
    assert (action.peer, action.message) == (SCANNER, digests)  # type: ignore[union-attr]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_request_of_another_epoch_is_refused_for_now(epoch: int) -> None:
    assert refused(ask(open_session(), epoch=epoch)) is DigestsRefused.NO_SESSION
    assert not DigestsRefused.NO_SESSION.is_permanent


def test_request_is_refused_for_now_where_no_session_is_open() -> None:
    rig = TargetRig()
    assert refused(ask(rig, epoch=rig.record.epoch)) is DigestsRefused.NO_SESSION
    rig.say(HELLO)
    assert refused(ask(rig)) is DigestsRefused.NO_SESSION
    rig.durable()
    assert made(ask(rig)) == [1]
    rig.bring(damaged(make_batch(1, 50)))
    assert refused(ask(rig)) is DigestsRefused.NO_SESSION


@pytest.mark.parametrize(
    ("ranges", "block_sectors"),
    [
        ([(0, 0)], 0),
        ([(0, RANGE_SECTORS_MAX + 1)], 0),
        ([(SECTORS, 1)], 0),
        ([(SECTORS - 7, 8)], 0),
        ([((1 << 64) - 1, 8)], 0),
        ([((1 << 64) - 1, (1 << 64) - 1)], 8),
        ([(0, 8), (SECTORS - 7, 8)], 8),
        ([(0, 8)] * (RANGES_MAX + 1), 0),
        ([(0, 960)] * 3 + [(0, 961)], 1),  # one digest more than an answer holds
    ],
)
def test_request_that_never_can_be_answered_is_refused_for_good(
    ranges: list[Range], block_sectors: int
) -> None:
    found = refused(ask(open_session(BIG), ranges=ranges, block_sectors=block_sectors))
    assert found is DigestsRefused.BAD_RANGES
    assert found.is_permanent


@pytest.mark.parametrize(
    ("ranges", "block_sectors"),
    [
        ([], 0),
        ([(8 * at, 8) for at in range(RANGES_MAX)], 0),
        ([(SECTORS - RANGE_SECTORS_MAX, RANGE_SECTORS_MAX)], 8),
        ([(0, 960)] * 4, 1),
        ([(0, 8)], (1 << 64) - 1),
    ],
)
def test_request_that_fits_is_taken(ranges: list[Range], block_sectors: int) -> None:
    assert DIGESTS_MAX == 4 * 960
    assert made(ask(open_session(BIG), ranges=ranges, block_sectors=block_sectors)) == [1]


def test_requests_beyond_a_limit_are_refused_for_now_until_some_are_answered() -> None:
    """Those that wait for the disk and those that are worked on, together."""
    rig = open_session()
    for number in range(REQUESTS_MAX // 2):
        assert made(ask(rig, number)) == [number]
    rig.bring(make_batch(1, 50))
    for number in range(REQUESTS_MAX // 2, REQUESTS_MAX):
        assert ask(rig, number) == []
    found = refused(ask(rig, 999))
    assert found is DigestsRefused.BUSY
    assert not found.is_permanent
    rig.handle(DigestsMade(SCANNER, Digests(0, b"", DigestsRefused.NONE, "")))
    assert ask(rig, 1000) == []
    assert len(made(rig.durable())) == REQUESTS_MAX // 2 + 1
    assert refused(ask(rig, 1001)) is DigestsRefused.BUSY


def test_requests_are_answered_though_their_session_ended_meanwhile() -> None:
    """What the answer is worth is for the scanner to say, whose lease is of that epoch."""
    rig = open_session()
    rig.bring(make_batch(1, 50))
    ask(rig)
    rig.say(HELLO)
    assert made(rig.durable()) == [1]
