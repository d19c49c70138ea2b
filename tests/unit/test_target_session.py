# SPDX-License-Identifier: GPL-2.0-only
"""A target and the sources that greet it: who is refused, who is welcomed, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.errors import InternalError
from bdr.common.target import events
from bdr.common.target.admission import Assumption
from bdr.common.target.events import Action, LogEvent, OtherProtocolArrived, Stopping
from bdr.common.target.job_queue import JOBS_MAX
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Digests, Message, Ping, Refused, Rewind, Welcome
from bdr.common.wire.reasons import DigestsRefused, RefusedReason, RewindReason
from tests.support.target_rig import (
    BLANK,
    DEVICE_SECTORS,
    EPOCH,
    GENERATION,
    HELLO,
    OTHER_STREAM,
    PEER,
    RECORD,
    TARGET,
    TargetRig,
    accepted_of,
    acked,
    damaged,
    jobs,
    make_batch,
    messages,
    of,
    open_session,
    refusal_of,
)

STRANGER = b"stranger"
OTHER_HELLO = replace(HELLO, stream=OTHER_STREAM)


def refused(actions: list[Action]) -> RefusedReason:
    """Why; nothing else follows."""
    return refusal_of(actions).reason


# Refused.


@pytest.mark.parametrize(
    ("changed", "reason", "found", "wanted"),
    [
        ({"volume": "w"}, RefusedReason.VOLUME, "'w'", "'v'"),
        ({"device_sectors": DEVICE_SECTORS + 1}, RefusedReason.SIZE, "1025", "1024"),
    ],
)
def test_hello_that_cannot_be_served_is_refused_and_changes_nothing(
    changed: dict[str, object], reason: RefusedReason, found: str, wanted: str
) -> None:
    rig = TargetRig()
    message = refusal_of(rig.say(replace(HELLO, **changed)))  # type: ignore[arg-type]
    assert message.reason is reason
    assert found in message.text
    assert wanted in message.text
    assert rig.record == RECORD
    assert rig.node.dropped[f"refused-{reason.name.lower()}"] == 1


def test_hello_of_another_protocol_is_refused_with_both_versions() -> None:
    rig = TargetRig()
    (message,) = messages(rig.handle(OtherProtocolArrived(PEER, 9, 5)))
    assert isinstance(message, Refused)
    assert (message.reason, message.attempt) == (RefusedReason.PROTOCOL, 5)
    assert "9" in message.text
    assert str(PROTOCOL) in message.text


def test_hello_from_before_that_arrives_late_changes_nothing_and_declares_nothing() -> None:
    """A kernel retransmits what a dead reader said; the replica is far beyond it."""
    rig = open_session()
    for number in range(1, 60):
        rig.bring(make_batch(number, 49 + number))
    position = rig.record
    assert position.slot == 109
    assert refused(rig.say(HELLO, b"ghost")) is RefusedReason.TWO_HISTORIES
    assert (rig.node.rival, rig.node.dropped) == (None, {})
    assert rig.record == position
    assert jobs(rig.bring(make_batch(60, 109)))


def test_hello_of_another_stream_is_refused_while_the_source_is_alive() -> None:
    rig = open_session()
    assert refused(rig.say(OTHER_HELLO, STRANGER)) is RefusedReason.BUSY
    assert jobs(rig.bring(make_batch(1, 50)))


def test_stranger_that_greets_again_and_again_does_not_keep_the_session_alive() -> None:
    rig = open_session()
    for quarter in range(400, 408):
        rig.tick(quarter / 4)
        assert refused(rig.say(OTHER_HELLO, STRANGER)) is RefusedReason.BUSY
    rig.tick(102.0)
    assert jobs(rig.say(OTHER_HELLO, STRANGER))


@pytest.mark.parametrize("is_pinging", [True, False])
def test_source_that_is_heard_keeps_others_out_by_pings_and_by_batches(is_pinging: bool) -> None:
    rig = open_session()
    for number in range(1, 21):
        rig.pass_time(99 + number, 100 + number)
        if is_pinging:
            rig.say(Ping(EPOCH, GENERATION, 0))
        else:
            rig.bring(make_batch(number, 49 + number))
    assert rig.node.has_source
    assert refused(rig.say(OTHER_HELLO, STRANGER)) is RefusedReason.BUSY


@pytest.mark.parametrize("times", [1, 2])
def test_source_is_heard_by_a_hello_that_is_taken(times: int) -> None:
    rig = open_session()
    rig.pass_time(100, 102)
    for _ in range(times):
        rig.say(HELLO)
    rig.tick(103.75)
    assert refused(rig.say(OTHER_HELLO, STRANGER)) is RefusedReason.BUSY
    assert rig.node.has_source is False  # its WELCOME waits for the disk


def test_source_is_not_silent_while_the_target_itself_stands_still() -> None:
    """Suspended, or swapped out; what its source sent meanwhile waits behind the stranger's."""
    rig = open_session()
    rig.pass_time(100, 101)
    rig.tick(1000.0)
    assert refused(rig.say(OTHER_HELLO, STRANGER)) is RefusedReason.BUSY
    assert rig.node.has_source


