# SPDX-License-Identifier: GPL-2.0-only
"""How far a target knows its replica to be behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.target.age import WORD_S, Age
from bdr.common.target.events import MessageArrived, Send
from bdr.common.wire.control import Ack, Ping, Welcome
from bdr.common.wire.statement import NO_STATEMENT, STAMP_ORIGIN_NS, Statement
from tests.support.target_rig import (
    EPOCH,
    GENERATION,
    HELLO,
    PEER,
    RECORD,
    TargetRig,
    make_batch,
    of,
    open_session,
)

S = 10**9


def said(said_s: int, until_s: int, until_at: float | None) -> Statement:
    """A source has looked then, and its replica has everything until then."""
    stamp_ns = 0 if until_at is None else STAMP_ORIGIN_NS + int(until_at * S)
    return Statement(said_s * S, 1_000_000 + said_s * 1000, until_s * S, stamp_ns)


UNKNOWN = Statement(30 * S, 1_030_000, 0, 0)


def test_age_is_unknown_before_the_first_word() -> None:
    age = Age(as_of_utc=7)
    assert (age.seconds(100.0), age.as_of_utc, age.words) == (None, 7, 0)
    age.said(NO_STATEMENT)
    assert (age.seconds(100.0), age.as_of_utc, age.words) == (None, 7, 0)


def test_age_is_what_was_said_and_the_time_since_then() -> None:
    age = Age(as_of_utc=0)
    age.said(said(10, 8, 98.0))
    assert age.seconds(100.0) == 2.0
    assert age.seconds(103.5) == 5.5
    assert age.as_of_utc == 1008
    assert age.words == 1


def test_replica_that_lacks_nothing_is_not_behind_until_the_next_word_is_due() -> None:
    age = Age(as_of_utc=0)
    age.said(said(10, 10, 100.0))
    assert age.seconds(100.0 + WORD_S) == 0.0
    assert age.seconds(103.0) == 3.0 - WORD_S
    # A later word that it lacks something is exact.
    age.said(said(11, 10, 100.2))
    assert age.seconds(101.2) == pytest.approx(1.0)


def test_word_of_a_batch_holds_once_that_is_durable() -> None:
    age = Age(as_of_utc=0)
    age.said(said(10, 8, 98.0))
    age.accepted(1, said(11, 9, 99.0))
    age.accepted(2, NO_STATEMENT)
    age.accepted(3, said(12, 11, 101.0))
    assert age.seconds(102.0) == 4.0
    age.durable(2)
    assert (age.seconds(102.0), age.as_of_utc) == (3.0, 1009)
    age.durable(3)
    assert (age.seconds(102.0), age.as_of_utc) == (1.0, 1011)


def test_word_that_comes_late_makes_nothing_younger_that_is_unknown_since() -> None:
    age = Age(as_of_utc=0)
    age.accepted(1, said(10, 10, 100.0))
    age.said(UNKNOWN)
    assert (age.seconds(131.0), age.as_of_utc) == (None, 0)
    age.durable(1)
    assert (age.seconds(131.0), age.as_of_utc) == (None, 0)
    age.said(said(40, 39, 139.0))
    assert age.seconds(141.0) == 2.0


def test_word_that_comes_late_is_true_besides_a_later_one_that_knew_less() -> None:
    age = Age(as_of_utc=0)
    age.accepted(1, said(10, 10, 100.0))
    age.said(said(11, 8, 98.0))
    assert age.seconds(102.0) == 4.0
    age.durable(1)
    assert age.seconds(102.0) == 2.0  # not complete any more, by the later word


def test_instant_that_the_targets_clock_is_not_known_at_leaves_the_age() -> None:
    age = Age(as_of_utc=0)
    age.said(said(10, 10, None))
    assert (age.seconds(100.0), age.as_of_utc) == (None, 1010)
    age.said(said(11, 11, 101.0))
    age.said(said(12, 12, None))
    assert age.seconds(104.0) == 3.0 - WORD_S


def test_new_session_has_another_clock_and_takes_nothing_back() -> None:
    age = Age(as_of_utc=0)
    age.said(said(50, 50, 100.0))
    age.begin()
    assert age.seconds(103.0) == 3.0
    age.said(said(2, 1, 101.0))
    assert age.seconds(103.0) == 2.0
    age.said(replace_said(UNKNOWN, 3))
    assert age.seconds(103.0) is None


def replace_said(statement: Statement, said_s: int) -> Statement:
    return statement._replace(said_ns=said_s * S)


# The node.


def test_answers_bear_the_targets_clock_and_what_the_last_source_knew() -> None:
    rig = TargetRig(replace(RECORD, as_of_ns=5, as_of_utc=6))
    rig.tick(100.0)
    rig.say(HELLO)
    (welcome,) = (each.message for each in of(Send, rig.durable()))
    assert isinstance(welcome, Welcome)
    assert (welcome.as_of_ns, welcome.sent_ns) == (5, STAMP_ORIGIN_NS + 100 * S)
    rig.tick(101.0)
    (ack,) = of(Send, rig.handle(MessageArrived(PEER, Ping(EPOCH, GENERATION, 0))))
    assert isinstance(ack.message, Ack)
    assert (ack.message.as_of_utc, ack.message.sent_ns) == (6, STAMP_ORIGIN_NS + 101 * S)


def test_clock_of_a_source_that_begins_elsewhere_is_not_returned() -> None:
    rig = TargetRig(replace(RECORD, as_of_ns=5, as_of_utc=6))
    rig.say(replace(HELLO, stream=b"another-stream..", tail=0, head=9, acknowledged=0))
    (welcome,) = (each.message for each in of(Send, rig.durable()))
    assert isinstance(welcome, Welcome)
    assert welcome.as_of_ns == 0


def test_node_takes_words_of_pings_at_once_and_of_batches_with_their_jobs() -> None:
    rig = open_session()
    assert rig.node.age.seconds(100.0) is None
    rig.say(Ping(EPOCH, GENERATION, 0, said(10, 8, 98.0)))
    assert rig.node.age.seconds(100.0) == 2.0
    rig.bring(make_batch(1, 50, statement=said(10, 9, 99.0)))
    assert (rig.record.as_of_ns, rig.record.as_of_utc) == (9 * S, 1009)
    assert (rig.node.age.seconds(100.0), rig.node.age.as_of_utc) == (2.0, 1008)
    rig.durable()
    assert (rig.node.age.seconds(100.0), rig.node.age.as_of_utc) == (1.0, 1009)


def test_record_has_the_size_of_the_source() -> None:
    rig = TargetRig(replace(RECORD, source_sectors=7))
    rig.say(replace(HELLO, device_sectors=512))
    assert rig.record.source_sectors == 512


@pytest.mark.parametrize(
    ("until_s", "wanted"), [(0, 0), (10, 1010), (9, 1009)], ids=["unknown", "complete", "behind"]
)
def test_as_of_is_the_sources_wall_clock_rounded_down(until_s: int, wanted: int) -> None:
    assert said(10, until_s, None).as_of_utc == wanted
    late = Statement(10 * S, 1_010_900, max(0, until_s * S - 1), 0)
    assert late.as_of_utc <= (wanted + 0.9 if until_s else 0)
    # A wall clock that was never set.
    assert Statement(10 * S, 3, S, 0).as_of_utc == 0
