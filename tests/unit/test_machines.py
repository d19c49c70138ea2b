# SPDX-License-Identifier: GPL-2.0-only
"""Every machine's table: what may happen in each state, and what is impossible."""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import Enum, auto
from typing import Any, ClassVar

import pytest

from bdr.common.errors import InternalError
from bdr.common.machine import (
    IGNORED,
    STORY_LINE_CHARACTERS,
    STORY_LINES,
    Machine,
    Story,
    Table,
    brief,
    goes,
    stays,
)
from bdr.common.ring.layout import Mode
from bdr.common.scan import job
from bdr.common.scan.events import DigestsArrived
from bdr.common.source import consistency, events, lease, overflow, session, session_events
from bdr.common.target import before_resync
from bdr.common.target import events as target_events
from bdr.common.target import session as target_session
from bdr.common.target.hook import HookSettings
from bdr.common.target.replica import Replica
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Digests, Refused, Rewind, Welcome
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Acquire, Commit, Grant, VerifyBegin
from tests.support.source_rig import STATUS
from tests.support.target_rig import RECORD

# The kit.


class Light(Enum):
    RED = auto()
    GREEN = auto()


class Press:
    """A button."""


class Fail:
    """A lamp."""


class Lamp(Machine[Light]):
    """A machine of two states, one of whose handlers leaves the table."""

    def _toggle(self, _: Press) -> None:
        self.state = Light.GREEN

    def _break(self, _: Fail) -> None:
        self.state = Light.RED

    TABLE: ClassVar[Table[Light]] = {
        Light.RED: {Press: goes(_toggle, Light.GREEN), Fail: IGNORED},
        Light.GREEN: {Fail: stays(_break)},
    }


def test_event_of_the_table_moves_the_machine_and_is_told_in_the_story() -> None:
    story = Story()
    lamp = Lamp(Light.RED, story)
    lamp.fire(Press())
    assert lamp.state is Light.GREEN
    assert "Lamp RED <- Press: GREEN" in str(story.error("x"))


def test_ignored_event_changes_nothing() -> None:
    lamp = Lamp(Light.RED, Story())
    lamp.fire(Fail())
    assert lamp.state is Light.RED


def test_impossible_event_is_an_internal_error_with_machine_state_event_and_story() -> None:
    lamp = Lamp(Light.RED, Story())
    lamp.fire(Press())
    with pytest.raises(InternalError) as caught:
        lamp.fire(Press())
    for fact in ("Lamp", "Press", "GREEN", "Lamp RED <- Press: GREEN"):
        assert fact in str(caught.value)


def test_handler_that_leaves_the_table_is_an_internal_error() -> None:
    lamp = Lamp(Light.GREEN, Story())
    with pytest.raises(InternalError, match="GREEN -> RED"):
        lamp.fire(Fail())


def test_story_is_bounded() -> None:
    story = Story()
    for number in range(STORY_LINES + 5):
        story.add(f"{number} " + "x" * 10 * STORY_LINE_CHARACTERS)
    text = str(story.error("what"))
    assert "'4 x" not in text
    assert "'5 x" in text
    assert len(text) < STORY_LINES * (STORY_LINE_CHARACTERS + 10) + 100


def test_long_values_of_an_event_are_not_written_out() -> None:
    message = Digests(7, b"x" * 60000, DigestsRefused.NONE, "why")
    text = brief(DigestsArrived(message))
    assert "request=7" in text
    assert "'why'" in text
    assert "60000" in text
    assert len(text) < STORY_LINE_CHARACTERS
    assert "of 99" in brief(VerifyBegin(1, [(0, 1)] * 99))


# The machines.

S, C, L, J = session.Phase, Condition, lease.LeaseState, job.JobState
T = target_session.SessionState
H = before_resync.HookState

