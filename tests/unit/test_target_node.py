# SPDX-License-Identifier: GPL-2.0-only
"""A target's batches: which become jobs, what is acknowledged, and what is remembered."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bdr.common.errors import InternalError
from bdr.common.ring.layout import Op
from bdr.common.ring.slots import encode
from bdr.common.target.events import Action, LogEvent, Stopping
from bdr.common.target.intake import IntakeSettings
from bdr.common.target.job import Job
from bdr.common.target.job_queue import JOBS_MAX, QUEUED_BYTES_MAX, QUEUED_JOBS_MAX
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.batch import Batch, BatchHeader, BatchKind, Marker, decode_batch, encode_batch
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Ping, Refused, Rewind, Welcome
from bdr.common.wire.reasons import RefusedReason, RewindReason
from bdr.common.wire.statement import Statement
from tests.support.target_rig import (
    DEVICE_SECTORS,
    EPOCH,
    GENERATION,
    HELLO,
    OTHER_STREAM,
    PEER,
    RECORD,
    STREAM,
    TargetRig,
    acked,
    damaged,
    jobs,
    make_batch,
    make_marker,
    messages,
    of,
    open_session,
)

SECOND_NS = 10**9


def bring(rig: TargetRig, batch: Batch) -> list[Job]:
    return jobs(rig.bring(batch))


def batches_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, Batch) for each in gc.get_objects())


def rewound(actions: list[Action]) -> RewindReason:
    """Why; nothing is applied, and nothing else sent."""
    (message,) = messages(actions)
    assert isinstance(message, Rewind)
    assert message.epoch == EPOCH
    assert jobs(actions) == []
    return message.reason


# Batches.


def test_batches_before_the_welcome_are_dropped() -> None:
    rig = TargetRig()
    rig.say(HELLO)
    assert bring(rig, make_batch(1, 50)) == []
    assert rig.node.dropped["stale"] == 1


def test_batches_before_any_source_are_dropped() -> None:
    rig = TargetRig()
    assert bring(rig, make_batch(1, 50, epoch=RECORD.epoch)) == []
    assert rig.node.dropped["stale"] == 1


def test_batches_in_order_become_jobs_with_their_place() -> None:
    rig = open_session()
    (one,) = bring(rig, make_batch(1, 50, 2))
    (two,) = bring(rig, make_batch(2, 52, 1))
    assert [one.record.slot, two.record.slot] == [52, 53]
    assert one.extents.offset == [50 * 4096]
    assert one.extents.length == [2 * 4096]
    assert two.number == one.number + 1


def test_job_bears_the_slots_that_it_was_made_from() -> None:
    batch = make_batch(1, 50, 2)
    (job,) = bring(open_session(), batch)
    assert (job.headers, job.payload) == (batch.headers, batch.payload)


def test_batches_out_of_order_wait_for_the_missing_one() -> None:
    rig = open_session()
    assert bring(rig, make_batch(3, 52)) == []
    assert bring(rig, make_batch(2, 51)) == []
    assert [job.record.slot for job in bring(rig, make_batch(1, 50))] == [51, 52, 53]


def test_batch_twice_is_applied_once() -> None:
    rig = open_session()
    bring(rig, make_batch(1, 50))
    bring(rig, make_batch(3, 52))
    assert bring(rig, make_batch(1, 50)) == []
    assert bring(rig, make_batch(3, 52)) == []
    assert rig.node.dropped["duplicate"] == 2


@pytest.mark.parametrize("changed", [{"epoch": 3}, {"epoch": 5}, {"stream": OTHER_STREAM}])
def test_batch_of_another_epoch_or_stream_is_dropped_unread(changed: dict[str, Any]) -> None:
    rig = open_session()
    assert bring(rig, damaged(make_batch(1, 50, **changed))) == []
    assert rig.node.dropped == {"stale": 1}
    assert bring(rig, make_batch(1, 50))


def test_torn_stale_batch_does_not_end_the_session() -> None:
    rig = open_session()
    bring(rig, make_batch(1, 50))
    assert rig.bring(damaged(make_batch(1, 50))) == []
    assert bring(rig, make_batch(2, 51))


def test_damaged_batch_ends_the_session_with_a_rewind() -> None:
    rig = open_session()
    assert rewound(rig.bring(damaged(make_batch(1, 50)))) is RewindReason.DAMAGED
    assert rig.node.dropped["corrupt"] == 1
    assert bring(rig, make_batch(1, 50)) == []
    assert rig.node.dropped["stale"] == 1


def test_damaged_batch_ends_the_session_when_its_turn_comes_and_no_later_one_is_taken() -> None:
    rig = open_session()
    rig.bring(make_batch(3, 52))
    assert rig.bring(damaged(make_batch(2, 51))) == []
    actions = rig.bring(make_batch(1, 50))
    assert [job.record.slot for job in jobs(actions)] == [51]
    (rewind,) = messages(actions)
    assert isinstance(rewind, Rewind)
    assert rewind.reason is RewindReason.DAMAGED
    assert rig.record.slot == 51


@pytest.mark.parametrize("first", [49, 51])
def test_batch_that_leaves_slots_out_or_repeats_some_ends_the_session(first: int) -> None:
    assert rewound(open_session().bring(make_batch(1, first))) is RewindReason.MISPLACED


def test_batch_beyond_the_device_is_refused_for_good_and_nothing_of_it_is_applied() -> None:
    headers = encode(op=Op.WRITE, sector=np.array([0, DEVICE_SECTORS - 4], np.uint64)).tobytes()
    payload = bytes(2 * 4096)
    header = BatchHeader(BatchKind.LIVE, Marker.NONE, STREAM, EPOCH, 1, 50, 2)
    top = encode_batch(header, headers, payload)
    rig = open_session(hello=replace(HELLO, attempt=7))
    actions = rig.bring(decode_batch([top, headers, payload]))
    (refused,) = messages(actions)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.attempt) == (RefusedReason.SLOTS, 7)
    assert refused.reason.is_permanent
    assert jobs(actions) == []
    assert rig.record.slot == 50
    assert bring(rig, make_batch(1, 50)) == []
    assert messages(rig.say(Ping(EPOCH, GENERATION, 0))) == [refused]


@pytest.mark.parametrize(
    "settings", [IntakeSettings(reorder_batches=3), IntakeSettings(reorder_bytes=3 * 4104)]
)
def test_reorder_buffer_full_asks_for_a_rewind_and_is_emptied(settings: IntakeSettings) -> None:
    rig = open_session(settings=TargetSettings(intake=settings))
    before = batches_in_memory()
    for number in (2, 3, 4):
        assert rig.bring(make_batch(number, 49 + number)) == []
    assert batches_in_memory() == before + 3
    assert rewound(rig.bring(make_batch(5, 54))) is RewindReason.MISSING
    assert batches_in_memory() == before
    rig.say(HELLO)
    rig.durable()
    # Nothing waits any more, and there is room for as much again.
    assert [job.record.slot for job in bring(rig, make_batch(1, 50, epoch=5))] == [51]
    for number in (3, 4, 5):
        assert rig.bring(make_batch(number, 49 + number, epoch=5)) == []


def test_reorder_buffer_has_room_again_for_what_was_taken_out() -> None:
    rig = open_session(settings=TargetSettings(intake=IntakeSettings(reorder_bytes=2 * 4104)))
    for first in range(50, 80, 3):
        number = first - 49
        assert rig.bring(make_batch(number + 1, first + 1)) == []
        assert rig.bring(make_batch(number + 2, first + 2)) == []
        assert len(bring(rig, make_batch(number, first))) == 3


def test_resync_batch_moves_nothing_forward() -> None:
    (job,) = bring(open_session(), make_batch(1, 50, 2, kind=BatchKind.RESYNC))
    assert job.record.slot == 50
    assert job.extents.length


def test_resync_batch_out_of_its_place_ends_the_session() -> None:
    batch = make_batch(1, 51, 2, kind=BatchKind.RESYNC)
    assert rewound(open_session().bring(batch)) is RewindReason.MISPLACED


# Markers.


def test_markers_change_the_condition_in_their_place() -> None:
    rig = open_session()
    actions = rig.bring(make_marker(1, 50, Marker.INCONSISTENT))
    (job,) = jobs(actions)
    assert (job.record.slot, job.record.condition) == (50, Condition.INCONSISTENT)
    assert of(LogEvent, actions) == [
        LogEvent("condition", {"condition": "INCONSISTENT", "slot": 50})
    ]
    bring(rig, make_batch(2, 50))
    (job,) = bring(rig, make_marker(3, 51, Marker.CONSISTENT))
    assert (job.record.slot, job.record.condition) == (51, Condition.CONSISTENT)


def test_unknown_ends_with_the_first_marker() -> None:
    rig = open_session(replace(RECORD, condition=Condition.UNKNOWN))
    (job,) = bring(rig, make_batch(1, 50))
    assert job.record.condition is Condition.UNKNOWN
    (job,) = bring(rig, make_marker(2, 51, Marker.INCONSISTENT))
    assert job.record.condition is Condition.INCONSISTENT


# Acknowledgement.


def test_ack_tells_accepted_and_durable_apart() -> None:
    rig = open_session()
    (first,) = bring(rig, make_batch(1, 50))
    bring(rig, make_batch(2, 51))
    assert acked(rig.say(Ping(EPOCH, GENERATION, 0))) == [(EPOCH, 2, 0)]
    assert acked(rig.durable(first.number)) == [(EPOCH, 2, 1)]
    assert acked(rig.durable()) == [(EPOCH, 2, 2)]
    assert rig.durable() == []


def test_jobs_of_an_older_session_are_not_acknowledged_in_the_new_one() -> None:
    rig = open_session()
    bring(rig, make_batch(1, 50))
    rig.say(HELLO)
    (welcome,) = messages(rig.durable())
    assert isinstance(welcome, Welcome)
    assert acked(rig.say(Ping(EPOCH + 1, GENERATION, 0))) == [(EPOCH + 1, 0, 0)]


def test_what_becomes_durable_after_a_rewind_is_not_acknowledged() -> None:
    """The source has forgotten it, and will ask."""
    rig = open_session()
    bring(rig, make_batch(1, 50))
    rig.bring(damaged(make_batch(2, 51)))
    assert rig.durable() == []


@pytest.mark.parametrize("change", [-1, 1])
def test_job_that_was_never_given_out_or_was_durable_before_is_an_internal_error(
    change: int,
) -> None:
    rig = open_session()
    bring(rig, make_batch(1, 50))
    rig.durable()
    with pytest.raises(InternalError, match="Hello"):  # the story
        rig.durable(rig.node.jobs.last + change)


# How much waits for the disk.


def test_no_batches_are_read_while_too_many_bytes_wait_for_the_disk() -> None:
    rig = open_session()
    number = 0
    while rig.node.accepts_batches:
        number += 1
        bring(rig, make_batch(number, 50, 1024, kind=BatchKind.RESYNC))
        assert rig.node.jobs.queued_bytes <= QUEUED_BYTES_MAX + (4 << 20)
    assert number == QUEUED_BYTES_MAX // (4 << 20) + 1
    rig.durable(rig.node.jobs.last - number + 1)
    assert rig.node.accepts_batches
    assert (rig.node.jobs.durable_bytes, rig.node.jobs.waiting > 0) == (4 << 20, True)
    rig.durable()
    assert (rig.node.jobs.queued_bytes, rig.node.jobs.waiting) == (0, 0)


def test_no_batches_are_read_while_too_many_jobs_wait_for_the_disk() -> None:
    rig = open_session()
    for number in range(1, QUEUED_JOBS_MAX + 1):
        bring(rig, make_marker(number, 50, Marker.CONSISTENT))
    assert rig.node.accepts_batches
    bring(rig, make_marker(QUEUED_JOBS_MAX + 1, 50, Marker.CONSISTENT))
    assert not rig.node.accepts_batches


def test_age_of_the_oldest_job_that_waits_for_the_disk() -> None:
    rig = open_session()
    assert rig.node.queued_s == 0
    (job,) = bring(rig, make_batch(1, 50))
    rig.pass_time(100, 103)
    bring(rig, make_batch(2, 51))
    rig.pass_time(103, 105)
    assert rig.node.queued_s == 5
    rig.durable(job.number)
    assert rig.node.queued_s == 2
    rig.durable()
    assert rig.node.queued_s == 0


def test_time_of_the_last_acknowledgement() -> None:
    rig = open_session()
    assert rig.node.acked_at is None
    rig.say(Ping(EPOCH, GENERATION, 0))
    assert rig.node.acked_at == 100.0
    bring(rig, make_batch(1, 50))
    rig.tick(100.5)
    rig.durable()
    assert rig.node.acked_at == 100.5


# What is remembered for people.


def inconsistent(now_utc: int = 1000) -> TargetRig:
    """A session whose replica was declared inconsistent then."""
    rig = open_session()
    rig.tick(101.0, now_utc)
    bring(rig, make_marker(1, 50, Marker.INCONSISTENT, statement=SAID))
    return rig


SAID = Statement(5 * SECOND_NS, 700_500, 3 * SECOND_NS, 0)
"""The replica has everything up to 698.5 s on the source's wall clock."""


