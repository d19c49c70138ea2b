# SPDX-License-Identifier: GPL-2.0-only
"""The target's state machine, one situation at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.target import replica
from bdr.common.target.job import Apply
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire import control as wire
from bdr.common.wire.control import (
    PROTOCOL,
    Ack,
    Batch,
    BatchHeader,
    BatchKind,
    Condition,
    Hello,
    Mark,
    Message,
    Ping,
    Progress,
    Refused,
    RefusedReason,
    Rewind,
    Standing,
    Welcome,
)

STREAM = b"stream-of-tests!"
OTHER_STREAM = b"another-stream.."
DEVICE_SECTORS = 1024
RECORD = ReplicaRecord(
    volume="v",
    device_sectors=DEVICE_SECTORS,
    stream=STREAM,
    slot=50,
    epoch=3,
    condition=Condition.CONSISTENT,
    clean=True,
)
HELLO = Hello(
    protocol=PROTOCOL,
    attempt=1,
    volume="v",
    stream=STREAM,
    device_sectors=DEVICE_SECTORS,
    tail=40,
    head=100,
    assume_clean=False,
)
PEER = b"peer"


def make_batch(number: int, first: int, count: int = 1, **fields: object) -> Batch:
    """A batch as it comes off the wire, of writes of 4 KiB to sectors 8 x slot."""
    header = BatchHeader(
        **{
            "kind": BatchKind.LIVE,
            "mark": Mark.NONE,
            "stream": STREAM,
            "epoch": 4,
            "number": number,
            "first": first,
            "count": count,
        }
        | fields  # type: ignore[arg-type]
    )
    slots = np.arange(first, first + count, dtype=np.uint64)
    headers = encode(op=layout.Op.WRITE, sector=slots * 8 % DEVICE_SECTORS).tobytes()
    payload = b"".join(bytes([slot % 251 + 1]) * 4096 for slot in slots.tolist())
    top = wire.encode_batch(header, headers, payload)
    return wire.decode_batch([top, headers, payload])


def make_mark(number: int, first: int, mark: Mark, epoch: int = 4) -> Batch:
    header = BatchHeader(BatchKind.MARK, mark, STREAM, epoch, number, first, 0)
    return wire.decode_batch([wire.encode_batch(header, b"", b""), b"", b""])


def say(machine: replica.Replica, message: Message, peer: bytes = PEER) -> list[replica.Action]:
    return machine.handle(replica.MessageArrived(peer, message))


def messages(actions: list[replica.Action]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, replica.Send)]


def jobs(actions: list[replica.Action]) -> list[Apply]:
    return [action for action in actions if isinstance(action, Apply)]


def assumption(actions: list[replica.Action]) -> str:
    """What was noted of the user's word that both devices are equal."""
    (note,) = (action for action in actions if isinstance(action, replica.Note))
    assert note.topic == "unknown-position"
    return str(note.facts["assume_clean"])


def bring(machine: replica.Replica, batch: Batch) -> list[Apply]:
    return jobs(machine.handle(replica.BatchArrived(batch)))


def all_durable(machine: replica.Replica) -> list[replica.Action]:
    return machine.handle(replica.Durable(machine._last_job))


def pass_time(machine: replica.Replica, from_s: int, to_s: int) -> None:
    """Ticks, as often as a loop that is alive."""
    for quarter in range(4 * from_s, 4 * to_s + 1):
        machine.handle(replica.Tick(quarter / 4))


def open_session(
    record: ReplicaRecord = RECORD,
    hello: Hello = HELLO,
    settings: replica.ReplicaSettings | None = None,
) -> replica.Replica:
    machine = replica.Replica(record=record, settings=settings)
    machine.handle(replica.Tick(100.0))
    assert len(jobs(say(machine, hello))) == 1
    assert isinstance(messages(all_durable(machine))[0], Welcome)
    return machine


# Hello.


