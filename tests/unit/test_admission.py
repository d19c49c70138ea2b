# SPDX-License-Identifier: GPL-2.0-only
"""The decision tables of a HELLO: every combination of what may be wrong with it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.target.admission import Assumption, Start, refusal, start
from bdr.common.target.job_queue import JOBS_MAX
from bdr.common.target.record import NO_SOURCE, NO_STREAM, ReplicaRecord
from bdr.common.target.verdict import Verdict, kinship
from bdr.common.wire.batch import Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello, Refused
from bdr.common.wire.reasons import RefusedReason
from tests.support.target_rig import (
    BLANK,
    HELLO,
    OLDER,
    OTHER_SOURCE,
    OTHER_STREAM,
    RECORD,
    SOURCE,
    make_marker,
    messages,
    open_session,
)

SLOT = RECORD.slot
Row = tuple[bool, RefusedReason, tuple[str, ...]]


def table(
    hello: Hello, record: ReplicaRecord, verdict: Verdict, jobs: int, wrong_device: str | None
) -> list[Row]:
    """Whether a rule applies, the reason, and facts of its text; the first that applies counts."""
    return [
        (hello.volume != "v", RefusedReason.VOLUME, ("'w'", "'v'")),
        (hello.device_sectors == 1025, RefusedReason.SIZE, ("1025", "1024")),
        (record.promoted_utc > 0, RefusedReason.PROMOTED, ("bdr demote",)),
        (wrong_device is not None, RefusedReason.WRONG_DEVICE, (str(wrong_device),)),
        (
            verdict is Verdict.UNRELATED,
            RefusedReason.UNRELATED,
            (SOURCE.hex(), OTHER_SOURCE.hex(), "bdr adopt v"),
        ),
        (
            verdict is Verdict.TWO_HISTORIES,
            RefusedReason.TWO_HISTORIES,
            (hello.generations[0].hex(), record.generation.hex(), str(record.slot), "bdr demote"),
        ),
        (jobs == JOBS_MAX, RefusedReason.BUSY, (str(JOBS_MAX),)),
    ]


EVERY = list(
    itertools.product(
        ("v", "w"),
        (1023, 1024, 1025),
        (0, 1),
        (None, "another disk"),
        Verdict,
        (0, JOBS_MAX - 1, JOBS_MAX),
    )
)


def test_first_rule_of_the_table_that_applies_refuses() -> None:
    for volume, sectors, promoted_utc, wrong_device, verdict, jobs in EVERY:
        hello = replace(HELLO, volume=volume, device_sectors=sectors)
        is_other = verdict is Verdict.UNRELATED
        record = replace(
            RECORD, promoted_utc=promoted_utc, source=OTHER_SOURCE if is_other else SOURCE
        )
        rows = table(hello, record, verdict, jobs, wrong_device)
        wanted = next((row[1:] for row in rows if row[0]), None)
        found = refusal(
            hello,
            record,
            verdict,
            jobs_waiting=jobs,
            jobs_max=JOBS_MAX,
            wrong_device=wrong_device,
        )
        if wanted is None:
            assert found is None
        else:
            assert found is not None
            assert found.reason is wanted[0]
            assert all(fact in found.text for fact in wanted[1])


def test_target_without_a_source_that_holds_data_names_the_source_to_adopt() -> None:
    record = replace(RECORD, source=NO_SOURCE)
    found = refusal(HELLO, record, Verdict.UNRELATED, jobs_waiting=0, jobs_max=JOBS_MAX)
    assert found is not None
    assert f"bdr adopt v --source {SOURCE.hex()}" in found.text


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, RefusedReason.BUSY),
        # What would be refused anyway is not told to wait.
        ({"volume": "w"}, RefusedReason.VOLUME),
        ({"device_sectors": 1025}, RefusedReason.SIZE),
        ({"source": OTHER_SOURCE}, RefusedReason.UNRELATED),
        ({"generations": (OLDER,)}, RefusedReason.TWO_HISTORIES),
    ],
)
def test_another_session_that_lives_comes_last(
    changes: dict[str, object], wanted: RefusedReason
) -> None:
    rig = open_session()
    answers = messages(rig.say(replace(HELLO, **changes), b"newcomer"))  # type: ignore[arg-type]
    found = [each.reason for each in answers if isinstance(each, Refused)]
    assert found == [wanted]


def test_jobs_that_wait_come_before_another_session_that_lives() -> None:
    rig = open_session()
    for number in range(1, JOBS_MAX + 1):
        rig.bring(make_marker(number, SLOT, Marker.CONSISTENT))
    hello = replace(HELLO, counted=2 * JOBS_MAX)
    found = [each for each in messages(rig.say(hello, b"newcomer")) if isinstance(each, Refused)]
    assert str(JOBS_MAX) in found[0].text


# Where a source goes on.

TAKEN_OVER = replace(RECORD, stream=OTHER_STREAM)
GIVEN_UP = replace(RECORD, stream=NO_STREAM, slot=0, changes=0, is_given_up=True)
UNKNOWN, CATCHING_UP = Condition.UNKNOWN, Condition.CATCHING_UP
NEW: dict[str, int] = {"tail": 0, "head": 0, "acknowledged": 0, "counted": 0}


@pytest.mark.parametrize(
    ("record", "changes", "is_assumed", "wanted"),
    [
        # A known stream whose ring has the replica's slot, at either end of it.
        (RECORD, {}, False, (SLOT, Condition.CONSISTENT, True, Assumption.NOT_GIVEN)),
        (
            RECORD,
            {"tail": SLOT, "head": SLOT, "acknowledged": 2, "counted": 2},
            False,
            (SLOT, Condition.CONSISTENT, True, Assumption.NOT_GIVEN),
        ),
        (
            RECORD,
            {"tail": 0, "acknowledged": 0},
            True,
            (SLOT, Condition.CONSISTENT, True, Assumption.HAD_SOURCE),
        ),
        # One that has released it, or cleared regions by changes that the replica lacks.
        (RECORD, {"tail": 51}, False, (51, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (RECORD, {"tail": 51}, True, (51, UNKNOWN, False, Assumption.HAD_SOURCE)),
        (RECORD, {"acknowledged": 3}, False, (40, UNKNOWN, False, Assumption.NOT_GIVEN)),
        # Another stream of the same source.
        (TAKEN_OVER, NEW, False, (0, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (TAKEN_OVER, NEW, True, (0, UNKNOWN, False, Assumption.HAD_SOURCE)),
        (TAKEN_OVER, {}, True, (40, UNKNOWN, False, Assumption.HAD_SOURCE)),
        # What was given up is not equal, whatever is said.
        (GIVEN_UP, NEW, True, (0, UNKNOWN, False, Assumption.HAD_SOURCE)),
        (
            replace(GIVEN_UP, source=NO_SOURCE),
            NEW,
            True,
            (0, UNKNOWN, False, Assumption.HAD_SOURCE),
        ),
        # First contact.
        (BLANK, NEW, False, (0, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (BLANK, NEW, True, (0, CATCHING_UP, False, Assumption.TAKEN)),
        (BLANK, NEW | {"head": 100}, True, (0, CATCHING_UP, False, Assumption.TAKEN)),
        # A bound is no proof that anything was sent.
        (BLANK, NEW | {"counted": 1024}, True, (0, CATCHING_UP, False, Assumption.TAKEN)),
        (BLANK, NEW | {"tail": 1, "head": 1}, True, (1, UNKNOWN, False, Assumption.HAD_TARGET)),
        (
            BLANK,
            NEW | {"acknowledged": 1, "counted": 1},
            True,
            (0, UNKNOWN, False, Assumption.HAD_TARGET),
        ),
        (BLANK, NEW | {"tail": 1, "head": 1}, False, (1, UNKNOWN, False, Assumption.NOT_GIVEN)),
    ],
)
def test_where_a_source_goes_on(
    record: ReplicaRecord,
    changes: dict[str, int],
    is_assumed: bool,
    wanted: tuple[int, Condition, bool, Assumption],
) -> None:
    hello = replace(HELLO, assume_clean=is_assumed, **changes)  # type: ignore[arg-type]
    verdict = kinship(hello, record, is_blank=True).verdict
    assert start(hello, record, verdict) == Start(*wanted)


@pytest.mark.parametrize("condition", Condition)
def test_known_source_goes_on_in_the_condition_that_is_remembered(condition: Condition) -> None:
    record = replace(RECORD, condition=condition)
    assert start(HELLO, record, Verdict.RESUME).condition is condition


@pytest.mark.parametrize("condition", Condition)
def test_source_that_is_compared_begins_as_unknown_whatever_is_remembered(
    condition: Condition,
) -> None:
    record = replace(TAKEN_OVER, condition=condition)
    assert start(HELLO, record, Verdict.COMPARE).condition is UNKNOWN
