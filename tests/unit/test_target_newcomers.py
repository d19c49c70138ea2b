# SPDX-License-Identifier: GPL-2.0-only
"""A newcomer at a target while the session of another process may live."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bdr.common.target.events import Action
from bdr.common.wire.control import Hello
from bdr.common.wire.reasons import RefusedReason
from tests.support.target_rig import (
    EPOCH,
    HELLO,
    OLDER,
    OTHER_STREAM,
    PEER,
    TargetRig,
    open_session,
    refusal_of,
    welcome,
)

NEWCOMER = b"newcomer"
REVERTED = replace(HELLO, generations=(OLDER,))


# Another session that lives.


@pytest.mark.parametrize("hello", [HELLO, replace(HELLO, stream=OTHER_STREAM)])
@pytest.mark.parametrize("is_open", [False, True])
def test_newcomer_waits_while_a_session_lives_and_that_session_is_asked(
    hello: Hello, is_open: bool
) -> None:
    rig = TargetRig()
    rig.tick(100.0)
    rig.say(HELLO)
    if is_open:
        rig.durable()
    actions = rig.say(hello, NEWCOMER)
    assert refusal_of(actions).reason is RefusedReason.BUSY
    assert [each.peer for each in of_send(actions)] == [PEER, NEWCOMER]
    assert rig.record.epoch == EPOCH


def of_send(actions: list[Action]) -> list[Any]:
    """What is sent, in its order."""
    return [action for action in actions if hasattr(action, "peer")]


@pytest.mark.parametrize("is_open", [False, True])
def test_newcomer_is_let_in_when_the_session_has_lost_its_peer(is_open: bool) -> None:
    rig = TargetRig()
    rig.tick(100.0)
    rig.say(HELLO)
    if is_open:
        rig.durable()
    rig.lose()
    assert welcome(rig, peer=NEWCOMER).epoch == EPOCH + 1


def test_peer_that_is_lost_and_is_none_of_the_sessions_changes_nothing() -> None:
    rig = open_session()
    rig.lose(b"scanner")
    assert refusal_of(rig.say(HELLO, NEWCOMER)).reason is RefusedReason.BUSY


def test_peer_that_was_lost_says_nothing_of_the_next_session() -> None:
    rig = open_session()
    rig.lose()
    welcome(rig, peer=NEWCOMER)
    assert refusal_of(rig.say(HELLO, b"third")).reason is RefusedReason.BUSY


def test_newcomer_is_let_in_after_two_seconds_without_a_message() -> None:
    rig = open_session()
    rig.pass_time(100, 101)
    rig.tick(101.75)
    assert refusal_of(rig.say(HELLO, NEWCOMER)).reason is RefusedReason.BUSY
    rig.tick(102.0)
    assert welcome(rig, peer=NEWCOMER).epoch == EPOCH + 1


def test_newcomer_is_let_in_at_once_by_a_process_that_has_just_begun() -> None:
    """A session of before its start is over for both."""
    assert welcome(TargetRig(), replace(HELLO, stream=OTHER_STREAM), NEWCOMER).slot == 40


def test_same_peer_begins_anew_whatever_it_sent_before() -> None:
    assert welcome(open_session()).epoch == EPOCH + 1


# Epochs.


def test_process_begins_at_an_epoch_that_one_which_went_back_did_not_give_out() -> None:
    rig = TargetRig(stride=1000)
    assert welcome(rig).epoch == EPOCH + 1000
    rig.lose()
    assert welcome(rig, peer=NEWCOMER).epoch == EPOCH + 1001


def test_nonce_of_a_process_is_its_own() -> None:
    found = {refusal_of(TargetRig(nonce=nonce).say(REVERTED)).nonce for nonce in (1, 1000)}
    assert len(found) == 2
