# SPDX-License-Identifier: GPL-2.0-only
"""What a greeting source and a replica are to each other: every combination."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bdr.common.target.record import ANY_SOURCE, NO_GENERATION, NO_SOURCE, NO_STREAM, ReplicaRecord
from bdr.common.target.verdict import Kinship, Place, Relation, Verdict, kinship
from bdr.common.wire.control import Hello
from tests.support.target_rig import (
    GENERATION,
    HELLO,
    NEWER,
    OLDER,
    OTHER_SOURCE,
    OTHER_STREAM,
    RECORD,
    SOURCE,
)

FIRST, RESUME, COMPARE, UNRELATED, TWO = (
    Verdict.FIRST_CONTACT,
    Verdict.RESUME,
    Verdict.COMPARE,
    Verdict.UNRELATED,
    Verdict.TWO_HISTORIES,
)
TABLE = {
    # Same source: (place) -> verdict where it has the generation that was seen, and where not.
    Place.ELSEWHERE: (COMPARE, TWO),
    Place.BEHIND: (COMPARE, TWO),
    Place.WITHIN: (RESUME, TWO),
    Place.BEYOND: (TWO, TWO),
}


@pytest.mark.parametrize(
    ("relation", "is_known", "place"),
    list(itertools.product(Relation, (False, True), Place)),
)
def test_every_kinship_has_its_verdict(relation: Relation, is_known: bool, place: Place) -> None:
    whatever_else = {
        Relation.NONE: FIRST,
        Relation.OTHER: UNRELATED,
        Relation.GIVEN_UP: COMPARE,
    }
    wanted = whatever_else.get(relation, TABLE[place][not is_known])
    assert Kinship(relation, is_known, place).verdict is wanted


# Who is related: HELLO is of SOURCE, and RECORD is its replica.


@pytest.mark.parametrize(
    ("record", "is_blank", "wanted"),
    [
        (RECORD, False, Relation.SAME),
        (RECORD, True, Relation.SAME),
        (replace(RECORD, source=OTHER_SOURCE), False, Relation.OTHER),
        # What is on the device was another's: its being blank shows nothing.
        (replace(RECORD, source=OTHER_SOURCE), True, Relation.OTHER),
        (replace(RECORD, source=OTHER_SOURCE, adopts=SOURCE), False, Relation.NONE),
        (replace(RECORD, source=OTHER_SOURCE, adopts=ANY_SOURCE), False, Relation.NONE),
        (replace(RECORD, source=OTHER_SOURCE, adopts=OTHER_SOURCE), False, Relation.OTHER),
        (replace(RECORD, source=NO_SOURCE), False, Relation.OTHER),
        (replace(RECORD, source=NO_SOURCE), True, Relation.NONE),
        (replace(RECORD, source=NO_SOURCE, adopts=SOURCE), False, Relation.NONE),
        (replace(RECORD, is_given_up=True), False, Relation.GIVEN_UP),
        (replace(RECORD, is_given_up=True, source=OTHER_SOURCE), False, Relation.OTHER),
    ],
)
def test_relation(record: ReplicaRecord, is_blank: bool, wanted: Relation) -> None:
    assert kinship(HELLO, record, is_blank=is_blank).relation is wanted


def test_word_that_both_are_equal_stands_for_a_blank_device() -> None:
    hello = replace(HELLO, tail=0, acknowledged=0, assume_clean=True)
    new = replace(RECORD, source=NO_SOURCE)
    assert kinship(hello, new, is_blank=False).relation is Relation.NONE
    # This source has been replicated before: a target that knows none is another.
    for again in (replace(hello, tail=1), replace(hello, acknowledged=1)):
        assert kinship(again, new, is_blank=False).relation is Relation.OTHER
    assert kinship(hello, replace(new, source=OTHER_SOURCE), is_blank=False).relation is (
        Relation.OTHER
    )


@pytest.mark.parametrize(
    ("told", "is_known"),
    [
        ((GENERATION,), True),
        ((NEWER, GENERATION, OLDER), True),
        ((OLDER,), False),
        # A clone has gone on for itself.
        ((NEWER, OLDER), False),
    ],
)
def test_generation(told: tuple[bytes, ...], is_known: bool) -> None:
    found = kinship(replace(HELLO, generations=told), RECORD, is_blank=False)
    assert found.is_generation_known is is_known


def test_record_that_has_seen_no_generation_knows_any() -> None:
    record = replace(RECORD, generation=NO_GENERATION)
    assert kinship(HELLO, record, is_blank=False).is_generation_known


# The ring has slots 40 to 100, changes 2 to 1026.


@pytest.mark.parametrize(
    ("slot", "changes", "wanted"),
    [
        (39, 2, Place.BEHIND),
        (40, 2, Place.WITHIN),
        (100, 1026, Place.WITHIN),
        (101, 2, Place.BEYOND),
        (50, 1, Place.BEHIND),
        (50, 1027, Place.BEYOND),
        # One says beyond, the other behind: both sides have something that the other lacks.
        (39, 1027, Place.BEYOND),
        (101, 1, Place.BEYOND),
    ],
)
def test_place(slot: int, changes: int, wanted: Place) -> None:
    record = replace(RECORD, slot=slot, changes=changes)
    assert kinship(HELLO, record, is_blank=False).place is wanted


@pytest.mark.parametrize("stream", [NO_STREAM, OTHER_STREAM])
def test_place_in_another_stream_says_nothing(stream: bytes) -> None:
    hello: Hello = replace(HELLO, stream=stream)
    for slot, changes in itertools.product((0, 50, 1000), (0, 2, 5000)):
        record = replace(RECORD, slot=slot, changes=changes)
        assert kinship(hello, record, is_blank=False).place is Place.ELSEWHERE