def test_greetings_without_end_queue_up_no_jobs_without_end() -> None:
    """Each is a job for the disk, which may hang."""
    rig = TargetRig()
    for number in range(2 * JOBS_MAX):
        actions = rig.say(HELLO, b"peer-%d" % number)
        rig.lose(b"peer-%d" % number)
    assert rig.node.jobs.last == JOBS_MAX
    assert refused(actions) is RefusedReason.BUSY
    rig.durable()
    assert jobs(rig.say(HELLO))


def test_refused_hello_leaves_the_session_as_it_is() -> None:
    rig = open_session()
    assert refused(rig.say(replace(HELLO, volume="w"))) is RefusedReason.VOLUME
    assert acked(rig.say(Ping(EPOCH, GENERATION, 0))) == [(EPOCH, 0, 0)]


# Welcomed.


def test_hello_is_answered_only_when_the_new_epoch_is_durable() -> None:
    rig = TargetRig()
    (job,) = jobs(rig.say(HELLO))
    assert job.record == replace(RECORD, epoch=EPOCH, clean=False)
    (welcome,) = messages(rig.durable(job.number))
    assert welcome == Welcome(1, EPOCH, 1, 50, 2, Condition.CONSISTENT, TARGET, ())


def test_hello_of_a_restarted_reader_waits_for_what_was_accepted_before() -> None:
    rig = open_session()
    batch = make_batch(1, 50, 3)
    (job,) = jobs(rig.bring(batch))
    rig.lose()
    rig.say(HELLO, b"new peer")
    assert messages(rig.durable(job.number)) == []
    (welcome,) = messages(rig.durable())
    assert welcome == Welcome(
        1, EPOCH + 1, 1, 53, 2, Condition.CONSISTENT, TARGET, (accepted_of(batch),)
    )


def test_hello_of_a_blank_target_is_welcomed_as_unknown() -> None:
    rig = TargetRig(BLANK)
    rig.say(HELLO)
    (welcome,) = messages(rig.durable())
    assert welcome == Welcome(1, 1, 1, 40, 1027, Condition.UNKNOWN, TARGET, ())


def test_hello_of_any_stream_is_served_at_once_by_a_target_that_had_none() -> None:
    rig = TargetRig(BLANK)
    rig.tick(100.0)
    assert jobs(rig.say(HELLO))


def test_hello_of_another_stream_takes_over_when_the_session_is_silent() -> None:
    rig = open_session()
    rig.pass_time(100, 102)
    (job,) = jobs(rig.say(OTHER_HELLO, STRANGER))
    assert job.record == replace(RECORD, epoch=EPOCH + 1, clean=False)
    (welcome,) = messages(rig.durable())
    assert welcome == Welcome(1, EPOCH + 1, 1, 40, 1027, Condition.UNKNOWN, TARGET, ())
    (rewind,) = messages(rig.say(Ping(EPOCH, GENERATION, 0)))
    assert isinstance(rewind, Rewind)


def test_hello_again_before_the_welcome_gets_one_welcome_of_the_latest_attempt() -> None:
    rig = TargetRig()
    rig.say(HELLO)
    assert rig.say(replace(HELLO, attempt=2)) == []
    (welcome,) = messages(rig.durable())
    assert isinstance(welcome, Welcome)
    assert welcome.attempt == 2


