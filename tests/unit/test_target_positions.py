# SPDX-License-Identifier: GPL-2.0-only
"""A target and what its sources claim to be: two histories, other sources, other sessions.

The replica's record changes with the first batch of a source that begins elsewhere, not with
its greeting; a refusal changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bdr.common.errors import WireError
from bdr.common.target.events import LogEvent
from bdr.common.target.record import (
    ANY_SOURCE,
    NO_GENERATION,
    NO_SOURCE,
    ReplicaRecord,
    decode_record,
    demoted,
    encode_record,
)
from bdr.common.wire.batch import RECENT_BATCHES_MAX, BatchKind, Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import (
    Ack,
    Disown,
    Hello,
    Ping,
    Rewind,
    Welcome,
    decode_message,
    encode_message,
)
from bdr.common.wire.reasons import RefusedReason, RewindReason
from tests.support.target_rig import (
    BLANK,
    EPOCH,
    GENERATION,
    HELLO,
    NEWER,
    NONCE,
    OLDER,
    OTHER_SOURCE,
    OTHER_STREAM,
    PEER,
    RECORD,
    SOURCE,
    STREAM,
    TARGET,
    TargetRig,
    accepted_of,
    jobs,
    make_batch,
    make_marker,
    messages,
    of,
    open_session,
    refusal_of,
    welcome,
    welcome_of,
)

NEWCOMER = b"newcomer"
LAST = accepted_of(make_batch(1, 48, 2, epoch=EPOCH - 1))
REVERTED = replace(HELLO, generations=(OLDER,))
CLONE = replace(HELLO, generations=(b"gener-xx", GENERATION, OLDER))
"""It has gone on from the same state, for itself."""


# Two histories.


@pytest.mark.parametrize(
    "changes",
    [
        {"generations": (OLDER,)},
        {"generations": (NEWER, OLDER)},
        {"head": RECORD.slot - 1},
        {"acknowledged": 0, "counted": RECORD.changes - 1},
        {"stream": OTHER_STREAM, "generations": (OLDER,)},
    ],
    ids=str,
)
def test_two_histories_are_declared_only_to_one_that_brings_the_nonce_back(
    changes: dict[str, Any],
) -> None:
    rig = TargetRig()
    hello = replace(HELLO, **changes)
    first = rig.say(hello)
    refused = refusal_of(first)
    assert (refused.reason, refused.nonce) == (RefusedReason.TWO_HISTORIES, NONCE)
    assert (rig.node.rival, rig.node.dropped, of(LogEvent, first)) == (None, {}, [])
    confirmed = replace(hello, attempt=2, nonce=NONCE)
    second = rig.say(confirmed)
    assert refusal_of(second).nonce == NONCE
    assert rig.node.rival == confirmed
    assert rig.node.dropped == {"refused-two_histories": 1}
    assert [each.name for each in of(LogEvent, second)] == ["refused"]
    assert rig.record == RECORD


@pytest.mark.parametrize("nonce", [0, NONCE + 1])
def test_nonce_of_another_process_declares_nothing(nonce: int) -> None:
    rig = TargetRig()
    assert refusal_of(rig.say(replace(REVERTED, nonce=nonce))).nonce == NONCE
    assert rig.node.rival is None


def test_two_histories_are_declared_while_the_session_of_the_right_source_lives() -> None:
    """A clone runs beside its original, which goes on."""
    rig = open_session()
    rig.say(REVERTED, NEWCOMER)
    nonce = refusal_of(rig.say(REVERTED, NEWCOMER)).nonce
    rig.say(replace(REVERTED, nonce=nonce), NEWCOMER)
    assert rig.node.rival is not None
    assert jobs(rig.bring(make_batch(1, 50)))


def test_nonce_is_another_one_after_a_welcome_and_the_rival_is_forgotten() -> None:
    rig = TargetRig()
    rig.say(replace(REVERTED, nonce=NONCE))
    assert rig.node.rival is not None
    epoch = welcome(rig).epoch
    assert rig.node.rival is not None, "the source may still disown the replica"
    rig.say(Ping(epoch, GENERATION, 0))
    assert rig.node.rival is None
    # Late, of a process that has ended since.
    refused = refusal_of(rig.say(replace(REVERTED, nonce=NONCE), NEWCOMER))
    assert refused.nonce != NONCE
    assert rig.node.rival is None


def test_two_histories_are_not_latched() -> None:
    """A HELLO is judged by what it says itself."""
    rig = TargetRig()
    rig.say(replace(REVERTED, nonce=NONCE))
    assert welcome(rig).condition is Condition.CONSISTENT


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (RefusedReason.UNRELATED, {"source": OTHER_SOURCE}),
        (RefusedReason.VOLUME, {"volume": "w"}),
    ],
)
def test_other_refusals_ask_for_no_nonce(reason: RefusedReason, changes: dict[str, Any]) -> None:
    rig = TargetRig()
    refused = refusal_of(rig.say(replace(HELLO, **changes)))
    assert (refused.reason, refused.nonce) == (reason, 0)
    assert rig.node.rival is None


# Other sources.


def test_another_source_is_refused_for_as_long_as_it_asks() -> None:
    rig = TargetRig()
    for now_at in range(100, 200, 10):
        rig.pass_time(now_at, now_at + 10)
        refused = refusal_of(rig.say(replace(HELLO, source=OTHER_SOURCE), NEWCOMER))
        assert refused.reason is RefusedReason.UNRELATED
    assert rig.record == RECORD


@pytest.mark.parametrize(("is_blank", "is_taken"), [(True, True), (False, False)])
def test_first_source_is_taken_where_nothing_would_be_lost(is_blank: bool, is_taken: bool) -> None:
    rig = TargetRig(BLANK, is_blank=is_blank)
    if is_taken:
        assert welcome(rig).condition is Condition.UNKNOWN
    else:
        assert refusal_of(rig.say(HELLO)).reason is RefusedReason.UNRELATED


@pytest.mark.parametrize("adopts", [SOURCE, ANY_SOURCE])
@pytest.mark.parametrize(
    "record",
    [BLANK, replace(RECORD, source=OTHER_SOURCE, generation=b"another.")],
    ids=["new", "other"],
)
def test_source_that_is_adopted_is_taken_once_it_has_brought_something(
    adopts: bytes, record: ReplicaRecord
) -> None:
    rig = TargetRig(replace(record, adopts=adopts), is_blank=False)
    assert welcome(rig).condition is Condition.UNKNOWN
    assert rig.record.adopts == SOURCE
    rig.bring(make_marker(1, 40, Marker.UNVERIFIED, rig.record.epoch))
    after = rig.record
    assert (after.source, after.generation, after.adopts) == (SOURCE, GENERATION, NO_SOURCE)
    rig.lose()
    other = replace(HELLO, source=OTHER_SOURCE)
    assert refusal_of(rig.say(other, NEWCOMER)).reason is RefusedReason.UNRELATED


def test_largest_counter_of_a_source_leaves_room_to_count_on() -> None:
    most = decode_message(encode_message(replace(HELLO, counted=(1 << 63) - 1)))
    assert isinstance(most, Hello)
    with pytest.raises(WireError):
        decode_message(encode_message(replace(HELLO, counted=1 << 63)))
    rig = TargetRig(BLANK, is_blank=True, stride=(1 << 40) - 1)
    answer = welcome(rig, most)
    assert answer.changes > most.counted
    assert encode_message(answer)
    rig.bring(make_marker(1, 40, Marker.UNVERIFIED, rig.record.epoch))
    assert decode_record(encode_record(rig.record)) == rig.record


def test_source_that_is_not_the_adopted_one_is_refused() -> None:
    rig = TargetRig(replace(RECORD, source=OTHER_SOURCE, adopts=b"third-source...."))
    assert refusal_of(rig.say(HELLO)).reason is RefusedReason.UNRELATED


def test_promoted_target_refuses_its_own_source() -> None:
    rig = TargetRig(replace(RECORD, promoted_utc=1000))
    assert refusal_of(rig.say(HELLO)).reason is RefusedReason.PROMOTED


@pytest.mark.parametrize("hello", [HELLO, REVERTED])
def test_what_was_given_up_is_compared_with_any_state_of_its_source(hello: Hello) -> None:
    rig = TargetRig(demoted(RECORD, now_utc=1), is_blank=False)
    assert welcome(rig, hello).condition is Condition.UNKNOWN
    rig.bring(make_marker(1, 40, Marker.UNVERIFIED))
    assert not rig.record.is_given_up
    assert rig.record.generation == hello.generations[0]


def test_what_was_given_up_is_not_given_to_another_source() -> None:
    rig = TargetRig(demoted(RECORD, now_utc=1), is_blank=False)
    other = replace(HELLO, source=OTHER_SOURCE)
    assert refusal_of(rig.say(other)).reason is RefusedReason.UNRELATED


# What the record is, and when it changes.


def elsewhere() -> tuple[TargetRig, Welcome]:
    """The source's device was attached anew, and its source welcomed."""
    rig = TargetRig(replace(RECORD, since_utc=900, recent=(LAST,)))
    rig.tick(100.0, 1000)
    found = welcome(rig, replace(HELLO, stream=OTHER_STREAM, tail=0, head=9, acknowledged=0))
    return rig, found


