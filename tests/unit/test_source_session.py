# SPDX-License-Identifier: GPL-2.0-only
"""A source's conversation with its target: greeting, losses, silence, pings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.errors import RefusedError
from bdr.common.source import events
from bdr.common.source.events import Action, Announce, LinkDown, LinkUp, SenderLost, Stop
from bdr.common.source.greeting import Assumption
from bdr.common.source.session import Phase, SessionSettings
from bdr.common.wire.batch import PROTOCOL, BatchHeader, BatchKind, Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Hello, Ping, Refused, Rewind
from bdr.common.wire.reasons import RefusedReason, RewindReason
from bdr.common.wire.statement import NO_STATEMENT
from tests.support.source_rig import (
    EPOCH,
    GENERATION,
    INFO,
    RECORD,
    SOURCE,
    STATUS,
    STREAM,
    SourceRig,
    messages,
    of,
    streaming,
    topics,
)

DAMAGED = Rewind(EPOCH, RewindReason.DAMAGED, "damaged")


def phase(rig: SourceRig) -> Phase:
    return rig.node.session.state


def hello(actions: list[Action]) -> Hello:
    (message,) = messages(actions)
    assert isinstance(message, Hello)
    return message


def refused(rig: SourceRig, reason: RefusedReason, text: str = "no") -> list[Action]:
    return rig.hear(Refused(rig.node.session.attempt, reason, 0, text))


# Greeting.


def test_link_up_sends_hello_with_what_the_ring_holds() -> None:
    rig = SourceRig()
    said = hello(rig.handle(LinkUp()))
    assert said == Hello(
        protocol=PROTOCOL,
        attempt=1,
        nonce=0,
        volume="v",
        source=SOURCE,
        generations=RECORD.generations,
        stream=STREAM,
        device_sectors=1 << 20,
        tail=40,
        head=100,
        acknowledged=0,
        counted=0,
        assume_clean=False,
    )
    assert phase(rig) is Phase.GREETING


def test_hello_unanswered_is_repeated_with_growing_pauses() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    sent_at = [tenth / 10 for tenth in range(1, 2000) if messages(rig.tick(tenth / 10))]
    gaps = [after - before for before, after in itertools.pairwise(sent_at)]
    assert sent_at[0] == pytest.approx(1.0)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(SessionSettings().hello_max_s)


def test_hello_of_a_new_connection_is_repeated_as_soon_as_the_first_was() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    for second in range(1, 8):
        rig.tick(float(second))
    rig.handle(LinkDown())
    rig.handle(LinkUp())
    assert messages(rig.tick(8.1))


@pytest.mark.parametrize("slot", [40, 4000], ids=["possible", "impossible"])
def test_welcome_of_an_earlier_attempt_is_ignored(slot: int) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.handle(LinkUp())
    assert rig.welcome(slot, attempt=1) == []
    assert phase(rig) is Phase.GREETING


def test_welcome_beyond_the_tail_releases_up_to_it_and_goes_on_from_there() -> None:
    rig = SourceRig()
    rig.capture.publish(20)
    rig.handle(LinkUp())
    rig.welcome(60)
    assert rig.end_round() == [(60, 60)]
    found = replace(rig.dispatch(5), not_after_ns=0, statement=NO_STATEMENT)
    assert found == BatchHeader(
        BatchKind.LIVE, Marker.NONE, STREAM, epoch=EPOCH, number=1, first=60, count=5
    )


@pytest.mark.parametrize("slot", [39, 101])
def test_welcome_outside_the_ring_stops(slot: int) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    (stop,) = rig.welcome(slot)
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, RefusedError)
    assert str(slot) in str(stop.error)


@pytest.mark.parametrize("number", [0, 2])
def test_welcome_that_does_not_begin_with_batch_1_stops(number: int) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    (stop,) = rig.welcome(40, number=number)
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, RefusedError)


def test_refused_for_good_stops_with_the_targets_words() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    (stop,) = refused(rig, RefusedReason.SIZE, "too big by far")
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, RefusedError)
    assert "too big by far" in str(stop.error)
    assert rig.handle(LinkUp()) == []
    assert rig.tick(100.0) == []


def test_refused_for_good_that_arrives_after_the_link_went_down_stops_too() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.handle(LinkDown())
    (stop,) = refused(rig, RefusedReason.VOLUME)
    assert isinstance(stop, Stop)


def test_refused_for_good_that_arrives_in_a_pause_stops_too() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    refused(rig, RefusedReason.BUSY)
    assert phase(rig) is Phase.PAUSED
    (stop,) = refused(rig, RefusedReason.VOLUME)
    assert isinstance(stop, Stop)


def test_refused_for_good_while_streaming_stops() -> None:
    """A batch that reaches beyond the target's device is answered so."""
    rig = streaming()
    (stop,) = refused(rig, RefusedReason.SLOTS)
    assert isinstance(stop, Stop)


