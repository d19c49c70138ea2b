# SPDX-License-Identifier: GPL-2.0-only
"""The source's state machine, one situation at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.errors import InternalError, RefusedError
from bdr.common.ring.layout import WRITE_SLOTS_MAX, Mode
from bdr.common.source import sequencer as s
from bdr.common.wire.control import (
    PROTOCOL,
    Ack,
    BatchHeader,
    BatchKind,
    Condition,
    Hello,
    Mark,
    Ping,
    Progress,
    Refused,
    RefusedReason,
    Rewind,
    Welcome,
)

STREAM = b"stream-of-tests!"
INFO = CaptureInfo(
    stream=STREAM,
    device_sectors=1 << 20,
    capacity=4096,
    region_sectors=128,
    regions=1 << 13,
    underlying="",
)
STATUS = CaptureStatus(
    head=100,
    tail=40,
    unpublished=100,
    gap=None,
    last_gap=None,
    mode=Mode.STREAM,
    active_regions=0,
    resync_regions=0,
    unlogged=0,
    overflows=0,
    missed_writes=0,
    failed_writes=0,
    device_sectors=1 << 20,
    stream=STREAM,
)


def new_sequencer(
    status: CaptureStatus = STATUS, settings: s.SequencerSettings | None = None
) -> s.Sequencer:
    return s.Sequencer(volume="v", info=INFO, status=status, settings=settings)


def streaming(
    status: CaptureStatus = STATUS,
    *,
    slot: int | None = None,
    condition: Condition = Condition.CONSISTENT,
    settings: s.SequencerSettings | None = None,
) -> s.Sequencer:
    machine = new_sequencer(status, settings)
    machine.handle(s.LinkUp())
    welcome(machine, status.tail if slot is None else slot, condition)
    return machine


def welcome(
    machine: s.Sequencer,
    slot: int,
    condition: Condition = Condition.CONSISTENT,
    *,
    attempt: int | None = None,
    epoch: int = 7,
) -> list[s.Action]:
    attempt = machine._attempt if attempt is None else attempt
    return machine.handle(s.MessageArrived(Welcome(attempt, epoch, 1, slot, condition)))


def headers(actions: list[s.Action]) -> list[BatchHeader]:
    return [action.header for action in actions if isinstance(action, s.Dispatch)]


def messages(actions: list[s.Action]) -> list[object]:
    return [action.message for action in actions if isinstance(action, s.Send)]


def releases(actions: list[s.Action]) -> list[int]:
    return [action.tail for action in actions if isinstance(action, s.Release)]


def dispatch(machine: s.Sequencer, count: int) -> BatchHeader:
    (header,) = headers(machine.handle(s.SendersReady(count)))
    return header


def ack(machine: s.Sequencer, durable: int, accepted: int | None = None) -> list[s.Action]:
    accepted = durable if accepted is None else accepted
    return machine.handle(s.MessageArrived(Ack(machine.epoch, accepted, durable)))


# Greeting.


def test_link_up_sends_hello_with_what_the_ring_holds() -> None:
    machine = new_sequencer()
    (hello,) = messages(machine.handle(s.LinkUp()))
    assert hello == Hello(PROTOCOL, 1, "v", STREAM, 1 << 20, 40, 100, False)
    assert machine.phase is s.Phase.GREETING


def test_hello_unanswered_is_repeated_with_growing_pauses() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    at_s = []
    for tenth in range(1, 400):
        if messages(machine.handle(s.Tick(tenth / 10))):
            at_s.append(tenth / 10)
    gaps = [after - before for before, after in itertools.pairwise(at_s)]
    assert at_s[0] == pytest.approx(1.0)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(machine.settings.pause_max_s)


def test_welcome_of_an_earlier_attempt_is_ignored() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    machine.handle(s.LinkUp())
    assert welcome(machine, 40, attempt=1) == []
    assert machine.phase is s.Phase.GREETING


def test_welcome_beyond_the_tail_releases_up_to_it_and_goes_on_from_there() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    assert releases(welcome(machine, 60)) == [60]
    assert dispatch(machine, 5) == BatchHeader(
        BatchKind.LIVE, Mark.NONE, STREAM, epoch=7, number=1, first=60, count=5
    )


@pytest.mark.parametrize("slot", [39, 101])
def test_welcome_outside_the_ring_stops(slot: int) -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    (stop,) = welcome(machine, slot)
    assert isinstance(stop, s.Stop)
    assert isinstance(stop.error, RefusedError)
    assert str(slot) in str(stop.error)


def test_refused_for_good_stops_with_the_targets_words() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    refused = Refused(1, RefusedReason.SIZE, "too big by far")
    (stop,) = machine.handle(s.MessageArrived(refused))
    assert isinstance(stop, s.Stop)
    assert "too big by far" in str(stop.error)
    assert machine.handle(s.LinkUp()) == []


def test_refused_for_good_that_arrives_after_the_link_went_down_stops_too() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    machine.handle(s.LinkDown())
    refused = Refused(1, RefusedReason.VOLUME, "another volume")
    (stop,) = machine.handle(s.MessageArrived(refused))
    assert isinstance(stop, s.Stop)


def test_refused_for_good_that_arrives_in_a_pause_stops_too() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    machine.handle(s.MessageArrived(Refused(1, RefusedReason.BUSY, "busy")))
    assert machine.phase is s.Phase.PAUSED
    refused = Refused(1, RefusedReason.VOLUME, "another volume")
    (stop,) = machine.handle(s.MessageArrived(refused))
    assert isinstance(stop, s.Stop)


def test_refused_for_now_pauses_then_greets_again() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    machine.handle(s.MessageArrived(Refused(1, RefusedReason.BUSY, "busy")))
    assert machine.phase is s.Phase.PAUSED
    machine.handle(s.Tick(0.1))
    assert machine.phase is s.Phase.PAUSED
    (hello,) = messages(machine.handle(s.Tick(0.5)))
    assert isinstance(hello, Hello)
    assert hello.attempt == 2


# Streaming.


def test_nothing_is_dispatched_before_a_welcome() -> None:
    machine = new_sequencer()
    machine.handle(s.LinkUp())
    assert machine.dispatch_limit == 0
    assert machine.handle(s.SendersReady(5)) == []


def test_batches_are_numbered_without_a_hole_and_follow_each_other() -> None:
    machine = streaming()
    found = [dispatch(machine, count) for count in (3, 1, 7)]
    assert [(h.number, h.first, h.count) for h in found] == [(1, 40, 3), (2, 43, 1), (3, 44, 7)]


def test_ack_releases_only_what_is_durable() -> None:
    machine = streaming()
    for count in (3, 1, 7):
        dispatch(machine, count)
    assert releases(ack(machine, 0, accepted=3)) == []
    assert releases(ack(machine, 2, accepted=3)) == [44]
    assert releases(ack(machine, 2, accepted=3)) == []
    assert releases(ack(machine, 3)) == [51]
    assert machine.in_flight == 0


def test_ack_of_an_old_epoch_releases_nothing() -> None:
    machine = streaming()
    dispatch(machine, 3)
    assert machine.handle(s.MessageArrived(Ack(6, 1, 1))) == []
    assert machine.tail == 40


def test_ack_of_what_was_never_sent_stops() -> None:
    machine = streaming()
    dispatch(machine, 3)
    (stop,) = ack(machine, 2)
    assert isinstance(stop, s.Stop)


def test_window_of_batches_full_dispatches_nothing_until_an_ack() -> None:
    machine = streaming(settings=s.SequencerSettings(window_batches=2))
    dispatch(machine, 1)
    dispatch(machine, 1)
    assert machine.dispatch_limit == 0
    assert machine.handle(s.SendersReady(1)) == []
    ack(machine, 1, accepted=2)
    assert machine.dispatch_limit > 0


def test_window_of_slots_leaves_room_for_a_whole_write_or_none() -> None:
    settings = s.SequencerSettings(window_slots=WRITE_SLOTS_MAX + 8, batch_slots=WRITE_SLOTS_MAX)
    machine = streaming(settings=settings)
    dispatch(machine, 8)
    assert machine.dispatch_limit == WRITE_SLOTS_MAX
    dispatch(machine, 1)
    assert machine.dispatch_limit == 0


def test_more_slots_than_the_limit_is_an_internal_error_with_a_story() -> None:
    machine = streaming()
    with pytest.raises(InternalError):
        machine.handle(s.SendersReady(machine.settings.batch_slots + 1))


# Setbacks.


def test_rewind_greets_at_once_and_goes_on_where_the_target_says() -> None:
    machine = streaming()
    dispatch(machine, 10)
    dispatch(machine, 10)
    (hello,) = messages(machine.handle(s.MessageArrived(Rewind(7, "damaged"))))
    assert isinstance(hello, Hello)
    assert (hello.tail, hello.head) == (40, 100)
    assert releases(welcome(machine, 50, epoch=8)) == [50]
    header = dispatch(machine, 4)
    assert (header.epoch, header.number, header.first) == (8, 1, 50)


def test_rewind_of_an_old_epoch_is_ignored() -> None:
    machine = streaming()
    assert machine.handle(s.MessageArrived(Rewind(6, "late"))) == []
    assert machine.phase is s.Phase.STREAMING


def test_second_setback_without_progress_pauses() -> None:
    machine = streaming()
    dispatch(machine, 1)
    machine.handle(s.MessageArrived(Rewind(7, "once")))
    welcome(machine, 40, epoch=8)
    machine.handle(s.MessageArrived(Rewind(8, "twice")))
    assert machine.phase is s.Phase.PAUSED


def test_sender_lost_with_nothing_in_flight_changes_nothing() -> None:
    machine = streaming()
    assert machine.handle(s.SenderLost()) == []


def test_sender_lost_with_batches_in_flight_greets_again() -> None:
    machine = streaming()
    dispatch(machine, 1)
    machine.handle(s.SenderLost())
    assert machine.phase is s.Phase.GREETING


def test_hello_after_a_setback_names_a_head_that_covers_all_that_was_dispatched() -> None:
    """Or the target's own position would look unknown, and cost a scan."""
    machine = streaming()
    dispatch(machine, 60)
    dispatch(machine, 50)  # to slot 150: more than the last look at the ring knew
    (hello,) = messages(machine.handle(s.MessageArrived(Rewind(7, "x"))))
    assert isinstance(hello, Hello)
    assert hello.head == 150
    (again,) = messages(machine.handle(s.Tick(60.0)))
    assert isinstance(again, Hello)
    assert again.head == 150


