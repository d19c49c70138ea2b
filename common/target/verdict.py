# SPDX-License-Identifier: GPL-2.0-only
"""What a greeting source and a replica are to each other.

Every counter follows one rule: a bound is durable before anything beyond the old one is
used, and the other side remembers what it has seen. So what the replica has of its source's
stream is either below what it acknowledged (the target went back), or between that and the
bound (one history), or above the bound (the source went back). Kills and power cuts lead to
the middle only.

A **position** is (stream, slot, changes): overflows and scans change data while the slot
stands, so `changes` counts the markers and resync batches accepted in a stream. The
**generation identifiers** of a source are made anew while it sends batches, durable before
they are sent: a source without the newest that the replica has seen was reverted, restored
or cloned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bdr.common.target.record import ANY_SOURCE, NO_GENERATION, NO_SOURCE, ReplicaRecord
from bdr.common.wire.control import Hello


class Verdict(Enum):
    """What is done with a greeting."""

    FIRST_CONTACT = "first-contact"
    """Nothing is lost by a copy of everything."""
    RESUME = "resume"
    """One history: go on where the replica stands."""
    COMPARE = "compare"
    """The source's history, of which the replica may lack anything."""
    UNRELATED = "unrelated"
    """Nothing in common: the device holds something else. A person decides."""
    TWO_HISTORIES = "two-histories"
    """Each side has something that the other never had. A person decides."""


class Relation(Enum):
    """What the replica has had to do with this source."""

    NONE = "none"
    """No source has been here, and nothing is on the device that would be lost."""
    SAME = "same"
    OTHER = "other"
    GIVEN_UP = "given-up"
    """It is this source's, and what it had beyond was given up by `bdr demote`."""


class Place(Enum):
    """The replica's position in the history of the source."""

    ELSEWHERE = "elsewhere"
    """In another stream of this source, which is over."""
    BEHIND = "behind"
    """Before what it has acknowledged."""
    WITHIN = "within"
    BEYOND = "beyond"
    """After all that the source can have sent."""


@dataclass(frozen=True, slots=True)
class Kinship:
    """All that the verdict depends on."""

    relation: Relation
    is_generation_known: bool
    """The source has the newest that the replica has seen."""
    place: Place

    @property
    def verdict(self) -> Verdict:
        """See `Verdict`. The first line that fits counts."""
        match self:
            case Kinship(relation=Relation.NONE):
                return Verdict.FIRST_CONTACT
            case Kinship(relation=Relation.OTHER):
                return Verdict.UNRELATED
            case Kinship(relation=Relation.GIVEN_UP):
                return Verdict.COMPARE
            case Kinship(is_generation_known=False) | Kinship(place=Place.BEYOND):
                return Verdict.TWO_HISTORIES
            case Kinship(place=Place.WITHIN):
                return Verdict.RESUME
            case _:
                return Verdict.COMPARE


def kinship(hello: Hello, record: ReplicaRecord, *, is_blank: bool) -> Kinship:
    """How a source and a replica stand to each other.

    Args:
        is_blank: nothing is on the device that would be lost; of interest only before the
            first source.
    """
    return Kinship(
        _relation(hello, record, is_blank=is_blank),
        record.generation in (NO_GENERATION, *hello.generations),
        _place(hello, record),
    )


def _relation(hello: Hello, record: ReplicaRecord, *, is_blank: bool) -> Relation:
    if record.source == NO_SOURCE:
        is_free = is_blank or hello.is_assumption or _adopts(record, hello)
        return Relation.NONE if is_free else Relation.OTHER
    if record.source != hello.source:
        return Relation.NONE if _adopts(record, hello) else Relation.OTHER
    return Relation.GIVEN_UP if record.is_given_up else Relation.SAME


def _adopts(record: ReplicaRecord, hello: Hello) -> bool:
    return record.adopts in (hello.source, ANY_SOURCE)


def _place(hello: Hello, record: ReplicaRecord) -> Place:
    if record.stream != hello.stream:
        return Place.ELSEWHERE
    if record.slot > hello.head or record.changes > hello.counted:
        return Place.BEYOND
    if record.slot < hello.tail or record.changes < hello.acknowledged:
        return Place.BEHIND
    return Place.WITHIN