SESSION_EVENTS: set[type] = {
    events.Tick,
    events.LinkUp,
    events.LinkDown,
    Welcome,
    session_events.BadWelcome,
    session_events.OtherHistory,
    Refused,
    Rewind,
    session_events.Lost,
    session_events.Failed,
}
LEASE_EVENTS: set[type] = {
    lease.Granted,
    Commit,
    lease.EndRequested,
    lease.Numbered,
    lease.Completed,
    lease.Expired,
    lease.Lost,
}
MACHINES: dict[type[Machine[Any]], tuple[set[type], set[Any], dict[Any, set[type]]]] = {
    session.Session: (
        SESSION_EVENTS,
        {S.OFFLINE},
        {
            # Nothing is in flight then, and after the end the node takes no events.
            S.OFFLINE: {session_events.Lost},
            S.GREETING: {session_events.Lost},
            S.PAUSED: {session_events.Lost},
            S.STOPPED: SESSION_EVENTS,
        },
    ),
    consistency.Consistency: (
        {
            consistency.StatusSeen,
            consistency.ScanRequested,
            consistency.Repaired,
            consistency.Declared,
        },
        {*C},
        {
            # Only what is marked is repaired, and a scan is asked for until it may begin.
            C.UNKNOWN: {consistency.Repaired},
            C.CATCHING_UP: {consistency.Repaired},
            C.CONSISTENT: {consistency.Repaired},
            C.INCONSISTENT: {consistency.ScanRequested},
            C.UNVERIFIED: {consistency.ScanRequested},
        },
    ),
    overflow.OverflowPacing: ({overflow.StatusSeen, overflow.Resumed}, {*Mode}, {}),
    lease.Lease: (
        LEASE_EVENTS,
        {L.WAITING, L.GRANTED},
        {
            L.WAITING: {Commit, lease.EndRequested, lease.Numbered, lease.Completed},
            L.GRANTED: {lease.Granted, lease.Numbered, lease.Completed},
            L.COMMITTING: LEASE_EVENTS - {lease.Numbered, lease.Lost},
            L.COMMITTED: LEASE_EVENTS - {lease.Completed, lease.Lost},
            L.ENDING: {lease.Granted, lease.Numbered, Commit, lease.EndRequested},
            L.CLOSED: LEASE_EVENTS,
        },
    ),
    job.Job: (
        {Grant, job.Suspected, job.Compared, job.Closed},
        {J.ACQUIRING},
        {
            J.ACQUIRING: {job.Suspected, job.Compared},
            J.COMPARING: {Grant},
            J.COMPARING_BLOCKS: {Grant, job.Suspected},
            J.FINISHING: {Grant, job.Suspected, job.Compared},
            J.CLOSED: {Grant, job.Suspected, job.Compared, job.Closed},
        },
    ),
    target_session.Session: (
        {
            target_session.Admitted,
            target_session.Repeated,
            target_session.Accepted,
            target_session.Broken,
            target_session.Closed,
            target_events.Durable,
        },
        {T.NONE},
        {
            T.NONE: {target_session.Repeated, target_session.Accepted, target_session.Broken},
            T.OPENING: {target_session.Accepted, target_session.Broken},
            T.OPEN: {target_session.Repeated},
            T.BROKEN: {target_session.Repeated, target_session.Accepted, target_session.Broken},
        },
    ),
    before_resync.BeforeResync: (
        {
            before_resync.Offered,
            before_resync.RetryDue,
            target_events.Durable,
            target_events.HookEnded,
        },
        {H.IDLE},
        {
            H.IDLE: {before_resync.RetryDue, target_events.HookEnded},
            # A new session is welcomed when everything is durable: the hook runs then.
            H.WAITING: {
                before_resync.Offered,
                before_resync.RetryDue,
                target_events.HookEnded,
            },
            H.RUNNING: {before_resync.RetryDue},
            H.FAILED: {target_events.HookEnded},
            H.DONE: {before_resync.RetryDue, target_events.HookEnded},
        },
    ),
}
"""Machine to its events, the states where one may begin, and what is impossible in each."""


def make(kind: type[Machine[Any]]) -> Machine[Any]:
    """One of this kind, whatever its state."""
    story = Story()
    story.add("once upon a time")
    if kind is session.Session:
        return session.Session(volume="v", settings=session.SessionSettings(), story=story)
    if kind is consistency.Consistency:
        return consistency.Consistency(STATUS, story)
    if kind is overflow.OverflowPacing:
        return overflow.OverflowPacing(
            status=STATUS, capacity=4096, settings=overflow.OverflowSettings(), story=story
        )
    if kind is lease.Lease:
        return lease.Lease(
            number=1, peer=b"p", request=1, chunks=[], opened_at=0.0, barrier=None, story=story
        )
    if kind is job.Job:
        return job.Job(number=1, request=Acquire(1), buffer=0, requested_at=0.0, story=story)
    if kind is before_resync.BeforeResync:
        return before_resync.BeforeResync(HookSettings(), Replica(RECORD), story)
    return target_session.Session(story)


def states_of(kind: type[Machine[Any]]) -> type[Enum]:
    """The enum of its states."""
    states: type[Enum] = type(next(iter(kind.TABLE)))
    return states


def make_event(kind: type) -> object:
    """One of this kind, whatever it says."""
    wanted = [field for field in fields(kind) if field.default is MISSING]
    return kind(*[0 for _ in wanted])


@pytest.mark.parametrize("kind", MACHINES)
def test_table_has_an_entry_for_each_state_and_event_that_is_not_impossible(
    kind: type[Machine[Any]],
) -> None:
    every, _, impossible = MACHINES[kind]
    assert set(kind.TABLE) == set(states_of(kind))
    for state, edges in kind.TABLE.items():
        assert set(edges) == every - impossible.get(state, set()), state


@pytest.mark.parametrize("kind", MACHINES)
def test_every_state_can_be_reached(kind: type[Machine[Any]]) -> None:
    reached = set(MACHINES[kind][1])
    while True:
        more = {to for state in reached for edge in kind.TABLE[state].values() for to in edge.to}
        if more <= reached:
            break
        reached |= more
    assert reached == set(kind.TABLE)


@pytest.mark.parametrize(
    ("kind", "state", "event"),
    [
        pytest.param(kind, state, event, id=f"{kind.__name__}-{state.name}-{event.__name__}")
        for kind, (_, _, impossible) in MACHINES.items()
        for state, events_ in impossible.items()
        for event in sorted(events_, key=lambda each: each.__name__)
    ],
)
def test_impossible_event_raises_with_the_story(
    kind: type[Machine[Any]], state: Any, event: type
) -> None:
    machine = make(kind)
    machine.state = state
    with pytest.raises(InternalError) as caught:
        machine.fire(make_event(event))
    for fact in (kind.__name__, state.name, event.__name__, "once upon a time"):
        assert fact in str(caught.value)
    assert machine.state is state


@pytest.mark.parametrize("kind", MACHINES)
def test_ignored_event_has_no_effect_in_any_state(kind: type[Machine[Any]]) -> None:
    for state, edges in kind.TABLE.items():
        for event, edge in edges.items():
            if edge is IGNORED:
                machine = make(kind)
                machine.state = state
                before = dict(vars(machine))
                machine.fire(make_event(event))
                assert vars(machine) == before


@pytest.mark.parametrize("kind", MACHINES)
def test_states_of_the_end_lead_nowhere(kind: type[Machine[Any]]) -> None:
    for end in (S.STOPPED, L.CLOSED, J.CLOSED):
        assert not any(edge.to or edge.handler for edge in kind.TABLE.get(end, {}).values())