def test_link_down_then_up_greets_from_the_tail() -> None:
    machine = streaming()
    dispatch(machine, 9)
    machine.handle(s.LinkDown())
    assert (machine.phase, machine.cursor, machine.in_flight) == (s.Phase.OFFLINE, 40, 0)
    (hello,) = messages(machine.handle(s.LinkUp()))
    assert isinstance(hello, Hello)


def test_silence_greets_again() -> None:
    machine = streaming()
    machine.handle(s.Tick(5.0))
    assert machine.phase is s.Phase.STREAMING
    machine.handle(s.Tick(5.1))
    assert machine.phase is s.Phase.GREETING


@pytest.mark.parametrize(
    ("slot", "condition", "said"),
    [
        (0, Condition.CATCHING_UP, "taken: source and target are held to be equal"),
        (0, Condition.UNKNOWN, "not taken: the target has had a source before"),
        (40, Condition.UNKNOWN, "not taken: the source or the target has been replicated"),
        (40, Condition.INCONSISTENT, "not taken: the target knows this source, and lacks"),
        (40, Condition.CONSISTENT, None),
        (40, Condition.CATCHING_UP, None),
    ],
)
def test_what_became_of_the_word_that_both_are_equal_is_told_once(
    slot: int, condition: Condition, said: str | None
) -> None:
    machine = s.Sequencer(
        volume="v", info=INFO, status=replace(STATUS, tail=slot), assume_clean=True
    )
    told: list[str] = []
    for _ in range(2):
        machine.handle(s.LinkUp())
        actions = welcome(machine, slot, condition)
        told += [
            str(action.facts["assumption"])
            for action in actions
            if isinstance(action, s.Announce) and action.topic == "assume-clean"
        ]
        machine.handle(s.LinkDown())
    assert len(told) == (said is not None)
    assert said is None or told[0].startswith(said)


