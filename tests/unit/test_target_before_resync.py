# SPDX-License-Identifier: GPL-2.0-only
"""A usable replica is changed to something else only when the hook has run for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.target import events
from bdr.common.target.events import Action, HookEnded, RunHook
from bdr.common.target.hook import Cause, HookOutcome, HookSettings
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.batch import BatchKind, Marker
from bdr.common.wire.condition import Condition
from tests.support.target_rig import (
    BLANK,
    EPOCH,
    HELLO,
    OTHER_STREAM,
    RECORD,
    TargetRig,
    jobs,
    make_batch,
    make_marker,
    of,
    open_session,
    welcome,
)

HOLD = TargetSettings(before_resync=HookSettings(retry_s=10.0))
PROCEED = TargetSettings(before_resync=HookSettings(is_required=False))
GOOD = HookEnded(HookOutcome.GOOD, "")
FAILED = HookEnded(HookOutcome.FAILED, "exit code 1")
TIMED_OUT = HookEnded(HookOutcome.TIMED_OUT, "killed")
NEW = replace(HELLO, stream=OTHER_STREAM, tail=0, head=0, acknowledged=0, counted=0)
GAP = make_marker(1, 50, Marker.INCONSISTENT)


def hooks(actions: list[Action]) -> list[tuple[Cause, Condition, int]]:
    return [(it.cause, it.record.condition, it.record.slot) for it in of(RunHook, actions)]


def held(settings: TargetSettings = HOLD) -> TargetRig:
    """A rig in which the hook runs, before a gap."""
    rig = open_session(settings=settings)
    actions = rig.bring(GAP)
    assert hooks(actions) == [(Cause.INCONSISTENT, Condition.CONSISTENT, 50)]
    assert not jobs(actions)
    return rig


def test_gap_waits_for_the_hook() -> None:
    rig = held()
    assert not rig.node.accepts_batches
    assert rig.record.condition is Condition.CONSISTENT
    (job,) = jobs(rig.handle(GOOD))
    assert job.record.condition is Condition.INCONSISTENT
    assert rig.node.accepts_batches


def test_without_a_hook_nothing_waits() -> None:
    rig = open_session()
    assert len(jobs(rig.bring(GAP))) == 1


def test_hook_runs_when_all_that_was_accepted_before_is_durable() -> None:
    rig = open_session(settings=HOLD)
    rig.bring(make_batch(1, 50))
    rig.bring(make_batch(2, 51))
    first = rig.node.jobs.last - 1
    assert not hooks(rig.bring(make_marker(3, 52, Marker.INCONSISTENT)))
    assert not hooks(rig.durable(first))
    assert hooks(rig.durable()) == [(Cause.INCONSISTENT, Condition.CONSISTENT, 52)]


def test_first_batch_of_a_source_that_does_not_resume_waits_and_the_replica_stays() -> None:
    rig = TargetRig(settings=HOLD)
    rig.tick(100.0)
    found = welcome(rig, NEW)
    marker = make_marker(1, 0, Marker.UNVERIFIED, stream=OTHER_STREAM)
    actions = rig.bring(marker)
    assert hooks(actions) == [(Cause.COMPARE, Condition.CONSISTENT, 50)]
    assert found.condition is Condition.UNKNOWN
    assert (rig.record.stream, rig.record.slot) == (RECORD.stream, 50)
    (job,) = jobs(rig.handle(GOOD))
    assert (job.record.stream, job.record.condition) == (OTHER_STREAM, Condition.UNVERIFIED)


def test_first_repair_of_an_unverified_replica_waits_and_no_other() -> None:
    rig = open_session(replace(RECORD, condition=Condition.UNVERIFIED), settings=HOLD)
    repair = make_batch(1, 50, kind=BatchKind.RESYNC)
    assert hooks(rig.bring(repair)) == [(Cause.INCONSISTENT, Condition.UNVERIFIED, 50)]
    assert len(jobs(rig.handle(GOOD))) == 1
    assert len(jobs(rig.bring(make_batch(2, 50, kind=BatchKind.RESYNC)))) == 1


@pytest.mark.parametrize("condition", [Condition.INCONSISTENT, Condition.UNKNOWN])
def test_replica_that_is_not_usable_needs_no_hook(condition: Condition) -> None:
    rig = open_session(replace(RECORD, condition=condition), settings=HOLD)
    assert len(jobs(rig.bring(make_batch(1, 50, kind=BatchKind.RESYNC)))) == 1


def test_first_contact_needs_no_hook() -> None:
    rig = TargetRig(BLANK, HOLD)
    rig.tick(100.0)
    epoch = welcome(rig, NEW).epoch
    marker = make_marker(1, 0, Marker.UNVERIFIED, epoch=epoch, stream=OTHER_STREAM)
    assert len(jobs(rig.bring(marker))) == 1


def test_batches_behind_the_one_that_waits_follow_it() -> None:
    rig = open_session(settings=HOLD)
    rig.bring(make_batch(2, 50))
    rig.bring(GAP)
    assert not jobs(rig.bring(GAP))
    assert rig.node.dropped["duplicate"] == 1
    assert [job.record.slot for job in jobs(rig.handle(GOOD))] == [50, 51]


@pytest.mark.parametrize("ended", [FAILED, TIMED_OUT])
def test_hook_that_fails_is_repeated_while_the_replica_is_held(ended: HookEnded) -> None:
    rig = held()
    assert not jobs(rig.handle(ended))
    rig.tick(109.0)
    assert (rig.node.hook.held_s, rig.node.hook.failures) == (9.0, 1)
    assert len(hooks(rig.handle(events.Tick(110.0)))) == 1
    assert len(jobs(rig.handle(GOOD))) == 1
    assert (rig.node.hook.held_s, rig.node.hook.failures) == (None, 0)


@pytest.mark.parametrize("ended", [FAILED, TIMED_OUT])
def test_hook_that_fails_may_be_passed_over(ended: HookEnded) -> None:
    assert len(jobs(held(PROCEED).handle(ended))) == 1


def test_hook_that_failed_is_not_repeated_without_a_batch_that_waits() -> None:
    """Its source is away: nothing threatens the replica. The status says so until then."""
    rig = held()
    rig.handle(FAILED)
    epoch = welcome(rig).epoch
    rig.tick(130.0)
    assert (rig.node.hook.held_s, rig.node.hook.failures) == (30.0, 1)
    assert not hooks(rig.bring(make_marker(1, 50, Marker.INCONSISTENT, epoch=epoch)))
    assert len(hooks(rig.handle(events.Tick(130.25)))) == 1


def test_session_that_follows_waits_for_the_same_run() -> None:
    """Its source sends HELLO again, since its batches do not arrive."""
    rig = held()
    epoch = welcome(rig).epoch
    assert epoch == EPOCH + 1
    actions = rig.bring(make_batch(1, 50, epoch=epoch))
    assert not hooks(actions)
    assert not jobs(actions)
    assert len(jobs(rig.handle(GOOD))) == 1
    # What the replica is now it was not then.
    gap = make_marker(2, 51, Marker.INCONSISTENT, epoch=epoch)
    rig.bring(gap)
    assert len(hooks(rig.durable())) == 1


def test_run_that_ends_without_a_session_counts_for_the_replica_as_it_is() -> None:
    rig = held()
    epoch = welcome(rig).epoch
    assert not jobs(rig.handle(GOOD))
    gap = make_marker(1, 50, Marker.INCONSISTENT, epoch=epoch)
    assert len(jobs(rig.bring(gap))) == 1


def test_batch_that_needs_no_hook_passes_while_it_is_to_be_repeated() -> None:
    rig = held()
    rig.handle(FAILED)
    epoch = welcome(rig).epoch
    assert len(jobs(rig.bring(make_batch(1, 50, epoch=epoch)))) == 1


def test_replica_that_a_crash_has_left_catching_up_is_usable() -> None:
    crashed: ReplicaRecord = replace(RECORD, clean=False)
    rig = open_session(crashed, settings=HOLD)
    assert hooks(rig.bring(GAP)) == [(Cause.INCONSISTENT, Condition.CATCHING_UP, 50)]


def test_damaged_batch_runs_no_hook() -> None:
    rig = open_session(settings=HOLD)
    assert not hooks(rig.bring(make_marker(1, 51, Marker.INCONSISTENT)))