def test_hello_of_another_connection_before_the_welcome_opens_a_session_of_its_own() -> None:
    rig = TargetRig()
    (first,) = jobs(rig.say(HELLO))
    rig.lose()
    (second,) = jobs(rig.say(HELLO, b"again"))
    assert (first.record.epoch, second.record.epoch) == (EPOCH, EPOCH + 1)
    assert rig.durable(first.number) == []
    (welcome,) = messages(rig.durable())
    assert isinstance(welcome, Welcome)
    assert welcome.epoch == EPOCH + 1


def test_hello_of_a_session_that_is_open_begins_another() -> None:
    """What was in flight is lost to its source, which is why it greets."""
    rig = open_session()
    rig.bring(make_batch(2, 51))
    (job,) = jobs(rig.say(HELLO))
    assert job.record.epoch == EPOCH + 1
    rig.durable()
    assert [each.record.slot for each in jobs(rig.bring(make_batch(1, 50, epoch=5)))] == [51]


def test_story_of_an_internal_error_has_the_messages_that_led_to_it() -> None:
    rig = open_session()
    for _ in range(99):
        rig.bring(make_batch(2, 51))
    rig.node.jobs.durable = 99
    with pytest.raises(InternalError, match=r"NONE <- MessageArrived\(.*Hello\(") as caught:
        rig.tick(101.0)
    assert "BatchArrived" not in str(caught.value)


# Pings.


@pytest.mark.parametrize("peer", [PEER, STRANGER])
def test_ping_of_an_unknown_session_gets_a_rewind(peer: bytes) -> None:
    (rewind,) = messages(TargetRig().say(Ping(3, GENERATION, 0), peer))
    assert isinstance(rewind, Rewind)
    assert (rewind.epoch, rewind.reason) == (3, RewindReason.NO_SESSION)


@pytest.mark.parametrize(("peer", "epoch"), [(PEER, EPOCH - 1), (STRANGER, EPOCH)])
def test_ping_of_another_session_gets_a_rewind(peer: bytes, epoch: int) -> None:
    (rewind,) = messages(open_session().say(Ping(epoch, GENERATION, 0), peer))
    assert isinstance(rewind, Rewind)
    assert (rewind.epoch, rewind.reason) == (epoch, RewindReason.NO_SESSION)


def test_ping_before_the_welcome_is_not_answered() -> None:
    """The WELCOME is on its way."""
    rig = TargetRig()
    rig.say(HELLO)
    assert rig.say(Ping(EPOCH, GENERATION, 0)) == []


def test_ping_before_any_session_with_an_empty_name_gets_a_rewind() -> None:
    (rewind,) = messages(TargetRig().say(Ping(EPOCH, GENERATION, 0), b""))
    assert isinstance(rewind, Rewind)


def test_source_that_did_not_hear_the_rewind_is_told_again() -> None:
    rig = open_session()
    said = messages(rig.bring(damaged(make_batch(1, 50))))
    for _ in range(2):
        assert messages(rig.say(Ping(EPOCH, GENERATION, 0))) == said


def test_session_that_is_broken_keeps_no_other_source_out_by_its_pings() -> None:
    rig = open_session()
    rig.bring(damaged(make_batch(1, 50)))
    rig.say(Ping(EPOCH, GENERATION, 0))
    assert not rig.node.has_source
    assert jobs(rig.say(OTHER_HELLO, STRANGER))