def test_ping_is_sent_while_streaming() -> None:
    machine = streaming()
    assert messages(machine.handle(s.Tick(1.0))) == [Ping(7), Progress(7, 0)]
    assert messages(machine.handle(s.Tick(1.2))) == []


def keep_talking(machine: s.Sequencer, *, until_s: float, durable: int, accepted: int) -> None:
    now_s = machine._now_s
    while now_s < until_s:
        now_s += 1.0
        machine.handle(s.Tick(now_s))
        ack(machine, durable, accepted)


def test_batches_that_never_arrive_greet_again_though_the_target_talks() -> None:
    machine = streaming()
    dispatch(machine, 1)
    keep_talking(machine, until_s=19.0, durable=0, accepted=0)
    assert machine.phase is s.Phase.STREAMING
    machine.handle(s.Tick(20.5))
    assert machine.phase is s.Phase.GREETING


def test_slow_disk_of_the_target_is_not_taken_for_loss() -> None:
    """All had arrived; a new batch gets its own time to do so."""
    machine = streaming()
    dispatch(machine, 1)
    keep_talking(machine, until_s=30.0, durable=0, accepted=1)
    assert machine.phase is s.Phase.STREAMING
    dispatch(machine, 1)
    machine.handle(s.Tick(30.5))
    assert machine.phase is s.Phase.STREAMING


