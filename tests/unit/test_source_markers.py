# SPDX-License-Identifier: GPL-2.0-only
"""What a source declares of the replica, and at which place in the order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.ring.layout import Mode
from bdr.common.source import events
from bdr.common.source.events import LinkUp
from bdr.common.wire.batch import BatchKind, Marker
from bdr.common.wire.condition import Condition
from tests.support.source_rig import INFO, STATUS, SourceRig, headers, streaming, topics


def test_catching_up_ends_with_a_marker_at_the_head_of_the_welcome() -> None:
    rig = streaming(condition=Condition.CATCHING_UP)
    rig.dispatch(59)
    assert rig.next_batch() is None
    rig.dispatch(1)
    rig.capture.publish(5)
    header = rig.next_batch()
    assert header is not None
    assert (header.marker, header.first, header.count) == (Marker.CONSISTENT, 100, 0)
    assert rig.node.order.condition is Condition.CONSISTENT
    header = rig.next_batch()
    assert header is not None
    assert (header.kind, header.first, header.count) == (BatchKind.LIVE, 100, 5)


def test_marker_is_announced_with_the_condition_that_it_declares() -> None:
    rig = streaming(condition=Condition.CATCHING_UP, slot=100)
    actions = rig.handle(events.SenderReady())
    assert headers(actions)[0].kind is BatchKind.MARKER
    assert events.Announce("condition", {"condition": "CONSISTENT"}) in actions


def test_marker_in_flight_is_repeated_after_a_setback() -> None:
    rig = streaming(condition=Condition.CATCHING_UP, slot=100)
    assert rig.marker() is Marker.CONSISTENT
    rig.handle(events.SenderLost())
    rig.welcome(100, Condition.CATCHING_UP, epoch=8)
    assert rig.marker() is Marker.CONSISTENT


GAP = replace(STATUS, gap=70, last_gap=70, resync_regions=3, overflows=1)


def test_gap_ends_a_batch_and_gets_a_marker_before_the_next_slot() -> None:
    rig = streaming(GAP)
    for slots in (20, 10, 5):
        rig.capture.publish(slots)
    header = rig.next_batch()
    assert header is not None
    assert header.count == 30
    header = rig.next_batch()
    assert header is not None
    assert (header.marker, header.first, header.count) == (Marker.INCONSISTENT, 70, 0)
    header = rig.next_batch()
    assert header is not None
    assert (header.kind, header.first, header.count) == (BatchKind.LIVE, 70, 5)


def test_gap_of_a_replica_that_is_inconsistent_already_gets_no_marker() -> None:
    assert streaming(GAP, slot=70, condition=Condition.INCONSISTENT).marker() is None


def test_gap_while_catching_up_takes_the_consistent_marker_back() -> None:
    rig = streaming(GAP, slot=70, condition=Condition.CATCHING_UP)
    assert rig.marker() is Marker.INCONSISTENT
    rig.dispatch(30)
    assert rig.marker() is None


def test_gap_at_the_head_in_overflow_gets_no_marker_yet() -> None:
    rig = streaming(replace(GAP, gap=100, last_gap=100, mode=Mode.OVERFLOW), slot=100)
    assert rig.marker() is None


def test_gap_with_slots_after_it_gets_its_marker_though_the_mode_turned_again() -> None:
    """RESUME at slot 70, 30 slots, OVERFLOW again, all before the reader looked."""
    rig = streaming(replace(GAP, mode=Mode.OVERFLOW), slot=70)
    assert rig.dispatch(30).marker is Marker.INCONSISTENT


def test_gap_after_one_that_was_repaired_gets_a_marker_of_its_own() -> None:
    """The capture names the first until a slot after it is released."""
    settled = replace(GAP, resync_regions=0)
    rig = streaming(settled, info=replace(INFO, capacity=128))  # too full to leave OVERFLOW
    rig.look(settled)
    rig.dispatch(40)
    rig.look(replace(GAP, last_gap=100, overflows=2, mode=Mode.OVERFLOW, active_regions=1))
    # The replica is a prefix up to the second gap, before which nothing is missed.
    assert rig.marker() is None
    rig.dispatch(20)
    assert rig.marker() is None
    rig.look(replace(GAP, last_gap=100, overflows=2, head=110, resync_regions=1))
    header = rig.next_batch()
    assert header is not None
    assert (header.marker, header.first) == (Marker.INCONSISTENT, 100)


def test_gap_of_an_overflow_right_after_the_consistent_marker_gets_a_marker_of_its_own() -> None:
    """No look between the marker and the overflow: what is settled is as of the marker's look."""
    rig = streaming(GAP, slot=70, condition=Condition.INCONSISTENT)
    rig.look(replace(GAP, resync_regions=0))
    rig.dispatch(30)
    assert rig.marker() is Marker.CONSISTENT
    rig.look(replace(GAP, last_gap=120, head=130, overflows=2))
    for _ in range(3):
        rig.capture.publish(10)
    header = rig.next_batch()
    assert header is not None
    assert header.count == 20
    assert rig.marker() is Marker.INCONSISTENT


