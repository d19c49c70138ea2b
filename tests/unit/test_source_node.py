# SPDX-License-Identifier: GPL-2.0-only
"""A source's order: batches, the window, what is freed, and when the capture is looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.capture.view import RingView
from bdr.common.errors import PERMANENT_EXIT_CODES, InternalError, RefusedError, StaleCaptureError
from bdr.common.ring.layout import WRITE_SLOTS_MAX, Mode
from bdr.common.source import events
from bdr.common.source.events import LinkUp, QueryStatus, RingWoken, StatusArrived, Stop, Tick
from bdr.common.source.order import Waits
from bdr.common.source.quota import QuotaSettings
from bdr.common.source.session import Phase
from bdr.common.source.settings import SourceSettings
from bdr.common.source.window import WindowSettings
from bdr.common.wire.batch import BATCH_SLOTS_MAX, BatchKind
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Welcome
from bdr.common.wire.scan import Resync
from tests.support.source_rig import (
    EPOCH,
    INFO,
    STATUS,
    STREAM,
    TARGET,
    SourceRig,
    of,
    streaming,
)


def with_window(**limits: int) -> SourceSettings:
    window = WindowSettings(**limits)
    quota = QuotaSettings(batches=min(window.batches, QuotaSettings().batches))
    return SourceSettings(window=window, quota=quota, status_interval_s=0.0)


# Batches.


def test_nothing_is_dispatched_before_a_welcome() -> None:
    rig = SourceRig()
    rig.capture.publish(5)
    assert rig.next_batch() is None
    rig.handle(LinkUp())
    assert rig.next_batch() is None
    rig.welcome(40)
    assert rig.next_batch() is not None


def test_batches_are_numbered_without_a_hole_and_follow_each_other() -> None:
    rig = streaming()
    found = [rig.dispatch(count) for count in (3, 1, 7)]
    assert [(h.number, h.first, h.count) for h in found] == [(1, 40, 3), (2, 43, 1), (3, 44, 7)]
    assert {(h.kind, h.epoch, h.stream) for h in found} == {(BatchKind.LIVE, EPOCH, STREAM)}


def test_batch_takes_whole_writes_that_are_published_and_no_more_than_it_may_hold() -> None:
    rig = streaming()
    rig.node.order.window._batch_size.slots = BATCH_SLOTS_MAX  # a fast link
    for _ in range(6):
        rig.capture.publish(200)
    header = rig.next_batch()
    assert header is not None
    assert header.count == BATCH_SLOTS_MAX // 200 * 200
    header = rig.next_batch()
    assert header is not None
    assert header.count == 200
    assert rig.next_batch() is None


def test_ack_releases_only_what_is_durable() -> None:
    rig = streaming()
    for count in (3, 1, 7):
        rig.dispatch(count)
    rig.ack(0, accepted=3)
    assert rig.end_round() == [(40, 51)]  # only to be woken
    rig.ack(2, accepted=3)
    assert rig.end_round() == [(44, 51)]
    rig.ack(2, accepted=3)
    assert rig.end_round() == []
    rig.ack(3)
    assert rig.end_round() == [(51, 51)]
    assert rig.node.order.window.in_flight == 0


def test_release_leaves_the_counters_that_the_capture_has() -> None:
    rig = streaming(replace(STATUS, acknowledged=3, counted=5))
    rig.dispatch(1)
    rig.ack(1)
    assert of(events.Release, rig.handle(events.RoundEnded())) == [events.Release(41, 41, 3, 5)]
    status = rig.capture.status()
    assert (status.acknowledged, status.counted) == (3, 5)


def test_ack_of_an_old_epoch_releases_nothing() -> None:
    rig = streaming()
    rig.dispatch(3)
    assert rig.hear(Ack(EPOCH - 1, 1, 1, Condition.CONSISTENT, 0, 0, 0)) == []
    assert rig.node.order.tail == 40


@pytest.mark.parametrize(("durable", "accepted"), [(2, 2), (0, 2), (1, 0)])
def test_ack_of_what_was_never_sent_stops(durable: int, accepted: int) -> None:
    rig = streaming()
    rig.dispatch(3)
    (stop,) = rig.ack(durable, accepted)
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, RefusedError)
    assert rig.node.order.tail == 40


def test_window_of_batches_full_dispatches_nothing_until_an_ack() -> None:
    rig = streaming(settings=with_window(batches=2))
    rig.dispatch(1)
    rig.dispatch(1)
    rig.capture.publish()
    assert rig.next_batch() is None
    rig.ack(1, accepted=2)
    assert rig.next_batch() is not None


def test_window_of_slots_leaves_room_for_a_whole_write_or_none() -> None:
    rig = streaming(settings=with_window(slots=WRITE_SLOTS_MAX + 8, batch_slots=WRITE_SLOTS_MAX))
    rig.dispatch(8)
    rig.capture.publish(1)
    rig.capture.publish(WRITE_SLOTS_MAX)
    header = rig.next_batch()
    assert header is not None
    assert header.count == 1  # the next write is longer than what is left of a batch
    assert rig.next_batch() is None
    # Not for the ring, which would wake the reader again and again.
    assert rig.node.order.waits_for() is Waits.TARGET
    rig.ack(2)
    header = rig.next_batch()
    assert header is not None
    assert header.count == WRITE_SLOTS_MAX
    rig.capture.publish(1)
    assert rig.next_batch() is None
    rig.ack(3)
    assert rig.next_batch() is not None


def test_more_slots_than_the_limit_is_an_internal_error_with_a_story(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = streaming()
    monkeypatch.setattr(RingView, "published", lambda *_: BATCH_SLOTS_MAX + 1)
    with pytest.raises(InternalError, match="STREAMING"):
        rig.next_batch()


@pytest.mark.parametrize("fields", [{"batch_slots": 255}, {"batch_slots": 1025}, {"slots": 100}])
def test_settings_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        WindowSettings(**fields)


def test_settings_by_which_a_lease_would_never_fit_the_window_are_refused() -> None:
    SourceSettings(window=WindowSettings(batches=8), quota=QuotaSettings(batches=8))
    with pytest.raises(ValueError, match="8"):
        SourceSettings(window=WindowSettings(batches=8), quota=QuotaSettings(batches=9))


@pytest.mark.parametrize(
    ("attribute", "change"),
    [("tail", 4), ("cursor", 1), ("accepted", 9), ("resync_in_flight", 1), ("_next_number", 1)],
)
def test_window_that_contradicts_itself_is_an_internal_error_with_a_story(
    attribute: str, change: int
) -> None:
    rig = streaming()
    rig.dispatch(3)
    window = rig.node.order.window
    setattr(window, attribute, getattr(window, attribute) + change)
    with pytest.raises(InternalError, match="STREAMING"):
        rig.node.handle(RingWoken())


def test_story_of_an_internal_error_has_the_events_that_led_to_it() -> None:
    """But not those of every round, which would leave no room."""
    rig = streaming()
    rig.dispatch(3)
    rig.ack(0, accepted=1)
    for tenth in range(40):
        rig.tick(tenth / 10)
        rig.end_round()
    rig.node.order.window.tail = 99
    with pytest.raises(InternalError, match=r"STREAMING <- MessageArrived.*Ack") as caught:
        rig.node.handle(RingWoken())
    assert "Tick(" not in str(caught.value)


# What is freed, and what is waited for.


def test_capture_is_asked_once_for_the_next_slot_until_it_has_woken_the_reader() -> None:
    rig = streaming()
    assert rig.end_round() == [(40, 40)]
    assert rig.end_round() == []
    rig.handle(RingWoken())
    assert rig.end_round() == [(40, 40)]


def test_capture_is_asked_for_another_slot_when_the_cursor_has_moved() -> None:
    rig = streaming()
    rig.end_round()
    rig.dispatch(3)
    assert rig.end_round() == [(40, 43)]


def test_capture_is_asked_for_the_first_slot_again_after_a_setback() -> None:
    rig = streaming()
    rig.dispatch(3)
    assert rig.end_round() == [(40, 43)]
    rig.handle(events.SenderLost())
    rig.welcome(43, epoch=8)
    assert rig.end_round() == [(43, 43)]


def test_capture_is_not_asked_for_a_slot_while_none_may_go() -> None:
    """A slot that may not go yet would wake the reader again and again."""
    rig = streaming(settings=with_window(batches=1))
    rig.dispatch(1)
    assert rig.end_round() == []
    rig.handle(events.LinkDown())
    assert rig.end_round() == []


def test_what_is_durable_is_freed_though_nothing_waits_for_the_next_slot() -> None:
    rig = streaming(settings=with_window(batches=2))
    rig.dispatch(1)
    rig.dispatch(1)
    rig.ack(1, accepted=2)
    rig.capture.publish()
    rig.next_batch()
    assert rig.node.order.waits_for() is Waits.TARGET
    assert rig.end_round() == [(41, 43)]
    rig.ack(2)
    rig.handle(events.LinkDown())
    assert rig.end_round() == [(42, 42)]


def test_what_the_next_batch_waits_for() -> None:
    rig = SourceRig(settings=with_window(batches=2))
    rig.capture.publish(3)
    found = []

    def look_at(_: object) -> None:
        rig.end_round()
        found.append(rig.node.waits_for)

    look_at(rig.handle(LinkUp()))
    look_at(rig.welcome(40, Condition.CATCHING_UP))
    look_at(rig.next_batch())
    rig.capture.publish(57)
    look_at(None)
    look_at(rig.next_batch())
    look_at(rig.ack(1))  # a marker is due
    look_at(rig.next_batch())
    look_at(rig.ack(3))
    assert found == [
        Waits.TARGET,
        Waits.SENDER,
        Waits.RING,
        Waits.SENDER,
        Waits.TARGET,
        Waits.SENDER,
        Waits.TARGET,
        Waits.RING,
    ]


# Looks.


def test_capture_is_looked_at_as_often_as_the_settings_say() -> None:
    node = SourceRig(settings=SourceSettings(status_interval_s=0.25)).node

    def looks(now_at: float) -> bool:
        actions = node.handle(Tick(now_at))
        if QueryStatus() in actions:
            node.handle(StatusArrived(STATUS))
        return QueryStatus() in actions

    asked_at = [quarter / 20 for quarter in range(21) if looks(quarter / 20)]
    assert asked_at == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_wakeup_without_a_slot_is_another_mode_and_is_looked_at() -> None:
    rig = streaming()
    assert QueryStatus() in rig.node.handle(RingWoken())


def test_wakeup_with_a_slot_needs_no_look() -> None:
    rig = streaming()
    rig.capture.publish()
    assert rig.node.handle(RingWoken()) == []


def test_what_changes_the_regions_or_the_mode_is_followed_by_a_look() -> None:
    """And nothing comes between: what is decided must be of the capture as it is then."""
    full = replace(STATUS, mode=Mode.OVERFLOW, active_regions=1)
    node = streaming().node
    assert node.handle(Tick(0.0)) == [QueryStatus()]
    assert node.handle(StatusArrived(full)) == [events.Resume(), QueryStatus()]
    rig = SourceRig()
    rig.handle(LinkUp())
    welcome = Welcome(1, EPOCH, 1, 40, 0, Condition.UNKNOWN, TARGET, ())
    actions = rig.node.handle(events.MessageArrived(welcome))
    assert actions[0] == events.MarkRegions(0, INFO.regions)
    assert actions[-1] == QueryStatus()
    node = streaming().node
    assert node.handle(events.RequestArrived(b"c", Resync(1, [(0, 8)]))) == [QueryStatus()]
    actions = node.handle(StatusArrived(STATUS))
    assert actions[0] == events.MarkRegions(0, 1)
    assert actions[-1] == QueryStatus()


def test_nothing_is_decided_before_the_answer_to_a_look() -> None:
    rig = streaming()
    rig.node.handle(Tick(1.0))
    with pytest.raises(InternalError, match="STREAMING"):  # the story
        rig.node.handle(events.SenderReady())


@pytest.mark.parametrize("sectors", [STATUS.device_sectors + 8, STATUS.device_sectors - 8])
def test_device_of_another_size_ends_the_process_to_be_started_anew(sectors: int) -> None:
    rig = streaming()
    (stop,) = rig.look(device_sectors=sectors)
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, StaleCaptureError)
    assert stop.error.exit_code not in PERMANENT_EXIT_CODES
    assert rig.node.session.state is Phase.STOPPED


def test_capture_of_another_stream_ends_the_process_to_be_started_anew() -> None:
    rig = streaming()
    (stop,) = rig.look(stream=b"another-stream..")
    assert isinstance(stop, Stop)
    assert isinstance(stop.error, StaleCaptureError)
    assert stop.error.exit_code not in PERMANENT_EXIT_CODES


def test_stopped_node_does_nothing_any_more() -> None:
    rig = streaming()
    rig.look(device_sectors=8)
    rig.capture.publish()
    assert rig.next_batch() is None
    assert rig.end_round() == []
    assert rig.handle(RingWoken()) == []