def test_hello_is_answered_only_when_the_new_epoch_is_durable() -> None:
    machine = replica.Replica(record=RECORD)
    (job,) = jobs(say(machine, HELLO))
    assert job.record == replace(RECORD, epoch=4, clean=False)
    (welcome,) = messages(machine.handle(replica.Durable(job.job)))
    assert welcome == Welcome(1, 4, 1, 50, Condition.CONSISTENT)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"volume": "w"}, RefusedReason.VOLUME),
        ({"device_sectors": DEVICE_SECTORS + 1}, RefusedReason.SIZE),
    ],
)
def test_hello_that_cannot_be_served_is_refused_and_changes_nothing(
    changed: dict[str, object], reason: RefusedReason
) -> None:
    machine = replica.Replica(record=RECORD)
    actions = say(machine, replace(HELLO, **changed))  # type: ignore[arg-type]
    (refused,) = messages(actions)
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert "found" in refused.text
    assert "wanted" in refused.text
    assert not jobs(actions)
    assert machine.record == RECORD


def test_hello_of_another_protocol_is_refused_with_both_versions() -> None:
    machine = replica.Replica(record=RECORD)
    (refused,) = messages(machine.handle(replica.OtherProtocolArrived(PEER, 9, 5)))
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.attempt) == (RefusedReason.PROTOCOL, 5)
    assert "9" in refused.text


def test_hello_of_a_blank_target_is_welcomed_as_unknown() -> None:
    machine = replica.Replica(record=ReplicaRecord("v", DEVICE_SECTORS))
    (job,) = jobs(say(machine, HELLO))
    assert (job.record.slot, job.record.condition) == (40, Condition.UNKNOWN)


def test_hello_of_a_blank_target_that_is_said_to_be_equal_is_catching_up() -> None:
    machine = replica.Replica(record=ReplicaRecord("v", DEVICE_SECTORS))
    actions = say(machine, replace(HELLO, tail=0, assume_clean=True))
    (job,) = jobs(actions)
    assert (job.record.slot, job.record.condition) == (0, Condition.CATCHING_UP)
    assert assumption(actions) == "taken: the devices are held to be equal, unchecked"


@pytest.mark.parametrize(
    ("record", "tail", "why"),
    [
        # The target was replaced, or its state lost, while the source went on.
        (ReplicaRecord("v", DEVICE_SECTORS), 40, "this source has been replicated before"),
        # The source's device was attached anew; nobody knows who wrote to it meanwhile.
        (replace(RECORD, stream=OTHER_STREAM), 0, "this replica has had a source before"),
        (replace(RECORD, stream=OTHER_STREAM), 40, "this replica has had a source before"),
        # The target was restored to an older state.
        (RECORD, 51, "this replica has had a source before"),
    ],
)
def test_word_that_both_are_equal_is_taken_at_first_contact_only(
    record: ReplicaRecord, tail: int, why: str
) -> None:
    machine = replica.Replica(record=record)
    pass_time(machine, 100, 120)  # the source of before has been silent for long
    actions = say(machine, replace(HELLO, tail=tail, assume_clean=True))
    (job,) = jobs(actions)
    assert (job.record.slot, job.record.condition) == (tail, Condition.UNKNOWN)
    assert assumption(actions).startswith(f"not taken: {why}")


def test_hello_whose_ring_has_lost_the_position_needs_a_scan() -> None:
    """As after the target was restored to an older state."""
    machine = replica.Replica(record=RECORD)
    actions = say(machine, replace(HELLO, tail=51))
    (job,) = jobs(actions)
    assert (job.record.slot, job.record.condition) == (51, Condition.UNKNOWN)
    assert assumption(actions) == "not asked for"


def test_hello_from_before_that_arrives_late_costs_no_scan() -> None:
    """A kernel retransmits what a dead reader said; the replica is far beyond it."""
    machine = open_session()
    for number in range(1, 60):
        bring(machine, make_batch(number, 49 + number))
    position = machine.record
    assert position.slot == 109
    actions = say(machine, HELLO, b"ghost")
    (refused,) = messages(actions)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.BUSY
    assert not refused.reason.is_permanent
    assert machine.record == position
    assert bring(machine, make_batch(60, 109))


def test_hello_of_another_stream_is_refused_while_the_source_is_alive() -> None:
    machine = open_session()
    (refused,) = messages(say(machine, replace(HELLO, stream=OTHER_STREAM), b"stranger"))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.BUSY
    assert bring(machine, make_batch(1, 50))


def test_hello_of_another_stream_does_not_win_the_race_after_a_restart() -> None:
    """A second source greets again and again; a restart must not let it in."""
    machine = replica.Replica(record=RECORD)
    pass_time(machine, 100, 110)
    (refused,) = messages(say(machine, replace(HELLO, stream=OTHER_STREAM), b"stranger"))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.BUSY
    pass_time(machine, 110, 116)
    assert jobs(say(machine, replace(HELLO, stream=OTHER_STREAM), b"stranger"))