@pytest.mark.parametrize(
    "message",
    [
        Welcome(1, EPOCH, 1, 50, 2, Condition.CONSISTENT, TARGET, ()),
        Ack(EPOCH, 9, 9, Condition.CONSISTENT, 0, 0, 0),
        Rewind(EPOCH, RewindReason.DAMAGED, "x"),
        Refused(1, RefusedReason.SIZE, 0, "x"),
        Digests(1, b"", DigestsRefused.NONE, ""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_that_only_a_target_sends_are_ignored(message: Message) -> None:
    rig = open_session()
    before = rig.record
    assert rig.say(message) == []
    assert rig.record == before
    assert rig.node.dropped["unexpected"] == 1


# The user's word that both devices are equal.


def assumption(actions: list[Action]) -> Assumption:
    """What was noted of it."""
    (note,) = of(LogEvent, actions)
    assert note.name == "unknown-position"
    return Assumption(note.facts["assume_clean"])


def welcomed(rig: TargetRig) -> tuple[int, Condition]:
    """Slot and condition of the WELCOME."""
    (welcome,) = messages(rig.durable())
    assert isinstance(welcome, Welcome)
    return welcome.slot, welcome.condition


def test_hello_of_a_new_target_that_is_said_to_be_equal_is_catching_up() -> None:
    rig = TargetRig(BLANK, is_blank=False)
    actions = rig.say(replace(HELLO, tail=0, acknowledged=0, assume_clean=True))
    assert welcomed(rig) == (0, Condition.CATCHING_UP)
    assert assumption(actions) is Assumption.TAKEN


@pytest.mark.parametrize(
    ("record", "tail", "why"),
    [
        # The target was replaced, or its state lost, while the source went on.
        (BLANK, 40, Assumption.HAD_TARGET),
        # The source's device was attached anew; what was written meanwhile is not known.
        (replace(RECORD, stream=OTHER_STREAM), 0, Assumption.HAD_SOURCE),
        (replace(RECORD, stream=OTHER_STREAM), 40, Assumption.HAD_SOURCE),
        # The target was restored to an older state.
        (RECORD, 51, Assumption.HAD_SOURCE),
    ],
)
def test_word_that_both_are_equal_is_taken_at_first_contact_only(
    record: ReplicaRecord, tail: int, why: Assumption
) -> None:
    rig = TargetRig(record)
    actions = rig.say(replace(HELLO, tail=tail, assume_clean=True))
    assert welcomed(rig) == (tail, Condition.UNKNOWN)
    assert assumption(actions) is why


def test_hello_whose_ring_has_lost_the_position_needs_a_scan() -> None:
    """As after the target was restored to an older state."""
    rig = TargetRig()
    actions = rig.say(replace(HELLO, tail=51))
    assert welcomed(rig) == (51, Condition.UNKNOWN)
    assert assumption(actions) is Assumption.NOT_GIVEN


def test_known_source_needs_no_note_of_its_position() -> None:
    assert of(LogEvent, TargetRig().say(HELLO)) == []


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
        (Condition.UNKNOWN, True, Condition.UNKNOWN),
        (Condition.UNKNOWN, False, Condition.UNKNOWN),
        (Condition.UNVERIFIED, True, Condition.UNVERIFIED),
        (Condition.UNVERIFIED, False, Condition.UNVERIFIED),
    ],
)
def test_condition_at_start_believes_only_a_clean_stop(
    condition: Condition, clean: bool, wanted: Condition
) -> None:
    assert TargetRig(replace(RECORD, condition=condition, clean=clean)).record.condition is wanted


def test_closing_job_says_that_nothing_lies_beyond() -> None:
    rig = open_session()
    batch = make_batch(1, 50)
    rig.bring(batch)
    (job,) = jobs(rig.handle(Stopping()))
    assert job.record == replace(
        RECORD, epoch=EPOCH, slot=51, recent=(accepted_of(batch),), clean=True
    )
    assert jobs(rig.bring(make_batch(2, 51))) == []
    assert messages(rig.durable()) == []


def test_replica_that_was_not_stopped_cleanly_does_not_know_since_when() -> None:
    found = TargetRig(replace(RECORD, clean=False, since_utc=1000, as_of_utc=1060)).record
    assert (found.condition, found.since_utc, found.as_of_utc) == (
        Condition.CATCHING_UP,
        0,
        1060,
    )


# Bytes that arrive.


def test_bytes_of_a_batch_show_that_the_source_is_there_though_no_ping_arrives() -> None:
    rig = open_session()
    rig.pass_time(100, 129)
    rig.handle(events.BytesArrived())
    rig.pass_time(129, 158)
    assert rig.node.has_source
    rig.pass_time(158, 160)
    assert not rig.node.has_source


def test_acknowledgement_says_since_when_no_byte_of_a_batch_has_arrived() -> None:
    rig = open_session()
    found = []
    for begin, end in ((100, 103), (103, 107)):
        rig.handle(events.BytesArrived())
        rig.pass_time(begin, end)
        (ack,) = messages(rig.say(Ping(EPOCH, GENERATION, 0)))
        assert isinstance(ack, Ack)
        found.append(ack.idle_s)
    assert found == [3, 4]