def test_condition_bears_the_time_since_when_it_holds_and_the_sources_time() -> None:
    rig = inconsistent(1000)
    assert (rig.record.since_utc, rig.record.as_of_utc, rig.record.as_of_ns) == (
        1000,
        698,
        3 * SECOND_NS,
    )
    rig.tick(102.0, 1060)
    bring(rig, make_batch(2, 50, statement=SAID._replace(until_ns=5 * SECOND_NS)))
    assert (rig.record.since_utc, rig.record.as_of_utc) == (1000, 700)
    rig.tick(103.0, 1070)
    bring(rig, make_marker(3, 51, Marker.CONSISTENT, statement=SAID._replace(until_ns=0)))
    assert (rig.record.since_utc, rig.record.as_of_utc, rig.record.as_of_ns) == (1070, 0, 0)


def test_batch_that_says_nothing_of_time_leaves_it_as_it_was() -> None:
    rig = inconsistent(1000)
    bring(rig, make_batch(2, 50, kind=BatchKind.RESYNC))
    assert (rig.record.as_of_utc, rig.record.as_of_ns) == (698, 3 * SECOND_NS)


def test_replica_is_no_younger_than_the_last_that_was_accepted() -> None:
    """Not as of a greeting or a clean stop: by that time people decide what to mount."""
    rig = inconsistent(1000)
    rig.tick(102.0, 5000)
    rig.say(replace(HELLO, attempt=2))
    assert rig.record.as_of_utc == 698
    (job,) = jobs(rig.handle(Stopping()))
    assert job.record.as_of_utc == 698