BEGUN = HELLO.counted + 1
"""Changes of a source that begins elsewhere: more than it or another has counted."""


def test_greeting_leaves_the_record_as_it_was_but_for_its_epoch() -> None:
    rig, found = elsewhere()
    assert (found.slot, found.changes, found.condition) == (0, BEGUN, Condition.UNKNOWN)
    assert found.recent == ()
    assert rig.record == replace(RECORD, since_utc=900, recent=(LAST,), epoch=EPOCH, clean=False)
    assert jobs(rig.say(Ping(EPOCH, NEWER, 7 << 20))) == []
    (ack,) = messages(rig.say(Ping(EPOCH, NEWER, 7 << 20)))
    assert ack == Ack(EPOCH, 0, 0, Condition.CONSISTENT, 900, 0, 0)


def test_restart_before_the_first_batch_finds_the_replica_as_it_was() -> None:
    rig, _ = elsewhere()
    # A journal's replay leaves nothing beyond the record's slot.
    again = TargetRig(replace(rig.record, clean=True))
    found = welcome(again)
    assert (found.slot, found.condition) == (RECORD.slot, Condition.CONSISTENT)


@pytest.mark.parametrize("is_marker", [False, True])
def test_first_batch_makes_the_replica_its_sources(is_marker: bool) -> None:
    rig, _ = elsewhere()
    batch = (
        make_marker(1, 0, Marker.UNVERIFIED, stream=OTHER_STREAM)
        if is_marker
        else make_batch(1, 0, 3, stream=OTHER_STREAM)
    )
    (job,) = jobs(rig.bring(batch))
    wanted = Condition.UNVERIFIED if is_marker else Condition.UNKNOWN
    assert job.record == replace(
        RECORD,
        epoch=EPOCH,
        clean=False,
        stream=OTHER_STREAM,
        slot=0 if is_marker else 3,
        changes=BEGUN + is_marker,
        recent=() if is_marker else (accepted_of(batch),),
        condition=wanted,
        since_utc=1000,
    )
    (ack,) = messages(rig.durable())
    assert isinstance(ack, Ack)
    assert (ack.condition, ack.since_utc) == (wanted, 1000)