def test_second_gap_of_a_reader_that_knows_of_none_gets_its_marker_no_later() -> None:
    """Which of them were repaired is not known to it: from the first on, to be sure."""
    rig = streaming(replace(GAP, gap=60, last_gap=90, overflows=2))
    for _ in range(3):
        rig.capture.publish(10)
    header = rig.next_batch()
    assert header is not None
    assert header.count == 20
    assert rig.marker() is Marker.INCONSISTENT


@pytest.mark.parametrize("condition", [Condition.CONSISTENT, Condition.CATCHING_UP])
def test_dirt_without_a_gap_makes_no_reader_end_the_consistency(condition: Condition) -> None:
    """Of writes that failed, or of a user's command: up to a scan the replica stays a prefix."""
    rig = streaming(replace(STATUS, resync_regions=3), condition=condition)
    assert rig.marker() is None
    assert rig.dispatch(10).kind is BatchKind.LIVE


def test_gap_is_marked_once_though_it_is_released_later() -> None:
    rig = streaming(GAP, slot=70)
    assert rig.marker() is Marker.INCONSISTENT
    rig.dispatch(10)
    rig.look(GAP)
    assert rig.marker() is None


def test_gap_of_an_overflow_that_lasts_while_the_replica_catches_up_gets_its_marker() -> None:
    """It is consistent up to the gap, of which nothing is repaired yet."""
    full = replace(GAP, gap=100, last_gap=100, mode=Mode.OVERFLOW, active_regions=1)
    rig = streaming(full, slot=100, condition=Condition.CATCHING_UP)
    assert rig.marker() is Marker.CONSISTENT
    rig.look(replace(GAP, gap=100, last_gap=100, head=110))
    assert rig.dispatch(10).marker is Marker.INCONSISTENT


def test_look_outside_a_session_settles_no_gap() -> None:
    rig = streaming()
    rig.handle(events.LinkDown())
    rig.look(replace(GAP, resync_regions=0))
    rig.handle(LinkUp())
    rig.welcome(40)
    rig.look(GAP)
    rig.dispatch(30)
    assert rig.marker() is Marker.INCONSISTENT


DIRTY = replace(STATUS, resync_regions=3)


def test_unknown_target_has_every_region_marked_before_that_is_declared() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    actions = rig.welcome(40, Condition.UNKNOWN)
    assert events.MarkRegions(0, rig.capture.info.regions) in actions
    assert len(rig.dirty) == rig.capture.info.regions
    rig.capture.publish(5)
    header = rig.next_batch()
    assert header is not None
    assert (header.marker, header.count) == (Marker.UNVERIFIED, 0)
    assert rig.node.order.condition is Condition.UNVERIFIED
    header = rig.next_batch()
    assert header is not None
    assert header.kind is BatchKind.LIVE


def test_unknown_target_is_marked_anew_if_the_marker_was_lost() -> None:
    rig = SourceRig()
    rig.handle(LinkUp())
    rig.welcome(40, Condition.UNKNOWN)
    assert rig.marker() is Marker.UNVERIFIED
    rig.handle(events.LinkDown())
    rig.handle(LinkUp())
    rig.capture.show(DIRTY)
    assert events.MarkRegions(0, rig.capture.info.regions) in rig.welcome(40, Condition.UNKNOWN)
    assert rig.marker() is Marker.UNVERIFIED


@pytest.mark.parametrize(
    "changes",
    [
        {"resync_regions": 3},
        {"active_regions": 1, "resync_regions": 1},
        {"mode": Mode.OVERFLOW, "tail": 0, "head": 4000},
        {"unlogged": 1},
    ],
)
@pytest.mark.parametrize("condition", [Condition.INCONSISTENT, Condition.UNVERIFIED])
def test_scan_is_not_over_while_anything_is_dirty_or_missed(
    changes: dict[str, object], condition: Condition
) -> None:
    rig = streaming(condition=condition)
    rig.look(replace(STATUS, **changes))  # type: ignore[arg-type]
    rig.dispatch(60)
    assert rig.marker() is None


@pytest.mark.parametrize("condition", [Condition.INCONSISTENT, Condition.UNVERIFIED])
def test_consistent_is_taken_back_by_a_look_that_finds_dirt(condition: Condition) -> None:
    rig = streaming(condition=condition)
    rig.look(STATUS)
    rig.look(DIRTY)
    rig.dispatch(60)
    assert rig.marker() is None


@pytest.mark.parametrize("condition", [Condition.INCONSISTENT, Condition.UNVERIFIED])
def test_look_that_finds_nothing_dirty_sets_the_place_where_it_is_consistent(
    condition: Condition,
) -> None:
    rig = streaming(condition=condition)
    rig.look(STATUS)
    rig.look(replace(STATUS, head=200))  # a later one moves it no further
    rig.dispatch(60)
    assert rig.marker() is Marker.CONSISTENT
    assert topics(rig.look(STATUS)) == []


def test_unverified_replica_that_misses_writes_is_declared_inconsistent() -> None:
    """An overflow during the comparison: now something is known to be wrong."""
    rig = streaming(condition=Condition.UNVERIFIED, dirty=range(3))
    rig.look(replace(STATUS, gap=60, last_gap=60, overflows=1, resync_regions=3))
    rig.dispatch(20)
    assert rig.marker() is Marker.INCONSISTENT
    assert rig.node.order.condition is Condition.INCONSISTENT