@pytest.mark.parametrize("reason", [RefusedReason.BUSY, RefusedReason.SIZE])
def test_refused_of_an_earlier_attempt_is_ignored(reason: RefusedReason) -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.handle(LinkUp())
    assert rig.hear(Refused(1, reason, 9, "late")) == []
    assert phase(rig) is Phase.GREETING


def test_refused_for_now_pauses_then_greets_again() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    assert topics(refused(rig, RefusedReason.BUSY)) == ["pause"]
    assert phase(rig) is Phase.PAUSED
    rig.tick(0.1)
    assert phase(rig) is Phase.PAUSED
    assert hello(rig.tick(0.5)).attempt == 2


def test_refused_for_now_again_and_again_pauses_longer_up_to_a_limit() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    pauses_ms = []
    for now_at in range(1000, 1200, 20):
        (pause,) = of(Announce, refused(rig, RefusedReason.BUSY))
        pauses_ms.append(pause.facts["pause_ms"])
        rig.tick(float(now_at))
    assert pauses_ms == [250, 500, 1000, 2000, 4000, 8000, 10000, 10000, 10000, 10000]


# Setbacks.


def test_rewind_greets_at_once_and_goes_on_where_the_target_says() -> None:
    rig = streaming()
    rig.dispatch(10)
    rig.dispatch(10)
    actions = rig.hear(DAMAGED)
    assert topics(actions) == ["rewind"]
    assert (hello(actions).tail, hello(actions).head) == (40, 100)
    rig.welcome(50, epoch=8)
    assert rig.end_round() == [(50, 50)]
    header = rig.next_batch()
    assert header is not None
    assert (header.epoch, header.number, header.first, header.count) == (8, 1, 50, 10)


def test_rewind_of_an_old_epoch_is_ignored() -> None:
    rig = streaming()
    assert rig.hear(replace(DAMAGED, epoch=EPOCH - 1)) == []
    assert phase(rig) is Phase.STREAMING


def test_second_setback_without_progress_pauses() -> None:
    rig = streaming()
    rig.dispatch(1)
    rig.hear(DAMAGED)
    rig.welcome(40, epoch=8)
    rig.hear(replace(DAMAGED, epoch=8))
    assert phase(rig) is Phase.PAUSED


def test_second_setback_after_progress_greets_at_once() -> None:
    rig = streaming()
    rig.dispatch(1)
    rig.hear(DAMAGED)
    rig.welcome(40, epoch=8)
    rig.next_batch()
    rig.ack(1)
    rig.hear(replace(DAMAGED, epoch=8))
    assert phase(rig) is Phase.GREETING


def test_sender_lost_with_nothing_in_flight_changes_nothing() -> None:
    rig = streaming()
    assert rig.handle(SenderLost()) == []
    assert phase(rig) is Phase.STREAMING


def test_sender_lost_with_batches_in_flight_greets_again() -> None:
    rig = streaming()
    rig.dispatch(1)
    rig.handle(SenderLost())
    assert phase(rig) is Phase.GREETING


@pytest.mark.parametrize("phase_", [Phase.OFFLINE, Phase.GREETING, Phase.PAUSED])
def test_sender_or_scanner_lost_outside_a_session_changes_nothing(phase_: Phase) -> None:
    rig = SourceRig()
    if phase_ is not Phase.OFFLINE:
        rig.handle(LinkUp())
    if phase_ is Phase.PAUSED:
        refused(rig, RefusedReason.BUSY)
    assert rig.handle(SenderLost()) == []
    assert rig.handle(events.ScannerLost()) == []
    assert phase(rig) is phase_