def test_hello_of_any_stream_is_served_at_once_by_a_target_that_had_none() -> None:
    machine = replica.Replica(record=ReplicaRecord("v", DEVICE_SECTORS))
    machine.handle(replica.Tick(100.0))
    assert jobs(say(machine, HELLO))


def test_hello_of_another_stream_takes_over_when_the_source_is_silent() -> None:
    machine = open_session()
    pass_time(machine, 100, 116)
    (job,) = jobs(say(machine, replace(HELLO, stream=OTHER_STREAM), b"stranger"))
    assert (job.record.stream, job.record.condition) == (OTHER_STREAM, Condition.UNKNOWN)


def test_source_is_not_silent_while_the_target_itself_stands_still() -> None:
    """Stopped, or swapped out; what its source said meanwhile waits behind the stranger's word."""
    machine = open_session()
    pass_time(machine, 100, 105)
    machine.handle(replica.Tick(1000.0))
    (refused,) = messages(say(machine, replace(HELLO, stream=OTHER_STREAM), b"stranger"))
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.BUSY
    assert machine.is_fed


def test_hello_again_before_the_welcome_gets_one_welcome_of_the_latest_attempt() -> None:
    machine = replica.Replica(record=RECORD)
    say(machine, HELLO)
    assert say(machine, replace(HELLO, attempt=2)) == []
    (welcome,) = messages(all_durable(machine))
    assert isinstance(welcome, Welcome)
    assert welcome.attempt == 2


def test_greetings_without_end_queue_up_no_jobs_without_end() -> None:
    """Each is a job for the disk, which may hang."""
    machine = replica.Replica(record=RECORD)
    for number in range(2 * replica.JOBS_MAX):
        actions = say(machine, HELLO, b"peer-%d" % number)
    assert machine.last_job == replica.JOBS_MAX
    (refused,) = messages(actions)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.BUSY
    all_durable(machine)
    assert jobs(say(machine, HELLO))


def test_hello_of_a_restarted_reader_waits_for_what_was_accepted_before() -> None:
    machine = open_session()
    (job,) = bring(machine, make_batch(1, 50, 3))
    say(machine, HELLO, b"new peer")
    assert not messages(machine.handle(replica.Durable(job.job)))
    (welcome,) = messages(all_durable(machine))
    assert welcome == Welcome(1, 5, 1, 53, Condition.CONSISTENT)


# Batches.


def test_batches_before_the_welcome_are_dropped() -> None:
    machine = replica.Replica(record=RECORD)
    say(machine, HELLO)
    assert not bring(machine, make_batch(1, 50))
    assert machine.dropped["stale"] == 1


def test_batches_in_order_become_jobs_with_their_place() -> None:
    machine = open_session()
    (one,) = bring(machine, make_batch(1, 50, 2))
    (two,) = bring(machine, make_batch(2, 52, 1))
    assert [one.record.slot, two.record.slot] == [52, 53]
    assert one.extents.offset == [50 * 4096]
    assert one.extents.length == [2 * 4096]


def test_batches_out_of_order_wait_for_the_missing_one() -> None:
    machine = open_session()
    assert not bring(machine, make_batch(3, 52))
    assert not bring(machine, make_batch(2, 51))
    assert [job.record.slot for job in bring(machine, make_batch(1, 50))] == [51, 52, 53]


def test_batch_twice_is_applied_once() -> None:
    machine = open_session()
    bring(machine, make_batch(1, 50))
    bring(machine, make_batch(3, 52))
    assert not bring(machine, make_batch(1, 50))
    assert not bring(machine, make_batch(3, 52))
    assert machine.dropped["duplicate"] == 2


@pytest.mark.parametrize("changed", [{"epoch": 3}, {"epoch": 5}, {"stream": OTHER_STREAM}])
def test_batch_of_another_epoch_or_stream_is_dropped_unread(changed: dict[str, object]) -> None:
    machine = open_session()
    assert not bring(machine, make_batch(1, 50, **changed))
    assert machine.dropped["stale"] == 1
    assert bring(machine, make_batch(1, 50))


def test_torn_stale_batch_does_not_end_the_session() -> None:
    machine = open_session()
    bring(machine, make_batch(1, 50))
    assert not bring(machine, replace(make_batch(1, 50), payload=bytes(4096)))
    assert bring(machine, make_batch(2, 51))