# Marks.


def test_catching_up_ends_with_a_mark_at_the_head_of_the_welcome() -> None:
    machine = streaming(condition=Condition.CATCHING_UP)
    dispatch(machine, 59)
    assert not machine.has_mark_due
    dispatch(machine, 1)
    assert machine.has_mark_due
    assert machine.dispatch_limit == 0
    header = dispatch(machine, 0)
    assert (header.mark, header.first, header.count) == (Mark.CONSISTENT, 100, 0)
    assert machine.condition is Condition.CONSISTENT
    assert machine.dispatch_limit > 0


def test_mark_in_flight_is_repeated_after_a_setback() -> None:
    machine = streaming(condition=Condition.CATCHING_UP, slot=100)
    dispatch(machine, 0)
    machine.handle(s.SenderLost())
    welcome(machine, 100, Condition.CATCHING_UP, epoch=8)
    assert dispatch(machine, 0).mark is Mark.CONSISTENT


GAP = replace(STATUS, gap=70, last_gap=70, resync_regions=3, overflows=1)


def test_gap_ends_a_batch_and_gets_a_mark_before_the_next_slot() -> None:
    machine = streaming(GAP)
    assert machine.dispatch_limit == 30
    dispatch(machine, 30)
    header = dispatch(machine, 5)
    assert (header.mark, header.first, header.count) == (Mark.RESYNC, 70, 0)
    assert dispatch(machine, 5).first == 70


def test_gap_of_a_replica_that_is_inconsistent_already_gets_no_mark() -> None:
    machine = streaming(GAP, slot=70, condition=Condition.INCONSISTENT)
    assert not machine.has_mark_due


def test_gap_while_catching_up_takes_the_consistent_mark_back() -> None:
    machine = streaming(GAP, slot=70, condition=Condition.CATCHING_UP)
    assert dispatch(machine, 0).mark is Mark.RESYNC
    dispatch(machine, 30)
    assert not machine.has_mark_due


def test_gap_at_the_head_in_overflow_gets_no_mark_yet() -> None:
    machine = streaming(replace(GAP, gap=100, last_gap=100, mode=Mode.OVERFLOW), slot=100)
    assert not machine.has_mark_due