def test_hello_after_a_setback_names_a_head_that_covers_all_that_was_dispatched() -> None:
    """Or the target's own position would look unknown, and cost a scan."""
    rig = streaming()
    rig.dispatch(60)
    rig.dispatch(50)  # to slot 150: more than the last look at the ring knew
    assert rig.node.order.status.head == 100
    assert hello(rig.hear(DAMAGED)).head == 150
    assert hello(rig.tick(60.0)).head == 150


def test_link_down_then_up_greets_from_the_tail() -> None:
    rig = streaming()
    rig.dispatch(9)
    rig.handle(LinkDown())
    order = rig.node.order
    assert (phase(rig), order.cursor, order.window.in_flight) == (Phase.OFFLINE, 40, 0)
    assert hello(rig.handle(LinkUp())).tail == 40


def test_nothing_is_sent_while_the_link_is_down() -> None:
    rig = streaming()
    rig.handle(LinkDown())
    assert rig.welcome(40) == []
    assert rig.hear(DAMAGED) == []
    assert rig.ack(0) == []
    assert messages(rig.tick(100.0)) == []
    assert phase(rig) is Phase.OFFLINE


def test_silence_greets_again() -> None:
    rig = streaming()
    rig.tick(60.0)
    assert phase(rig) is Phase.STREAMING
    rig.tick(60.1)
    assert phase(rig) is Phase.GREETING


def test_silence_may_last_twice_as_long_after_each_setback() -> None:
    rig = streaming()
    rig.tick(60.1)
    rig.welcome(40, epoch=8)
    rig.tick(180.0)
    assert phase(rig) is Phase.STREAMING
    rig.tick(180.2)
    assert phase(rig) is Phase.PAUSED


def test_target_that_has_not_answered_lately_is_shown_so_and_nothing_is_lost() -> None:
    rig = streaming()
    rig.tick(10.0)
    assert rig.node.session.is_answered
    rig.tick(10.1)
    assert not rig.node.session.is_answered
    assert phase(rig) is Phase.STREAMING
    rig.ack(0)
    assert rig.node.session.is_answered


def test_any_message_of_the_target_ends_its_silence() -> None:
    """Also one that means nothing any more."""
    rig = streaming()
    rig.tick(40.0)
    rig.hear(Ack(EPOCH - 1, 0, 0, Condition.CONSISTENT, 0, 0, 0))
    rig.tick(100.0)
    assert phase(rig) is Phase.STREAMING
    rig.tick(100.1)
    assert phase(rig) is Phase.GREETING


def test_ping_is_sent_while_streaming() -> None:
    rig = streaming()
    assert pings(rig.tick(0.75)) == [(EPOCH, GENERATION, 0)]
    assert pings(rig.tick(1.4)) == []
    assert pings(rig.tick(1.5)) == [(EPOCH, GENERATION, 0)]


def pings(actions: list[Action]) -> list[tuple[int, bytes, int]]:
    """Without what they say of the age; nothing else is sent."""
    found = messages(actions)
    assert all(isinstance(each, Ping) for each in found)
    return [(each.epoch, each.generation, each.left_bytes) for each in found]  # type: ignore[union-attr]


def keep_talking(rig: SourceRig, *, until_s: float, durable: int, accepted: int) -> None:
    """Acknowledgements once a second, while no byte arrives."""
    while rig.now_at < until_s:
        rig.tick(rig.now_at + 1.0)
        rig.ack(durable, accepted, idle_s=int(rig.now_at))


def test_batches_of_which_no_byte_arrives_greet_again_though_the_target_talks() -> None:
    rig = streaming()
    rig.dispatch(1)
    keep_talking(rig, until_s=29.0, durable=0, accepted=0)
    assert phase(rig) is Phase.STREAMING
    keep_talking(rig, until_s=30.0, durable=0, accepted=0)
    assert phase(rig) is Phase.GREETING


def test_batch_may_take_as_long_as_it_likes_while_its_bytes_arrive() -> None:
    rig = streaming()
    rig.dispatch(1)
    for _ in range(1000):
        rig.tick(rig.now_at + 1.0)
        rig.ack(0, idle_s=29)
    assert phase(rig) is Phase.STREAMING


