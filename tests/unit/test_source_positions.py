# SPDX-License-Identifier: GPL-2.0-only
"""A source's position: the proof of the last batch, its counters, generation and assumption.

What the capture is told comes before what depends on it: the order of actions counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bdr.common.errors import RefusedError
from bdr.common.source import events
from bdr.common.source.events import (
    Action,
    Announce,
    ClearRegions,
    Dispatch,
    GenerationSaved,
    LinkDown,
    LinkUp,
    Release,
    Reply,
    SaveAssumption,
    SaveGeneration,
    Stop,
)
from bdr.common.source.greeting import Assumption
from bdr.common.source.session import Phase
from bdr.common.wire.batch import AcceptedBatch, Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Disown, Hello, Ping, Refused
from bdr.common.wire.reasons import RefusedReason
from bdr.common.wire.scan import Commit
from tests.support.scan_rig import acquire, commit, scanning
from tests.support.source_rig import (
    GENERATION,
    OLDER,
    RECORD,
    STATUS,
    TARGET,
    SourceRig,
    messages,
    of,
    streaming,
)

NEWER = b"gener-03"


def hello(actions: list[Action]) -> Hello:
    (message,) = messages(actions)
    assert isinstance(message, Hello)
    return message


def greet(rig: SourceRig) -> Hello:
    """On a new connection."""
    rig.handle(LinkDown())
    return hello(rig.handle(LinkUp()))


def kinds(actions: list[Action], *wanted: type) -> list[type]:
    """Of those that are wanted, in their order."""
    return [type(action) for action in actions if isinstance(action, wanted)]


# The last batch that the replica has.


def sent(slots: int = 3) -> tuple[SourceRig, AcceptedBatch]:
    """A batch was sent, and the connection lost before anything was acknowledged."""
    rig = streaming()
    header = rig.dispatch(slots)
    rig.end_round()
    greet(rig)
    return rig, rig.accepted(header)


def test_welcome_whose_last_batch_is_the_rings_goes_on_behind_it() -> None:
    rig, last = sent()
    rig.welcome(43, epoch=8, recent=(last,))
    assert rig.node.session.state is Phase.STREAMING
    assert rig.end_round() == [(43, 43)]
    assert rig.dispatch(2).first == 43


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(16)},
        {"epoch": 9},
        {"number": 2},
        {"first": 41, "slots": 2},
        {"slots": 2},
        {"first": 98, "slots": 3},  # ends beyond the head
    ],
    ids=str,
)
def test_welcome_whose_last_batch_is_another_is_disowned_and_frees_nothing(
    change: dict[str, Any],
) -> None:
    rig, last = sent()
    actions = rig.welcome(43, epoch=8, recent=(last._replace(**change),))
    assert messages(actions) == [Disown(8)]
    assert rig.node.session.state is Phase.PAUSED
    assert rig.next_batch() is None
    assert rig.end_round() == []
    assert (rig.node.order.tail, rig.capture.status().tail) == (40, 40)
    refused = rig.node.session.refused
    assert refused is not None
    assert refused.reason is RefusedReason.TWO_HISTORIES


def test_last_batch_of_an_earlier_content_of_its_slots_is_disowned() -> None:
    """The source went back, and has written something else since."""
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.welcome(40)
    last = rig.accepted(rig.dispatch(3))
    reverted = SourceRig()
    reverted.capture.publish(3, sector=800)
    reverted.handle(LinkUp())
    assert messages(reverted.welcome(43, epoch=8, recent=(last,))) == [Disown(8)]


def test_one_differing_batch_before_an_equal_one_is_disowned() -> None:
    """The last may be a lone FLUSH, of which any history has many."""
    rig = streaming()
    written, flushed = rig.dispatch(1), rig.dispatch(1)
    rig.end_round()
    greet(rig)
    recent = (rig.accepted(written)._replace(digest=bytes(16)), rig.accepted(flushed))
    assert messages(rig.welcome(42, epoch=8, recent=recent)) == [Disown(8)]


def test_disowned_target_is_greeted_again_after_a_pause_and_may_be_right_then() -> None:
    rig, last = sent()
    rig.welcome(43, epoch=8, recent=(last._replace(number=2),))
    assert messages(rig.tick(0.1)) == []
    hello(rig.tick(1.0))
    rig.welcome(43, epoch=9, recent=(last,))
    assert rig.node.session.state is Phase.STREAMING
    assert rig.node.session.refused is None


@pytest.mark.parametrize(
    "last",
    [
        AcceptedBatch(3, 1, 30, 10, b"released before!"),
        AcceptedBatch(3, 1, 38, 4, b"released in part"),
    ],
    ids=["released", "released in part"],
)
def test_last_batch_that_the_ring_does_not_hold_proves_nothing(last: AcceptedBatch) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.welcome(42, recent=(last,))
    assert rig.node.session.state is Phase.STREAMING


def test_last_batch_of_an_earlier_attempt_is_not_looked_at() -> None:
    rig, last = sent()
    greet(rig)
    assert rig.welcome(43, attempt=1, epoch=8, recent=(last._replace(number=2),)) == []
    assert rig.node.session.state is Phase.GREETING


# Refusals for two histories.


def refused(rig: SourceRig, nonce: int, reason: RefusedReason) -> list[Action]:
    return rig.hear(Refused(rig.node.session.attempt, reason, nonce, "no"))


def test_nonce_of_a_refusal_is_brought_back_at_once() -> None:
    rig = SourceRig()
    assert hello(rig.handle(LinkUp())).nonce == 0
    again = hello(refused(rig, 77, RefusedReason.TWO_HISTORIES))
    assert (again.nonce, again.attempt) == (77, 2)


def test_source_that_is_refused_with_its_nonce_pauses_and_brings_it_back_after_that() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    refused(rig, 77, RefusedReason.TWO_HISTORIES)
    assert messages(refused(rig, 77, RefusedReason.TWO_HISTORIES)) == []
    assert rig.node.session.state is Phase.PAUSED
    assert hello(rig.tick(1.0)).nonce == 77


def test_nonce_of_another_process_of_the_target_is_brought_back_instead() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    refused(rig, 77, RefusedReason.TWO_HISTORIES)
    refused(rig, 78, RefusedReason.TWO_HISTORIES)
    assert hello(rig.tick(1.0)).nonce == 78


@pytest.mark.parametrize(
    "reason", [RefusedReason.BUSY, RefusedReason.UNRELATED, RefusedReason.PROMOTED]
)
def test_refusal_that_a_person_may_end_pauses_and_is_shown(reason: RefusedReason) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    assert messages(refused(rig, 0, reason)) == []
    assert rig.node.session.state is Phase.PAUSED
    shown = rig.node.session.refused
    assert shown is not None
    assert shown.reason is reason
    hello(rig.tick(1.0))
    rig.welcome(40)
    assert rig.node.session.refused is None


# A bound of what is sent is the capture's before anything beyond it goes.


def test_bound_is_told_before_a_marker_beyond_it_is_dispatched() -> None:
    rig = streaming(slot=100, condition=Condition.CATCHING_UP)
    actions = rig.handle(events.SenderReady())
    assert kinds(actions, Release, Dispatch) == [Release, Dispatch]
    assert of(Release, actions) == [Release(100, 100, 0, 1)]


def test_bound_is_told_before_a_scanner_may_send_batches_beyond_it() -> None:
    rig = scanning({0, 1})
    grant = acquire(rig)
    actions = rig.handle(events.RequestArrived(b"scanner", Commit(grant.lease, 2, 0, [], [])))
    assert kinds(actions, Release, Reply) == [Release, Reply]
    assert of(Release, actions)[0].counted == 2


def test_bound_is_told_again_only_when_it_is_reached() -> None:
    status = replace(STATUS, acknowledged=6, counted=8)
    rig = streaming(status, slot=100, condition=Condition.CATCHING_UP)
    assert of(Release, rig.handle(events.SenderReady())) == []  # change 7
    rig.look(replace(status, gap=100, last_gap=100, overflows=1, resync_regions=1))
    actions = rig.handle(events.SenderReady())
    assert of(Dispatch, actions)[0].header.marker is Marker.INCONSISTENT
    assert of(Release, actions) == []  # change 8
    commit(rig, acquire(rig), batches=1)
    assert rig.capture.status().counted == 9


def test_live_batches_are_not_counted() -> None:
    rig = streaming()
    rig.dispatch(3)
    rig.ack(1)
    rig.end_round()
    status = rig.capture.status()
    assert (status.acknowledged, status.counted) == (0, 0)


def test_what_is_acknowledged_is_told_before_the_regions_are_cleared_that_it_justifies() -> None:
    rig = scanning({0, 1})
    commit(rig, acquire(rig), batches=2)
    actions = rig.ack(2)
    assert kinds(actions, Release, ClearRegions) == [Release, ClearRegions]
    assert of(Release, actions)[0].acknowledged == 2


def test_what_is_acknowledged_is_told_at_the_end_of_a_round_though_no_slot_is_freed() -> None:
    rig = streaming(slot=100, condition=Condition.CATCHING_UP)
    rig.marker()
    rig.end_round()
    rig.ack(1)
    (release,) = of(Release, rig.handle(events.RoundEnded()))
    assert (release.tail, release.acknowledged) == (100, 1)
    assert rig.end_round() == []


def test_regions_that_were_equal_are_cleared_without_news() -> None:
    rig = scanning({0, 1})
    rig.end_round()
    commit(rig, acquire(rig))
    assert of(ClearRegions, rig.tick()) == [ClearRegions(0, 2)]
    assert len(rig.capture.released) == 1


def test_reader_that_is_started_again_greets_with_what_the_capture_has() -> None:
    status = replace(STATUS, acknowledged=7, counted=1031)
    said = hello(SourceRig(status).handle(LinkUp()))
    assert (said.tail, said.acknowledged, said.counted) == (40, 7, 1031)


@pytest.mark.parametrize("is_acknowledged", [False, True])
def test_reader_that_is_killed_leaves_a_bound_of_all_that_it_sent(is_acknowledged: bool) -> None:
    """So that the target is never taken for one that is beyond its source."""
    rig = scanning({0, 1})
    commit(rig, acquire(rig), batches=2)
    if is_acknowledged:
        rig.ack(2)
    said = hello(SourceRig(rig.capture.status()).handle(LinkUp()))
    assert said.acknowledged == (2 if is_acknowledged else 0)
    assert said.acknowledged <= 2 <= said.counted


@pytest.mark.parametrize(
    ("slot", "changes", "is_followed"),
    [
        (40, 6, False),
        (40, 7, True),
        (40, 9, True),
        (50, 1031, True),
        # Beyond what was counted only a source begins that does not resume.
        (40, 1032, True),
        (41, 1032, False),
    ],
)
def test_welcome_with_changes_that_cannot_be_stops(
    slot: int, changes: int, is_followed: bool
) -> None:
    rig = SourceRig(replace(STATUS, acknowledged=7, counted=1031))
    rig.handle(LinkUp())
    actions = rig.welcome(slot, changes=changes)
    if is_followed:
        assert rig.node.order.window.acknowledged == changes
        assert greet(rig).acknowledged == changes
    else:
        (stop,) = actions
        assert isinstance(stop, Stop)
        assert isinstance(stop.error, RefusedError)


# The generation.


def pinged(actions: list[Action]) -> list[bytes]:
    """Generations that are told."""
    return [each.generation for each in messages(actions) if isinstance(each, Ping)]


def test_new_generation_is_made_when_batches_go_and_told_when_it_is_saved() -> None:
    rig = streaming()
    assert of(SaveGeneration, rig.tick(0.5)) == []
    rig.dispatch(1)
    assert of(SaveGeneration, rig.tick(0.7)) == [SaveGeneration()]
    assert pinged(rig.tick(1.0)) == [GENERATION]
    assert greet(rig).generations == (GENERATION, OLDER)
    rig.welcome(40, epoch=8)
    rig.handle(GenerationSaved(NEWER))
    assert pinged(rig.tick(2.0)) == [NEWER]
    assert greet(rig).generations == (NEWER, GENERATION, OLDER)


def test_new_generation_is_made_at_most_once_a_second() -> None:
    rig = streaming()
    made_at = []
    for quarter in range(40):
        rig.dispatch(1)
        rig.ack(quarter + 1)
        for _ in of(SaveGeneration, rig.tick(quarter / 4)):
            made_at.append(quarter / 4)
            rig.handle(GenerationSaved(b"gener-%02x" % quarter))
    assert made_at == [float(second) for second in range(10)]


def test_new_generation_is_not_made_before_it_is_saved() -> None:
    rig = streaming()
    found = []
    for second in range(4):
        rig.dispatch(1)
        rig.ack(second + 1)
        found += of(SaveGeneration, rig.tick(float(second)))
    assert found == [SaveGeneration()]


def test_new_generation_is_made_for_a_scanners_batches_too() -> None:
    rig = scanning({0})
    commit(rig, acquire(rig), batches=1)
    assert of(SaveGeneration, rig.tick(1.0)) == [SaveGeneration()]


# The user's word that both devices are equal.


def assuming(**record: Any) -> SourceRig:
    """With the word given in the configuration."""
    rig = SourceRig(
        replace(STATUS, tail=0, head=10), record=replace(RECORD, **record), assume_clean=True
    )
    rig.handle(LinkUp())
    return rig


def test_assumption_is_saved_with_the_first_batch_that_is_durable_and_not_used_again() -> None:
    rig = assuming()
    rig.welcome(0, Condition.CATCHING_UP)
    rig.dispatch(5)
    assert of(SaveAssumption, rig.ack(0, accepted=1)) == []
    assert of(SaveAssumption, rig.ack(1)) == [SaveAssumption(TARGET)]
    rig.dispatch(5)
    assert of(SaveAssumption, rig.ack(2)) == []
    assert not greet(rig).assume_clean


def test_assumption_is_given_until_something_is_durable() -> None:
    rig = assuming()
    rig.welcome(0, Condition.CATCHING_UP)
    rig.dispatch(5)
    assert greet(rig).assume_clean


@pytest.mark.parametrize("target", [TARGET, b"another-target.."])
def test_assumption_that_was_used_is_not_given_again(target: bytes) -> None:
    """Left in a configuration, it would make a replica of a target that was built anew."""
    rig = assuming(assumed_for=target)
    assert not greet(rig).assume_clean
    announced = of(Announce, rig.welcome(0, Condition.UNKNOWN))
    assert {"assumption": Assumption.USED.value} in [each.facts for each in announced]
    rig.next_batch()
    assert of(SaveAssumption, rig.ack(1)) == []


def test_nothing_is_saved_of_an_assumption_that_was_not_made() -> None:
    rig = streaming()
    rig.dispatch(1)
    assert of(SaveAssumption, rig.ack(1)) == []