def test_gap_with_slots_behind_it_gets_its_mark_though_the_mode_turned_again() -> None:
    """RESUME at slot 70, 30 slots, OVERFLOW again, all before the reader looked."""
    machine = streaming(replace(GAP, mode=Mode.OVERFLOW), slot=70)
    assert dispatch(machine, 30).mark is Mark.RESYNC


def test_gap_behind_one_that_was_repaired_gets_a_mark_of_its_own() -> None:
    """The capture names the first until a slot behind it is released."""
    machine = streaming(replace(GAP, resync_regions=0))
    machine.handle(s.CaptureSeen(replace(GAP, resync_regions=0)))
    dispatch(machine, 40)
    machine.handle(
        s.CaptureSeen(replace(GAP, last_gap=100, overflows=2, mode=Mode.OVERFLOW, active_regions=1))
    )
    # The replica is a prefix up to the second gap, in front of which nothing is missed.
    assert not machine.has_mark_due
    dispatch(machine, 20)
    assert not machine.has_mark_due
    machine.handle(
        s.CaptureSeen(replace(GAP, last_gap=100, overflows=2, head=110, resync_regions=1))
    )
    header = dispatch(machine, 0)
    assert (header.mark, header.first) == (Mark.RESYNC, 100)


def test_gap_of_an_overflow_right_after_the_consistent_mark_gets_a_mark_of_its_own() -> None:
    """No look between the mark and the overflow: what is settled is as of the mark's look."""
    machine = streaming(GAP, slot=70, condition=Condition.INCONSISTENT)
    machine.handle(s.CaptureSeen(replace(GAP, resync_regions=0)))
    dispatch(machine, 30)
    assert dispatch(machine, 0).mark is Mark.CONSISTENT
    again = replace(GAP, last_gap=120, head=130, overflows=2)
    machine.handle(s.CaptureSeen(again))
    assert machine.dispatch_limit == 20
    dispatch(machine, 20)
    assert dispatch(machine, 0).mark is Mark.RESYNC


def test_second_gap_of_a_reader_that_knows_of_none_gets_its_mark_no_later() -> None:
    """Which of them were repaired is not known to it: from the first on, to be sure."""
    machine = streaming(replace(GAP, gap=60, last_gap=90, overflows=2))
    assert machine.dispatch_limit == 20
    dispatch(machine, 20)
    assert dispatch(machine, 0).mark is Mark.RESYNC


@pytest.mark.parametrize("condition", [Condition.CONSISTENT, Condition.CATCHING_UP])
def test_dirt_without_a_gap_makes_no_reader_end_the_consistency(condition: Condition) -> None:
    """Of writes that failed, or of a user's word: up to a scan the replica stays a prefix."""
    machine = streaming(replace(STATUS, resync_regions=3), condition=condition)
    assert not machine.has_mark_due
    assert dispatch(machine, 10).kind is BatchKind.LIVE


def test_gap_is_marked_once_though_it_is_released_later() -> None:
    machine = streaming(GAP, slot=70)
    assert dispatch(machine, 0).mark is Mark.RESYNC
    dispatch(machine, 10)
    machine.handle(s.CaptureSeen(GAP))
    assert not machine.has_mark_due


def test_resume_is_asked_when_the_ring_has_drained_below_the_mark() -> None:
    full = replace(STATUS, mode=Mode.OVERFLOW, head=40 + 1025, gap=1065, last_gap=1065)
    machine = streaming(full)
    assert s.Resume() not in machine.handle(s.CaptureSeen(full))
    assert s.Resume() in machine.handle(s.CaptureSeen(replace(full, tail=41)))


def test_resume_is_not_asked_while_the_target_is_away() -> None:
    empty = replace(STATUS, mode=Mode.OVERFLOW, tail=100, gap=100, last_gap=100)
    machine = new_sequencer(empty)
    assert s.Resume() not in machine.handle(s.CaptureSeen(empty))


# Settings.


@pytest.mark.parametrize(
    "fields", [{"batch_slots": 255}, {"batch_slots": 1025}, {"window_slots": 100}]
)
def test_settings_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        s.SequencerSettings(**fields)