def test_batch_that_was_sent_just_now_is_not_late_though_nothing_was_sent_for_long() -> None:
    rig = streaming()
    rig.tick(9.0)
    rig.ack(0, idle_s=1000)
    rig.dispatch(1)
    rig.tick(12.0)
    rig.ack(0, idle_s=1003)
    assert phase(rig) is Phase.STREAMING


def test_acknowledgements_that_are_late_too_say_nothing_of_the_batches() -> None:
    rig = streaming()
    rig.dispatch(1)
    rig.tick(45.0)
    rig.ack(0, idle_s=3)
    assert phase(rig) is Phase.STREAMING


def test_batches_have_twice_the_time_to_arrive_after_each_setback() -> None:
    rig = streaming()
    rig.dispatch(1)
    rig.hear(DAMAGED)
    rig.welcome(40, epoch=8)
    rig.next_batch()
    keep_talking(rig, until_s=59.0, durable=0, accepted=0)
    assert phase(rig) is Phase.STREAMING
    keep_talking(rig, until_s=60.0, durable=0, accepted=0)
    assert phase(rig) is Phase.PAUSED


def test_slow_disk_of_the_target_is_not_taken_for_loss() -> None:
    """All had arrived; a new batch gets its own time to do so."""
    rig = streaming()
    rig.dispatch(1)
    keep_talking(rig, until_s=30.0, durable=0, accepted=1)
    assert phase(rig) is Phase.STREAMING
    rig.dispatch(1)
    rig.tick(30.5)
    assert phase(rig) is Phase.STREAMING


# What the target remembers, and what is left to compare.


def test_target_is_told_what_is_left_to_compare() -> None:
    rig = streaming(condition=Condition.INCONSISTENT)
    rig.look(replace(STATUS, active_regions=1, resync_regions=2))
    assert pings(rig.tick(1.0)) == [(EPOCH, GENERATION, 3 * 65536)]
    everything = replace(STATUS, active_regions=INFO.regions, resync_regions=INFO.regions)
    rig.look(everything)
    assert pings(rig.tick(2.0)) == [(EPOCH, GENERATION, INFO.device_sectors * 512)]


def test_what_the_target_remembers_is_as_of_its_last_acknowledgement() -> None:
    rig = streaming(condition=Condition.INCONSISTENT)
    assert rig.node.last_ack is None
    ack = Ack(EPOCH, 0, 0, Condition.INCONSISTENT, 1000, 1060, 0)
    rig.hear(replace(ack, epoch=EPOCH - 1))
    assert rig.node.last_ack is None
    rig.hear(ack)
    assert rig.node.last_ack == ack


def test_what_the_target_remembers_is_known_while_the_target_is_away() -> None:
    """A status must say how old the replica is just then."""
    rig = streaming()
    ack = Ack(EPOCH, 0, 0, Condition.CONSISTENT, 1000, 1060, 0)
    rig.hear(ack)
    rig.handle(LinkDown())
    assert rig.node.last_ack == ack
    rig.handle(LinkUp())
    assert rig.node.last_ack == ack


@pytest.mark.parametrize(
    ("slot", "condition", "wanted"),
    [
        (0, Condition.CATCHING_UP, Assumption.TAKEN),
        (0, Condition.UNKNOWN, Assumption.HAD_SOURCE),
        (40, Condition.UNKNOWN, Assumption.HAD_EITHER),
        (40, Condition.INCONSISTENT, Assumption.LACKS_WRITES),
        (40, Condition.CONSISTENT, None),
        (40, Condition.CATCHING_UP, None),
    ],
)
def test_what_became_of_the_word_that_both_are_equal_is_announced_once(
    slot: int, condition: Condition, wanted: Assumption | None
) -> None:
    rig = SourceRig(replace(STATUS, tail=slot), assume_clean=True)
    found: list[object] = []
    for _ in range(2):
        assert hello(rig.handle(LinkUp())).assume_clean
        found += [
            action.facts["assumption"]
            for action in of(Announce, rig.welcome(slot, condition))
            if action.name == "assume-clean"
        ]
        rig.handle(LinkDown())
    assert found == ([wanted.value] if wanted else [])


def test_nothing_is_announced_of_a_word_that_was_not_given() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    assert topics(rig.welcome(40, Condition.UNKNOWN)) == ["streaming"]