def test_damaged_batch_ends_the_session_with_a_rewind() -> None:
    machine = open_session()
    actions = machine.handle(replica.BatchArrived(replace(make_batch(1, 50), payload=bytes(4096))))
    (rewind,) = messages(actions)
    assert isinstance(rewind, Rewind)
    assert not jobs(actions)
    assert not bring(machine, make_batch(1, 50))


def test_source_that_did_not_hear_the_rewind_is_told_again() -> None:
    machine = open_session()
    said = messages(
        machine.handle(replica.BatchArrived(replace(make_batch(1, 50), payload=b"x" * 4096)))
    )
    assert messages(say(machine, Ping(4))) == said


def test_batch_that_leaves_slots_out_ends_the_session() -> None:
    machine = open_session()
    actions = machine.handle(replica.BatchArrived(make_batch(1, 51)))
    assert isinstance(messages(actions)[0], Rewind)
    assert not jobs(actions)


def test_batch_beyond_the_device_is_refused_for_good_and_nothing_of_it_is_applied() -> None:
    headers = encode(
        op=layout.Op.WRITE, sector=np.array([0, DEVICE_SECTORS - 4], np.uint64)
    ).tobytes()
    payload = bytes(2 * 4096)
    header = BatchHeader(BatchKind.LIVE, Mark.NONE, STREAM, 4, 1, 50, 2)
    top = wire.encode_batch(header, headers, payload)
    machine = open_session()
    actions = machine.handle(replica.BatchArrived(wire.decode_batch([top, headers, payload])))
    (refused,) = messages(actions)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusedReason.SLOTS
    assert not jobs(actions)
    assert machine.record.slot == 50


@pytest.mark.parametrize(
    "settings",
    [replica.ReplicaSettings(reorder_batches=3), replica.ReplicaSettings(reorder_bytes=3 * 4104)],
)
def test_reorder_buffer_full_asks_for_a_rewind_and_is_emptied(
    settings: replica.ReplicaSettings,
) -> None:
    machine = open_session(settings=settings)
    for number in (2, 3, 4):
        assert machine.handle(replica.BatchArrived(make_batch(number, 49 + number))) == []
    (rewind,) = messages(machine.handle(replica.BatchArrived(make_batch(5, 54))))
    assert isinstance(rewind, Rewind)
    assert machine._reorder == {}
    assert machine._reorder_bytes == 0


def test_resync_batch_moves_nothing_forward() -> None:
    machine = open_session()
    (job,) = bring(machine, make_batch(1, 50, 2, kind=BatchKind.RESYNC))
    assert job.record.slot == 50
    assert job.extents.length


# Marks.


def test_marks_change_the_condition_in_their_place() -> None:
    machine = open_session()
    (job,) = bring(machine, make_mark(1, 50, Mark.RESYNC))
    assert (job.record.slot, job.record.condition) == (50, Condition.INCONSISTENT)
    bring(machine, make_batch(2, 50))
    (job,) = bring(machine, make_mark(3, 51, Mark.CONSISTENT))
    assert (job.record.slot, job.record.condition) == (51, Condition.CONSISTENT)


# Acknowledgement.


def test_ack_tells_accepted_and_durable_apart() -> None:
    machine = open_session()
    first = bring(machine, make_batch(1, 50))[0].job
    bring(machine, make_batch(2, 51))
    assert messages(say(machine, Ping(4))) == [Ack(4, 2, 0)]
    assert messages(machine.handle(replica.Durable(first))) == [Ack(4, 2, 1)]
    assert messages(all_durable(machine)) == [Ack(4, 2, 2)]


def test_jobs_of_an_older_session_are_not_acknowledged_in_the_new_one() -> None:
    machine = open_session()
    bring(machine, make_batch(1, 50))
    say(machine, HELLO)
    (welcome,) = messages(all_durable(machine))
    assert isinstance(welcome, Welcome)
    assert messages(say(machine, Ping(5))) == [Ack(5, 0, 0)]


@pytest.mark.parametrize("peer", [PEER, b"stranger"])
def test_ping_of_an_unknown_session_gets_a_rewind(peer: bytes) -> None:
    machine = replica.Replica(record=RECORD)
    (rewind,) = messages(say(machine, Ping(3), peer))
    assert isinstance(rewind, Rewind)
    assert rewind.epoch == 3


