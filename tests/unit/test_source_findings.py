# SPDX-License-Identifier: GPL-2.0-only
"""What a source remembers of verifications: nothing that was found is forgotten."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bdr.common.source import events
from bdr.common.source.findings import after, bounded, size_of, without
from bdr.common.source.identity import FINDINGS_RANGES_MAX, Findings
from bdr.common.wire.codec import Range
from bdr.common.wire.scan import Remembered, VerifyFound
from tests.support.scan_rig import SCANNED, acquire, commit, scanning
from tests.support.source_rig import SourceRig, answers, of

COMMAND = b"command"
ALL = (0, SCANNED.device_sectors)
RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=40)
FOUND = VerifyFound(
    request=5,
    ended_utc=1000,
    covered=[ALL],
    ignored=[],
    differing=[(8, 8), (300, 4)],
    compared_bytes=ALL[1] * 512,
    differing_bytes=12 * 512,
)


def sectors(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {at for first, count in ranges for at in range(first, first + count)}


def kept(rig: SourceRig) -> tuple[Range, ...]:
    return rig.node.memory.findings.unrepaired


def report(rig: SourceRig, found: VerifyFound = FOUND) -> events.SaveFindings:
    actions = rig.handle(events.RequestArrived(COMMAND, found))
    assert not answers(actions)
    (save,) = of(events.SaveFindings, actions)
    return save


@given(RANGES, st.integers(1, 9))
def test_bounded_ranges_cover_all_of_them_and_are_few(ranges: list[Range], limit: int) -> None:
    few = bounded(ranges, limit)
    assert len(few) <= limit
    assert sectors(few) >= sectors(ranges)
    assert list(few) == sorted(few)
    if len(bounded(ranges, 1000)) <= limit:
        assert sectors(few) == sectors(ranges)


@given(RANGES, RANGES)
def test_what_is_left_is_exactly_what_is_not_gone(ranges: list[Range], gone: list[Range]) -> None:
    assert sectors(without(ranges, gone)) == sectors(ranges) - sectors(gone)


@given(RANGES, RANGES, RANGES, RANGES)
def test_only_what_was_compared_and_found_equal_is_forgotten(
    known: list[Range], covered: list[Range], ignored: list[Range], differing: list[Range]
) -> None:
    found = replace(FOUND, covered=covered, ignored=ignored, differing=differing)
    left = after(Findings(unrepaired=bounded(known)), found, device_sectors=400).unrepaired
    equal = sectors(covered) - sectors(ignored)
    assert sectors(left) == (sectors(known) - equal) | sectors(differing)


def test_command_is_answered_when_what_it_found_is_durable() -> None:
    rig = scanning(set())
    assert report(rig).findings == Findings(1000, ALL[1] * 512, 0, 6144, ((8, 8), (300, 4)))
    assert answers(rig.handle(events.FindingsSaved())) == [Remembered(5)]


def test_answers_keep_to_the_order_of_the_saves() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    report(rig)
    commit(rig, grant)
    assert of(events.SaveFindings, rig.tick())  # what is repaired is saved, too
    report(rig, replace(FOUND, request=6))
    found = [answers(rig.handle(events.FindingsSaved())) for _ in range(3)]
    assert found == [[Remembered(5)], [], [Remembered(6)]]


def test_part_of_the_device_does_not_count_as_a_verification() -> None:
    rig = scanning(set())
    report(rig)
    report(rig, replace(FOUND, ended_utc=2000, covered=[(8, 8)], differing=[]))
    assert rig.node.memory.findings == Findings(1000, ALL[1] * 512, 0, 6144, ((300, 4),))


def test_interrupted_verification_adds_what_it_found_and_takes_nothing_back() -> None:
    rig = scanning(set())
    report(rig)
    report(rig, replace(FOUND, covered=[], differing=[(64, 8)]))
    assert kept(rig) == ((8, 8), (64, 8), (300, 4))


def test_later_verification_that_finds_nothing_ends_it() -> None:
    rig = scanning(set())
    report(rig)
    report(rig, replace(FOUND, ended_utc=2000, ignored=[(304, 8)], differing=[], differing_bytes=0))
    assert rig.node.memory.findings == Findings(2000, ALL[1] * 512, 8 * 512, 0)


def test_blocks_that_a_later_verification_ignored_are_not_forgotten() -> None:
    rig = scanning(set())
    report(rig)
    report(rig, replace(FOUND, ignored=[(296, 8)], differing=[]))
    assert kept(rig) == ((300, 4),)


def test_regions_that_a_scan_has_repaired_are_forgotten_and_no_others() -> None:
    rig = scanning({0, 1})
    report(rig)
    grant = acquire(rig)
    commit(rig, grant, batches=1)
    assert kept(rig) == ((8, 8), (300, 4))
    actions = rig.ack(1)
    # Region 2, of sectors 256 to 383, was not marked.
    (save,) = of(events.SaveFindings, actions)
    assert save.findings.unrepaired == kept(rig) == ((300, 4),)
    assert save.findings.differing_bytes == 6144


def test_ranges_that_cannot_be_read_are_not_repaired() -> None:
    rig = scanning({0, 2})
    report(rig)
    commit(rig, acquire(rig), unreadable=[(8, 8)])
    rig.tick()
    assert kept(rig) == ((8, 8),)


def test_more_ranges_than_there_is_room_for_are_joined() -> None:
    rig = scanning(set())
    many = [(at * 16, 8) for at in range(2 * FINDINGS_RANGES_MAX)]
    report(rig, replace(FOUND, differing=many))
    assert len(kept(rig)) == FINDINGS_RANGES_MAX
    assert sectors(kept(rig)) >= sectors(many)
    assert size_of(kept(rig)) >= size_of(many)
