# SPDX-License-Identifier: GPL-2.0-only
"""The decision tables of a HELLO: every combination of what may be wrong with it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.target.admission import Assumption, Refusal, Start, refusal, start
from bdr.common.target.record import NO_STREAM, ReplicaRecord
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello, RefusedReason

OWN, OTHER = b"stream-of-tests!", b"another-stream.."
SLOT = 50
RECORD = ReplicaRecord("v", 1024, OWN, SLOT, 3, Condition.CONSISTENT)
HELLO = Hello(PROTOCOL, 1, "v", OWN, 1024, 40, 100, False)
SILENCE_S = 15.0
JOBS_MAX = 2048


def refuse(hello: Hello, *, record: ReplicaRecord = RECORD, **facts: float) -> Refusal | None:
    found = {"jobs_waiting": 0, "silent_s": 1000.0} | facts
    return refusal(hello, record, jobs_max=JOBS_MAX, silence_s=SILENCE_S, **found)  # type: ignore[arg-type]


def test_first_rule_of_the_table_that_applies_refuses() -> None:
    """`stream` is what the replica knows; what is found and wanted stands in the text."""
    every = itertools.product(
        ("v", "w"),
        (1023, 1024, 1025),
        (0, JOBS_MAX - 1, JOBS_MAX),
        (NO_STREAM, OWN, OTHER),
        (SLOT - 1, SLOT, SLOT + 1),
        (-1e9, SILENCE_S - 0.1, SILENCE_S),
    )
    for volume, sectors, jobs, stream, head, silent_s in every:
        table: list[tuple[bool, RefusedReason, tuple[str, ...]]] = [
            (volume == "w", RefusedReason.VOLUME, ("'w'", "'v'")),
            (sectors == 1025, RefusedReason.SIZE, ("1025", "1024")),
            (jobs == JOBS_MAX, RefusedReason.BUSY, (str(JOBS_MAX),)),
            (stream == OWN and head < SLOT, RefusedReason.BUSY, (str(head), str(SLOT))),
            (
                stream == OTHER and silent_s < SILENCE_S,
                RefusedReason.BUSY,
                (OWN.hex(), OTHER.hex(), "15"),
            ),
        ]
        wanted = next((row[1:] for row in table if row[0]), None)
        found = refuse(
            replace(HELLO, volume=volume, device_sectors=sectors, head=head),
            record=replace(RECORD, stream=stream),
            jobs_waiting=jobs,
            silent_s=silent_s,
        )
        if wanted is None:
            assert found is None
        else:
            assert found is not None
            assert found.reason is wanted[0]
            assert all(fact in found.text for fact in wanted[1])


@pytest.mark.parametrize("stream", [NO_STREAM, OTHER])
def test_head_before_the_replicas_slot_is_none_of_another_stream(stream: bytes) -> None:
    assert refuse(replace(HELLO, head=3, tail=1), record=replace(RECORD, stream=stream)) is None


NEW = replace(RECORD, stream=NO_STREAM, slot=0, condition=Condition.INCONSISTENT)
TAKEN_OVER = replace(RECORD, stream=OTHER)
UNKNOWN, CATCHING_UP = Condition.UNKNOWN, Condition.CATCHING_UP


@pytest.mark.parametrize(
    ("record", "tail", "head", "is_assumed", "wanted"),
    [
        # A known stream whose ring has the replica's slot, at either end of it.
        (RECORD, 40, 100, False, (SLOT, Condition.CONSISTENT, True, Assumption.NOT_GIVEN)),
        (RECORD, 50, 50, False, (SLOT, Condition.CONSISTENT, True, Assumption.NOT_GIVEN)),
        (RECORD, 0, 50, True, (SLOT, Condition.CONSISTENT, True, Assumption.HAD_SOURCE)),
        # One that has lost it.
        (RECORD, 51, 100, False, (51, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (RECORD, 51, 100, True, (51, UNKNOWN, False, Assumption.HAD_SOURCE)),
        # One whose ring ends before it; `refusal` answers that.
        (RECORD, 0, 49, True, (0, UNKNOWN, False, Assumption.HAD_SOURCE)),
        # Another stream.
        (TAKEN_OVER, 0, 100, False, (0, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (TAKEN_OVER, 0, 100, True, (0, UNKNOWN, False, Assumption.HAD_SOURCE)),
        (TAKEN_OVER, 40, 100, True, (40, UNKNOWN, False, Assumption.HAD_SOURCE)),
        # First contact.
        (NEW, 0, 0, False, (0, UNKNOWN, False, Assumption.NOT_GIVEN)),
        (NEW, 0, 100, True, (0, CATCHING_UP, False, Assumption.TAKEN)),
        (NEW, 0, 0, True, (0, CATCHING_UP, False, Assumption.TAKEN)),
        (NEW, 1, 100, True, (1, UNKNOWN, False, Assumption.HAD_TARGET)),
        (NEW, 1, 100, False, (1, UNKNOWN, False, Assumption.NOT_GIVEN)),
    ],
)
def test_where_a_source_goes_on(
    record: ReplicaRecord,
    tail: int,
    head: int,
    is_assumed: bool,
    wanted: tuple[int, Condition, bool, Assumption],
) -> None:
    hello = replace(HELLO, tail=tail, head=head, assume_clean=is_assumed)
    assert start(hello, record) == Start(*wanted)


@pytest.mark.parametrize("condition", Condition)
def test_known_source_goes_on_in_the_condition_that_is_remembered(condition: Condition) -> None:
    assert start(HELLO, replace(RECORD, condition=condition)).condition is condition
