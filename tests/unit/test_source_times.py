# SPDX-License-Identifier: GPL-2.0-only
"""What a source says of the time up to which its replica lacks nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bdr.common.capture.api import CaptureStatus
from bdr.common.ring.layout import MISSED_NOTHING, MISSED_UNKNOWN
from bdr.common.source.events import LinkUp, Tick
from bdr.common.source.target_clock import KEPT_NS, TargetClock
from bdr.common.source.times import Times
from bdr.common.wire.batch import BatchKind, Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Ping, Welcome
from bdr.common.wire.statement import NO_STATEMENT, STAMP_ORIGIN_NS, Statement
from tests.support.source_rig import EPOCH, STATUS, TARGET, SourceRig, messages, streaming

S = 10**9
AHEAD_NS = STAMP_ORIGIN_NS + 500 * S
"""The target's stamp at the capture's clock 0."""
AT = replace(STATUS, head=100, tail=100, clock_ns=10 * S, marks=1)


def see(
    times: Times, status: CaptureStatus = AT, *, now_at: float = 0.0, is_prefix: bool = True
) -> None:
    times.see(status, [(0, S)], now_at=now_at, now_utc_ms=7, is_prefix=is_prefix)


def begun(**changes: Any) -> Times:
    """A session has begun, of a replica that is a prefix."""
    times = Times()
    see(times, replace(AT, **changes))
    stamp_ns = AHEAD_NS + 10 * S
    times.begin(is_prefix=True, as_of_ns=0, stamp_ns=stamp_ns, now_at=0.0)
    return times


# The target's clock.


def test_stamp_of_an_instant_is_the_best_that_an_answer_has_shown() -> None:
    clock = TargetClock()
    assert clock.stamp_ns(5 * S) == 0
    clock.heard(AHEAD_NS + 10 * S, 12 * S)  # 2 s under way
    assert clock.stamp_ns(5 * S) == AHEAD_NS + 3 * S
    clock.heard(AHEAD_NS + 12 * S, 12 * S + 5)
    clock.heard(AHEAD_NS + 12 * S, 14 * S)
    assert clock.stamp_ns(5 * S) == AHEAD_NS + 5 * S - 5
    clock.heard(0, 14 * S)
    assert clock.stamp_ns(5 * S) == AHEAD_NS + 5 * S - 5


def test_old_answers_are_forgotten_so_that_a_clock_may_fall_back() -> None:
    clock = TargetClock()
    clock.heard(AHEAD_NS + S, S)
    for at in range(1, 4):
        # Its host was suspended for a minute.
        now_ns = S + at * KEPT_NS
        clock.heard(AHEAD_NS - 60 * S + now_ns, now_ns)
    assert clock.stamp_ns(5 * S) == AHEAD_NS - 55 * S


def test_stamp_that_no_clock_can_have_is_unknown() -> None:
    clock = TargetClock()
    clock.heard(1, 10 * S)
    assert clock.stamp_ns(5 * S) == 0
    clock.forget()
    clock.heard((1 << 64) - 1, 0)
    assert clock.stamp_ns(5 * S) == 0


# Statements.


def test_replica_that_has_everything_is_complete_as_of_the_look() -> None:
    said = begun().statement(100, is_prefix=True)
    assert said == Statement(10 * S, 7, 10 * S, AHEAD_NS + 10 * S)
    assert said.is_complete


def test_replica_that_lacks_slots_is_complete_up_to_the_first_of_them() -> None:
    said = begun().statement(60, is_prefix=True)
    assert said == Statement(10 * S, 7, S, AHEAD_NS + S)
    assert not said.is_complete


def test_nothing_is_known_before_the_first_welcome() -> None:
    times = Times()
    assert times.statement(100, is_prefix=False) == NO_STATEMENT
    see(times, is_prefix=False)
    assert times.missed_since_ns == MISSED_UNKNOWN
    assert times.statement(100, is_prefix=False) == Statement(10 * S, 7, 0, 0)


def test_what_was_missed_is_missing_until_the_replica_is_a_prefix_again() -> None:
    times = begun()
    see(times, replace(AT, missed_since_ns=4 * S), is_prefix=True)
    see(times, replace(AT, missed_since_ns=MISSED_NOTHING), is_prefix=False)
    assert times.missed_since_ns == 4 * S
    assert times.statement(100, is_prefix=False).until_ns == 4 * S
    # That of the CONSISTENT marker holds once it is durable.
    assert times.statement(100, is_prefix=True).until_ns == 10 * S
    see(times, replace(AT, missed_since_ns=9 * S), is_prefix=False)
    assert times.missed_since_ns == 4 * S
    see(times, replace(AT, missed_since_ns=MISSED_UNKNOWN), is_prefix=False)
    assert times.statement(100, is_prefix=False).until_ns == 0
    see(times, is_prefix=True)
    assert times.missed_since_ns == MISSED_NOTHING


def test_reader_that_begins_within_a_scan_learns_since_when_from_the_target() -> None:
    for as_of_ns, found_ns, wanted_ns in (
        (3 * S, MISSED_NOTHING, 3 * S),
        (3 * S, 5 * S, 3 * S),
        (0, 5 * S, MISSED_UNKNOWN),
        (3 * S, MISSED_UNKNOWN, MISSED_UNKNOWN),
    ):
        times = Times()
        see(times, replace(AT, missed_since_ns=found_ns), is_prefix=False)
        times.begin(is_prefix=False, as_of_ns=as_of_ns, stamp_ns=1, now_at=0.0)
        assert times.missed_since_ns == wanted_ns


def test_jump_of_the_clock_makes_the_targets_unknown_until_it_answers() -> None:
    times = begun()
    see(times, replace(AT, clock_ns=11 * S), now_at=1.0)
    assert times.statement(100, is_prefix=True).until_at_ns == AHEAD_NS + 11 * S
    # The source's host was suspended.
    see(times, replace(AT, clock_ns=3600 * S), now_at=1.25)
    assert times.statement(100, is_prefix=True) == Statement(3600 * S, 7, 3600 * S, 0)
    times.heard(AHEAD_NS + 12 * S, 1.5)
    assert times.statement(100, is_prefix=True).until_at_ns == AHEAD_NS + 12 * S - S // 4


# The node's messages.


def clocked(**changes: Any) -> SourceRig:
    rig = SourceRig(replace(STATUS, clock_ns=10 * S, marks=1, **changes))
    rig.capture.table = [(40, 9 * S), (70, 9 * S + S // 2)]
    rig.look(marks=2)
    for _ in range(2):
        rig.capture.publish(30)
    rig.handle(LinkUp())
    return rig


def test_batch_bears_the_clocks_of_its_slots_and_what_it_makes_of_the_replica() -> None:
    rig = clocked()
    rig.welcome(40)
    rig.handle(Tick(0.5, 77))
    header = rig.next_batch()
    assert header is not None
    assert (header.first, header.end) == (40, 100)
    assert (header.not_before_ns, header.not_after_ns) == (9 * S, 10 * S)
    assert header.statement[2] == header.statement.said_ns == 10 * S


def test_batch_is_cut_where_marks_lie_far_apart() -> None:
    rig = clocked()
    rig.capture.table = [(40, 9 * S), (70, 19 * S)]
    rig.look(marks=3, clock_ns=20 * S)
    rig.welcome(40)
    first, second = rig.next_batch(), rig.next_batch()
    assert first is not None
    assert second is not None
    assert (first.first, first.count, second.first) == (40, 30, 70)
    assert (second.not_before_ns, first.statement.until_ns) == (19 * S, 19 * S)


def test_ping_follows_a_look_and_says_what_is_durable() -> None:
    rig = clocked()
    rig.handle(Tick(0.0, 77))
    rig.welcome(40)
    rig.next_batch()
    (ping,) = messages(rig.look(clock_ns=10 * S) + rig.tick(0.75))
    assert isinstance(ping, Ping)
    assert ping.statement.until_ns == 9 * S
    rig.hear(Ack(EPOCH, 1, 1, Condition.CONSISTENT, 0, 0, 0, AHEAD_NS + 10 * S))
    (ping,) = messages(rig.tick(1.5))
    assert isinstance(ping, Ping)
    assert ping.statement.is_complete
    assert ping.statement.until_at_ns > STAMP_ORIGIN_NS


def test_markers_speak_of_time_and_repairs_do_not() -> None:
    rig = streaming(replace(STATUS, resync_regions=1, missed_since_ns=1))
    assert rig.node.order.times.missed_since_ns == 1
    rig.node.order.request_scan()
    header = rig.next_batch()
    assert header is not None
    while header.marker is not Marker.INCONSISTENT:
        header = rig.dispatch(60)
    assert header.statement.said_ns
    repair = rig.node.order.number_resync(1)
    assert (repair.kind, repair.statement) == (BatchKind.RESYNC, NO_STATEMENT)


def test_welcome_within_a_scan_tells_a_reader_since_when_something_is_missing() -> None:
    rig = clocked()
    attempt = rig.node.session.attempt
    rig.hear(Welcome(attempt, EPOCH, 1, 40, 0, Condition.INCONSISTENT, TARGET, (), 6 * S, AHEAD_NS))
    assert rig.node.order.times.missed_since_ns == 6 * S