def test_session_that_ends_before_its_first_batch_leaves_nothing_behind() -> None:
    rig, _ = elsewhere()
    rig.lose()
    found = welcome(rig, HELLO, NEWCOMER)
    assert (found.slot, found.condition) == (RECORD.slot, Condition.CONSISTENT)
    (job,) = jobs(rig.bring(make_batch(1, RECORD.slot, epoch=found.epoch)))
    assert job.record.stream == STREAM


def test_damaged_first_batch_changes_nothing() -> None:
    rig, _ = elsewhere()
    before = rig.record
    batch = make_batch(1, 0, stream=OTHER_STREAM)
    rig.bring(replace(batch, payload=bytes(len(batch.payload))))
    assert rig.record == before


def test_markers_and_resync_batches_are_counted_and_live_batches_remembered() -> None:
    rig = open_session(replace(RECORD, condition=Condition.INCONSISTENT))
    first = make_batch(1, 50, 2)
    rig.bring(first)
    assert (rig.record.changes, rig.record.recent) == (2, (accepted_of(first),))
    rig.bring(make_batch(2, 52, 1, kind=BatchKind.RESYNC))
    assert (rig.record.changes, rig.record.recent) == (3, (accepted_of(first),))
    rig.bring(make_marker(3, 52, Marker.CONSISTENT))
    assert (rig.record.changes, rig.record.recent) == (4, (accepted_of(first),))
    second = make_batch(4, 52, 1)
    rig.bring(second)
    recent = (accepted_of(first), accepted_of(second))
    assert rig.record.recent == recent
    again = TargetRig(replace(rig.record, clean=True))
    found = welcome(again)
    assert (found.slot, found.changes, found.recent) == (53, 4, recent)
    assert found.target == TARGET


def test_the_last_live_batches_are_remembered_and_no_more() -> None:
    rig = open_session(RECORD)
    batches = [make_batch(number, 49 + number, 1) for number in range(1, RECENT_BATCHES_MAX + 3)]
    for batch in batches:
        rig.bring(batch)
    assert rig.record.recent == tuple(map(accepted_of, batches[-RECENT_BATCHES_MAX:]))


def test_unverified_replica_is_inconsistent_from_its_first_repair_on() -> None:
    rig = open_session(replace(RECORD, condition=Condition.UNKNOWN))
    conditions = [
        jobs(rig.bring(batch))[0].record.condition
        for batch in (
            make_marker(1, 50, Marker.UNVERIFIED),
            make_batch(2, 50),
            make_batch(3, 51, kind=BatchKind.RESYNC),
            make_batch(4, 51),
        )
    ]
    assert conditions == [
        Condition.UNVERIFIED,
        Condition.UNVERIFIED,
        Condition.INCONSISTENT,
        Condition.INCONSISTENT,
    ]


