# SPDX-License-Identifier: GPL-2.0-only
"""The sequencer and scans: conditions, resync batches, and overflows that come again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.capture import api
from bdr.common.errors import PERMANENT_EXIT_CODES, InternalError, StaleCaptureError
from bdr.common.ring.layout import Mode
from bdr.common.source import sequencer
from bdr.common.wire.control import Condition, Mark, Progress, Standing
from tests.unit.test_sequencer import INFO, STATUS, ack, dispatch, new_sequencer, streaming, welcome

DIRTY = replace(STATUS, resync_regions=3)


def of_kind(
    actions: list[sequencer.Action], kind: type[sequencer.Action]
) -> list[sequencer.Action]:
    return [action for action in actions if isinstance(action, kind)]


def test_unknown_target_has_every_region_marked_before_that_is_declared() -> None:
    machine = new_sequencer()
    machine.handle(sequencer.LinkUp())
    assert of_kind(welcome(machine, 40, Condition.UNKNOWN), sequencer.MarkAll)
    machine.handle(sequencer.CaptureSeen(DIRTY))
    assert machine.dispatch_limit == 0
    assert dispatch(machine, 0).mark is Mark.RESYNC
    assert machine.condition is Condition.INCONSISTENT
    assert not machine.has_mark_due


def test_unknown_target_is_marked_anew_if_the_mark_was_lost() -> None:
    machine = new_sequencer()
    machine.handle(sequencer.LinkUp())
    welcome(machine, 40, Condition.UNKNOWN)
    machine.handle(sequencer.CaptureSeen(DIRTY))
    dispatch(machine, 0)
    machine.handle(sequencer.LinkDown())
    machine.handle(sequencer.LinkUp())
    assert of_kind(welcome(machine, 40, Condition.UNKNOWN), sequencer.MarkAll)
    assert machine.has_mark_due


@pytest.mark.parametrize(
    "status",
    [
        DIRTY,
        replace(STATUS, active_regions=1, resync_regions=1),
        replace(STATUS, mode=Mode.OVERFLOW),
        replace(STATUS, unlogged=1),
    ],
)
def test_inconsistent_stays_so_while_anything_is_dirty_or_missed(status: api.CaptureStatus) -> None:
    machine = streaming(condition=Condition.INCONSISTENT)
    machine.handle(sequencer.CaptureSeen(status))
    dispatch(machine, 60)
    assert not machine.has_mark_due


def test_consistent_is_taken_back_by_a_look_that_finds_dirt() -> None:
    machine = streaming(condition=Condition.INCONSISTENT)
    machine.handle(sequencer.CaptureSeen(STATUS))
    machine.handle(sequencer.CaptureSeen(DIRTY))
    dispatch(machine, 60)
    assert not machine.has_mark_due


def test_resync_batches_are_numbered_among_the_others_and_move_nothing() -> None:
    machine = streaming(DIRTY, condition=Condition.INCONSISTENT)
    assert dispatch(machine, 5).number == 1
    numbers = [action.header for action in machine.handle(sequencer.ResyncReady(2))]  # type: ignore[union-attr]
    assert [(header.number, header.first) for header in numbers] == [(2, 45), (3, 45)]
    assert dispatch(machine, 5).first == 45
    ack(machine, 3)
    assert (machine.tail, machine.durable) == (45, 3)


def test_more_resync_batches_than_there_is_room_for_is_an_internal_error() -> None:
    machine = streaming(DIRTY, condition=Condition.INCONSISTENT)
    with pytest.raises(InternalError):
        machine.handle(sequencer.ResyncReady(machine.resync_room + 1))


@pytest.mark.parametrize(
    ("capacity", "limit"), [(64, 1), (1024, 1), (8192, 8), (16384, 16), (1 << 20, 32)]
)
def test_resync_batches_in_flight_are_few_where_the_ring_is_small(
    capacity: int, limit: int
) -> None:
    info = replace(INFO, capacity=capacity)
    status = replace(DIRTY, head=STATUS.tail)
    machine = sequencer.Sequencer(volume="v", info=info, status=status)
    machine.handle(sequencer.LinkUp())
    welcome(machine, status.tail, Condition.INCONSISTENT)
    machine.handle(sequencer.CaptureSeen(status))
    assert machine.resync_limit == limit
    # One ticket always goes as a whole.
    assert machine.resync_room == 32
    machine.handle(sequencer.ResyncReady(1))
    assert machine.resync_room == limit - 1


def test_no_resync_batch_is_added_while_the_ring_is_half_full() -> None:
    machine = streaming(DIRTY, condition=Condition.INCONSISTENT)
    half = STATUS.tail + INFO.capacity // 2
    machine.handle(sequencer.CaptureSeen(replace(DIRTY, head=half)))
    assert machine.resync_room > 0
    machine.handle(sequencer.CaptureSeen(replace(DIRTY, head=half + 1)))
    assert machine.resync_room == 0


def test_scanner_lost_greets_again_only_if_its_batches_have_not_arrived() -> None:
    machine = streaming(DIRTY, condition=Condition.INCONSISTENT)
    machine.handle(sequencer.ResyncReady(1))
    ack(machine, 0, accepted=1)
    machine.handle(sequencer.ScannerLost())
    assert machine.phase is sequencer.Phase.STREAMING
    machine.handle(sequencer.ResyncReady(1))
    machine.handle(sequencer.ScannerLost())
    assert machine.phase is sequencer.Phase.GREETING


def test_failed_writes_do_not_wait_for_a_scan_that_does_not_end() -> None:
    """A region that cannot be read keeps its bit."""
    machine = streaming(settings=sequencer.SequencerSettings(failed_wait_s=3.0))
    machine.handle(sequencer.Tick(1.0))
    machine.handle(sequencer.CaptureSeen(replace(STATUS, resync_regions=1)))
    both = replace(STATUS, active_regions=1, resync_regions=1)
    machine.handle(sequencer.Tick(3.9))
    assert not of_kind(machine.handle(sequencer.CaptureSeen(both)), sequencer.Resume)
    machine.handle(sequencer.Tick(4.0))
    assert of_kind(machine.handle(sequencer.CaptureSeen(both)), sequencer.Resume)


def test_failed_writes_that_go_on_let_a_scan_have_ever_longer() -> None:
    """Each RESUME makes it begin anew: at one a minute a slow link would never end it."""
    machine = streaming(
        settings=sequencer.SequencerSettings(failed_wait_s=1.0, failed_wait_max_s=5.0)
    )
    both = replace(STATUS, active_regions=1, resync_regions=1)

    def merges(status: api.CaptureStatus, *, last_s: int) -> list[int]:
        found = []
        for now_s in range(last_s - 25, last_s):
            machine.handle(sequencer.Tick(float(now_s)))
            ack(machine, 0)
            looks = [machine.handle(sequencer.CaptureSeen(status)) for _ in range(3)]
            found += [now_s for actions in looks if of_kind(actions, sequencer.Resume)]
        return found

    machine.handle(sequencer.CaptureSeen(replace(both, active_regions=0)))
    assert merges(both, last_s=26) == [1, 3, 7, 12, 17, 22]
    machine.handle(sequencer.CaptureSeen(STATUS))
    assert merges(both, last_s=51)[:2] == [26, 28]


def test_overflow_within_a_resume_is_noticed() -> None:
    """Both looks find the mode OVERFLOW."""
    machine = streaming()
    full = replace(STATUS, mode=Mode.OVERFLOW, overflows=1)
    machine.handle(sequencer.CaptureSeen(full))
    again = machine.handle(sequencer.CaptureSeen(replace(full, overflows=2)))
    assert [action.topic for action in again if isinstance(action, sequencer.Announce)] == [
        "overflow"
    ]
    assert not of_kind(again, sequencer.Resume)


def test_failed_writes_are_merged_when_no_scan_is_under_way() -> None:
    machine = streaming()
    machine.handle(sequencer.CaptureSeen(STATUS))
    failed = replace(STATUS, active_regions=1)
    assert not of_kind(
        machine.handle(sequencer.CaptureSeen(replace(failed, resync_regions=1))), sequencer.Resume
    )
    generation = machine.generation
    assert of_kind(machine.handle(sequencer.CaptureSeen(failed)), sequencer.Resume)
    assert machine.generation > generation


def test_target_is_told_what_is_left_and_tells_since_when() -> None:
    machine = streaming(condition=Condition.INCONSISTENT)
    machine.handle(sequencer.CaptureSeen(replace(STATUS, active_regions=1, resync_regions=2)))
    sent = [
        action.message
        for action in machine.handle(sequencer.Tick(1.0))
        if isinstance(action, sequencer.Send)
    ]
    assert sent[1:] == [Progress(7, 3 * 65536)]
    both = replace(STATUS, active_regions=INFO.regions, resync_regions=INFO.regions)
    machine.handle(sequencer.CaptureSeen(both))
    sent = [
        action.message
        for action in machine.handle(sequencer.Tick(2.0))
        if isinstance(action, sequencer.Send)
    ]
    assert sent[1:] == [Progress(7, INFO.device_sectors * 512)]
    assert machine.standing is None
    standing = Standing(7, Condition.INCONSISTENT, 1000, 1060)
    machine.handle(sequencer.MessageArrived(replace(standing, epoch=6)))
    assert machine.standing is None
    machine.handle(sequencer.MessageArrived(standing))
    assert machine.standing == standing


@pytest.mark.parametrize("sectors", [STATUS.device_sectors + 8, STATUS.device_sectors - 8])
def test_device_of_another_size_ends_the_process_to_be_started_anew(sectors: int) -> None:
    machine = streaming()
    (stop,) = machine.handle(sequencer.CaptureSeen(replace(STATUS, device_sectors=sectors)))
    assert isinstance(stop, sequencer.Stop)
    assert isinstance(stop.error, StaleCaptureError)
    assert stop.error.exit_code not in PERMANENT_EXIT_CODES


# Overflows that come again.

FULL = replace(STATUS, mode=Mode.OVERFLOW, gap=100)


def overflow_lasts_s(machine: sequencer.Sequencer, now_s: float) -> float:
    """An overflow begins now and its ring has drained; until when is it left?"""
    machine.handle(sequencer.Tick(now_s))
    began_s = now_s
    full = replace(FULL, overflows=machine.status.overflows + 1)
    while not of_kind(machine.handle(sequencer.CaptureSeen(full)), sequencer.Resume):
        now_s += 0.25
        machine.handle(sequencer.Tick(now_s))
        ack(machine, 0)  # the target is alive
        assert now_s < began_s + 60
    machine.handle(sequencer.CaptureSeen(replace(STATUS, overflows=full.overflows)))
    return now_s - began_s


def test_overload_that_lasts_makes_pauses_longer_up_to_a_limit() -> None:
    machine = streaming()
    now_s, found = 1.0, []
    for _ in range(8):
        found.append(round(overflow_lasts_s(machine, now_s)))
        now_s += found[-1] + 0.1
    assert found == [0, 1, 2, 4, 8, 16, 16, 16]


def test_load_that_falls_is_forgiven() -> None:
    machine = streaming()
    now_s = 1.0
    for _ in range(4):
        now_s += overflow_lasts_s(machine, now_s) + 0.1
    for _ in range(60):
        now_s += 1
        machine.handle(sequencer.Tick(now_s))
        ack(machine, 0)
    assert overflow_lasts_s(machine, now_s) == 0