def test_what_is_left_of_a_scan_is_remembered_and_the_source_learns_since_when() -> None:
    rig = inconsistent(1000)
    rig.tick(102.0, 1060)
    actions = rig.say(Ping(EPOCH, GENERATION, 77 << 20))
    (job,) = jobs(actions)
    assert (job.record.left_bytes, len(job.extents)) == (77 << 20, 0)
    assert messages(actions) == [Ack(EPOCH, 1, 0, Condition.INCONSISTENT, 1000, 0, 1)]
    assert jobs(rig.say(Ping(EPOCH, GENERATION, 77 << 20))) == []
    (done,) = bring(rig, make_marker(2, 50, Marker.CONSISTENT))
    assert done.record.left_bytes == 0


def test_job_of_a_ping_is_no_batch_and_is_not_acknowledged_as_one() -> None:
    rig = inconsistent()
    rig.durable()
    rig.say(Ping(EPOCH, GENERATION, 5))
    assert rig.durable() == []
    assert acked(rig.say(Ping(EPOCH, GENERATION, 5))) == [(EPOCH, 1, 1)]


def test_consistent_replica_needs_no_job_for_what_its_source_says() -> None:
    actions = open_session().say(Ping(EPOCH, GENERATION, 5))
    assert jobs(actions) == []
    assert messages(actions) == [Ack(EPOCH, 0, 0, Condition.CONSISTENT, 0, 0, 0)]


@pytest.mark.parametrize(("peer", "epoch"), [(b"other", EPOCH), (PEER, EPOCH - 1)])
def test_what_is_left_of_another_session_is_not_remembered(peer: bytes, epoch: int) -> None:
    rig = inconsistent()
    before = rig.record
    assert jobs(rig.say(Ping(epoch, GENERATION, 5), peer)) == []
    assert rig.record == before


def test_pings_without_end_queue_up_no_jobs_without_end() -> None:
    """The disk may hang while what is left changes each second."""
    rig = inconsistent()
    for left_bytes in range(2 * JOBS_MAX):
        actions = rig.say(Ping(EPOCH, GENERATION, left_bytes + 1))
        assert len(messages(actions)) == 1
    assert rig.node.jobs.waiting == JOBS_MAX