def test_messages_that_only_a_target_sends_are_ignored() -> None:
    machine = open_session()
    for message in (
        Welcome(1, 4, 1, 50, Condition.CONSISTENT),
        Ack(4, 9, 9),
        Rewind(4, "x"),
        Refused(1, RefusedReason.SIZE, "x"),
    ):
        assert say(machine, message) == []


# Restarts.


@pytest.mark.parametrize(
    ("condition", "clean", "wanted"),
    [
        (Condition.CONSISTENT, True, Condition.CONSISTENT),
        (Condition.CONSISTENT, False, Condition.CATCHING_UP),
        (Condition.CATCHING_UP, True, Condition.CATCHING_UP),
        (Condition.CATCHING_UP, False, Condition.CATCHING_UP),
        (Condition.INCONSISTENT, True, Condition.INCONSISTENT),
        (Condition.INCONSISTENT, False, Condition.INCONSISTENT),
    ],
)
def test_condition_at_start_believes_only_a_clean_stop(
    condition: Condition, clean: bool, wanted: Condition
) -> None:
    machine = replica.Replica(record=replace(RECORD, condition=condition, clean=clean))
    assert machine.record.condition is wanted


def test_closing_job_says_that_nothing_lies_beyond() -> None:
    machine = open_session()
    bring(machine, make_batch(1, 50))
    job = machine.closing_job()
    assert job.record == replace(RECORD, epoch=4, slot=51, clean=True)
    assert not bring(machine, make_batch(2, 51))


# What is remembered for people.


def inconsistent(utc_s: int = 1000) -> replica.Replica:
    """A session whose replica was declared inconsistent then."""
    machine = open_session()
    machine.handle(replica.Tick(101.0, utc_s))
    bring(machine, make_mark(1, 50, Mark.RESYNC))
    return machine


def test_condition_bears_the_time_since_when_it_holds() -> None:
    machine = inconsistent(1000)
    assert (machine.record.since_s, machine.record.at_s) == (1000, 1000)
    machine.handle(replica.Tick(102.0, 1060))
    bring(machine, make_batch(2, 50))
    assert (machine.record.since_s, machine.record.at_s) == (1000, 1060)
    machine.handle(replica.Tick(103.0, 1070))
    bring(machine, make_mark(3, 51, Mark.CONSISTENT))
    assert (machine.record.since_s, machine.record.at_s) == (1070, 1070)


def test_replica_is_no_younger_than_the_last_that_was_accepted() -> None:
    """Not as of a greeting or a clean stop: by that time people decide what to mount."""
    machine = inconsistent(1000)
    machine.handle(replica.Tick(102.0, 5000))
    say(machine, replace(HELLO, attempt=2))
    assert machine.record.at_s == 1000
    assert machine.closing_job().record.at_s == 1000


def test_what_is_left_of_a_scan_is_remembered_and_the_source_is_told_since_when() -> None:
    machine = inconsistent(1000)
    machine.handle(replica.Tick(102.0, 1060))
    actions = say(machine, Progress(4, 77 << 20))
    (job,) = jobs(actions)
    assert (job.record.left_bytes, len(job.extents)) == (77 << 20, 0)
    assert messages(actions) == [Standing(4, Condition.INCONSISTENT, 1000, 1000)]
    assert jobs(say(machine, Progress(4, 77 << 20))) == []
    (done,) = bring(machine, make_mark(2, 50, Mark.CONSISTENT))
    assert done.record.left_bytes == 0


def test_consistent_replica_needs_no_job_for_what_its_source_says() -> None:
    machine = open_session()
    actions = say(machine, Progress(4, 5))
    assert jobs(actions) == []
    assert messages(actions) == [Standing(4, Condition.CONSISTENT, 0, 0)]


@pytest.mark.parametrize(("peer", "epoch"), [(b"other", 4), (PEER, 3)])
def test_progress_of_another_session_is_dropped(peer: bytes, epoch: int) -> None:
    machine = inconsistent()
    assert say(machine, Progress(epoch, 5), peer) == []


def test_replica_that_was_not_stopped_cleanly_does_not_know_since_when() -> None:
    record = replace(RECORD, clean=False, since_s=1000, at_s=1060)
    found = replica.Replica(record=record).record
    assert (found.condition, found.since_s, found.at_s) == (Condition.CATCHING_UP, 0, 1060)