def test_unverified_replica_that_needed_no_repair_becomes_consistent() -> None:
    rig = open_session(replace(RECORD, condition=Condition.UNVERIFIED))
    (job,) = jobs(rig.bring(make_marker(1, 50, Marker.CONSISTENT)))
    assert job.record.condition is Condition.CONSISTENT


def test_what_is_left_is_remembered_of_an_unverified_replica_too() -> None:
    rig = open_session(replace(RECORD, condition=Condition.UNVERIFIED))
    (job,) = jobs(rig.say(Ping(EPOCH, GENERATION, 5)))
    assert job.record.left_bytes == 5


# The generation.


def test_generation_of_a_ping_is_remembered_by_a_job() -> None:
    rig = open_session()
    (job,) = jobs(rig.say(Ping(EPOCH, NEWER, 0)))
    assert job.record == replace(RECORD, epoch=EPOCH, clean=False, generation=NEWER)
    assert jobs(rig.say(Ping(EPOCH, NEWER, 0))) == []
    again = TargetRig(job.record)
    assert refusal_of(again.say(HELLO)).reason is RefusedReason.TWO_HISTORIES


def test_generation_of_a_greeting_is_remembered_before_the_welcome() -> None:
    """Else a source that greets often would no longer have the one that is remembered."""
    rig = TargetRig()
    (job,) = jobs(rig.say(replace(HELLO, generations=(NEWER, GENERATION))))
    assert job.record.generation == NEWER


@pytest.mark.parametrize(
    ("record", "wanted"), [(RECORD, NEWER), (replace(RECORD, generation=NO_GENERATION), None)]
)
def test_generation_of_a_source_that_begins_elsewhere_is_remembered_if_it_is_a_later_one(
    record: ReplicaRecord, wanted: bytes | None
) -> None:
    rig = TargetRig(record)
    rig.say(replace(HELLO, stream=OTHER_STREAM, generations=(NEWER, GENERATION)))
    assert rig.record.generation == (wanted or record.generation)
    rig.durable()
    rig.bring(make_marker(1, 40, Marker.UNVERIFIED, stream=OTHER_STREAM))
    assert rig.record.generation == NEWER


@pytest.mark.parametrize(("peer", "epoch"), [(b"other", EPOCH), (PEER, EPOCH - 1)])
def test_generation_of_another_session_is_not_remembered(peer: bytes, epoch: int) -> None:
    rig = open_session()
    assert jobs(rig.say(Ping(epoch, NEWER, 0), peer)) == []
    assert rig.record.generation == GENERATION


# A target that is disowned.


def test_disowned_session_is_over_and_its_source_a_rival() -> None:
    rig = open_session()
    (job,) = jobs(rig.say(Disown(EPOCH)))
    assert job.record == replace(RECORD, epoch=EPOCH, clean=False)
    assert rig.node.rival == HELLO
    assert not rig.node.has_source
    assert jobs(rig.bring(make_batch(1, 50))) == []
    assert messages(rig.durable()) == []
    (rewind,) = messages(rig.say(Ping(EPOCH, GENERATION, 0)))
    assert isinstance(rewind, Rewind)
    assert rewind.reason is RewindReason.NO_SESSION
    assert welcome(rig, peer=NEWCOMER).slot == RECORD.slot
    rig.bring(make_marker(1, RECORD.slot, Marker.CONSISTENT, rig.record.epoch))
    assert rig.node.rival is None


def test_disowned_greeting_does_not_make_a_rival_of_the_right_source() -> None:
    """A clone had a generation of its own, which the original will never have."""
    rig = open_session(hello=CLONE)
    assert rig.record.generation != GENERATION
    rig.say(Disown(EPOCH))
    assert rig.record.generation == GENERATION
    found = welcome(rig, replace(HELLO, generations=(NEWER, GENERATION, OLDER)), NEWCOMER)
    assert found.condition is Condition.CONSISTENT


def test_disown_takes_back_no_generation_of_what_was_accepted() -> None:
    rig = open_session(hello=CLONE)
    rig.bring(make_batch(1, 50))
    assert jobs(rig.say(Disown(EPOCH))) == []
    assert rig.record.generation == CLONE.generations[0]


@pytest.mark.parametrize(("peer", "epoch"), [(b"other", EPOCH), (PEER, EPOCH - 1)])
def test_disown_of_another_session_is_ignored(peer: bytes, epoch: int) -> None:
    rig = open_session()
    assert rig.say(Disown(epoch), peer) == []
    assert rig.node.rival is None
    assert jobs(rig.bring(make_batch(1, 50)))


def test_disown_before_the_welcome_is_ignored() -> None:
    rig = TargetRig()
    rig.say(HELLO)
    assert rig.say(Disown(EPOCH)) == []
    assert rig.node.rival is None
    assert welcome_of(rig.durable()).epoch == EPOCH
