# SPDX-License-Identifier: GPL-2.0-only
"""What commands ask of a source: leases that only verify, repairs, and how far a scan is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.ring.layout import Mode
from bdr.common.source.events import LinkDown, LinkUp, MarkRegions, RequestArrived, ScannerLost
from bdr.common.source.requests import UNREADABLE_SHOWN
from bdr.common.source.settings import SourceSettings
from bdr.common.wire.condition import Condition
from bdr.common.wire.scan import (
    Acquire,
    Grant,
    Query,
    Resync,
    ResyncStatus,
    Revoked,
    Verified,
    VerifyBegin,
    VerifyEnd,
)
from tests.support.scan_rig import (
    REGIONS,
    SCANNED,
    acquire,
    bits,
    commit,
    pass_time,
    query,
    scanning,
    write,
)
from tests.support.source_rig import (
    EPOCH,
    INFO,
    STATUS,
    STREAM,
    SourceRig,
    answers,
    of,
    streaming,
)

COMMAND = b"command"
CHUNK = (0, 2048)


def begin(rig: SourceRig, number: int = 1, ranges: list[tuple[int, int]] | None = None) -> Grant:
    (grant,) = rig.request(VerifyBegin(number, ranges or [CHUNK]), COMMAND)
    assert isinstance(grant, Grant)
    return grant


def end(rig: SourceRig, grant: Grant) -> list[int]:
    """Sectors that may not be judged."""
    (verified,) = rig.request(VerifyEnd(grant.lease), COMMAND)
    assert isinstance(verified, Verified)
    return bits(verified.busy)


def test_verification_begins_when_everything_dispatched_before_is_durable() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    write(rig, 0)
    assert rig.request(VerifyBegin(1, [CHUNK]), COMMAND) == []
    assert answers(rig.ack(0, accepted=1)) == []
    assert answers(rig.ack(1)) == [Grant(1, 1, STREAM, EPOCH, [CHUNK])]


def test_verification_ends_when_what_it_may_have_seen_is_dispatched_and_left_out() -> None:
    rig = scanning({2}, condition=Condition.CONSISTENT)
    grant = begin(rig)
    rig.look(head=42)
    assert rig.request(VerifyEnd(grant.lease), COMMAND) == []
    write(rig, 0)
    assert answers(rig.tick()) == []
    for sector in range(1, 60):
        write(rig, sector * 8)
    (verified,) = answers(rig.tick())
    assert isinstance(verified, Verified)
    # What was written, and the dirty region.
    assert bits(verified.busy) == list(range(480))


def test_verification_leaves_out_what_is_dirty_at_its_begin_and_at_its_end() -> None:
    """Also where the capture has marked it since the last look."""
    rig = scanning(set(), condition=Condition.CONSISTENT)
    rig.capture.bits[Bitmap.RESYNC] = {1}
    grant = begin(rig)
    rig.capture.bits[Bitmap.RESYNC] = {4}
    rig.capture.bits[Bitmap.ACTIVE] = {3}
    assert end(rig, grant) == [*range(128, 256), *range(3 * 128, 5 * 128)]


def test_verification_of_nothing_that_was_touched_leaves_nothing_out() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    write(rig, 4096)
    (verified,) = rig.request(VerifyEnd(grant.lease), COMMAND)
    assert verified == Verified(grant.lease, b"")


def test_verification_needs_no_scan_and_makes_nothing_inconsistent() -> None:
    rig = scanning({9}, condition=Condition.CONSISTENT)
    begin(rig)
    assert rig.marker() is None


@pytest.mark.parametrize(
    "ranges", [[], [(0, 4096)], [(8, 8), (0, 8)], [(SCANNED.device_sectors, 8)], [(0, 0)]]
)
def test_verification_of_what_are_no_chunks_gets_no_lease(ranges: list[tuple[int, int]]) -> None:
    rig = scanning(set())
    assert rig.request(VerifyBegin(1, ranges), COMMAND) == []
    assert not rig.node.scheduler.has_open_leases


def test_verification_of_more_chunks_than_a_lease_may_have_gets_none() -> None:
    rig = scanning(set(), lease_chunks=2)
    assert rig.request(VerifyBegin(1, [(at, 8) for at in (0, 8, 16)]), COMMAND) == []
    assert begin(rig, 2, [(0, 8), (8, 8)]).request == 2


def test_request_to_verify_that_is_repeated_while_it_waits_gets_one_lease() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    write(rig, 0)
    assert rig.request(VerifyBegin(1, [CHUNK]), COMMAND) == []
    assert rig.request(VerifyBegin(1, [CHUNK]), COMMAND) == []
    assert len(answers(rig.ack(1))) == 1
    assert answers(rig.tick()) == []


def test_end_of_a_verification_that_is_repeated_is_answered_once() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    rig.look(head=41)
    for _ in range(2):
        assert rig.request(VerifyEnd(grant.lease), COMMAND) == []
    write(rig, 4096)
    assert answers(rig.tick()) == [Verified(grant.lease, b"")]
    assert rig.request(VerifyEnd(grant.lease), COMMAND) == [Revoked(grant.lease)]


def test_end_of_another_peers_verification_is_answered_by_revoked_and_ends_nothing() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    assert rig.request(VerifyEnd(grant.lease), b"other") == [Revoked(grant.lease)]
    assert end(rig, grant) == []


# Losses.


@pytest.mark.parametrize("is_ending", [False, True])
def test_verification_is_revoked_when_the_epoch_is_lost(is_ending: bool) -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    if is_ending:
        rig.look(head=42)
        rig.request(VerifyEnd(grant.lease), COMMAND)
    assert answers(rig.handle(LinkDown())) == [Revoked(grant.lease)]
    assert rig.request(VerifyEnd(grant.lease), COMMAND) == [Revoked(grant.lease)]


def test_verification_is_revoked_when_failed_writes_are_merged() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    rig.capture.bits[Bitmap.ACTIVE].add(1)
    assert answers(rig.tick()) == [Revoked(grant.lease)]
    assert rig.dirty == {1}


def test_verification_that_waits_is_begun_in_the_next_epoch() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    write(rig, 0)
    assert rig.request(VerifyBegin(1, [CHUNK]), COMMAND) == []
    assert answers(rig.handle(LinkDown())) == []
    rig.handle(LinkUp())
    (grant,) = answers(rig.welcome(40, epoch=EPOCH + 1))
    assert isinstance(grant, Grant)
    assert (grant.request, grant.epoch) == (1, EPOCH + 1)


def test_verification_that_waits_survives_the_loss_of_a_scanner() -> None:
    """Commands have connections of their own, and ask but once."""
    rig = scanning(set(), condition=Condition.CONSISTENT)
    write(rig, 0)
    assert rig.request(VerifyBegin(1, [CHUNK]), COMMAND) == []
    rig.handle(ScannerLost())
    (grant,) = answers(rig.ack(1))
    assert isinstance(grant, Grant)


def test_verification_of_a_command_that_is_gone_ends_by_itself() -> None:
    rig = scanning(set(), condition=Condition.CONSISTENT)
    grant = begin(rig)
    assert pass_time(rig, 30, durable=0, accepted=0) == []
    assert answers(rig.tick(rig.now_at + 0.1)) == [Revoked(grant.lease)]
    assert not rig.node.scheduler.has_open_leases


def test_verification_that_ends_by_itself_gives_no_scanners_chunks_back() -> None:
    rig = scanning({0}, lease_s=3.0)
    verification = begin(rig)
    pass_time(rig, 2, durable=0, accepted=0)
    grant = acquire(rig)
    assert pass_time(rig, 2, durable=0, accepted=0) == [Revoked(verification.lease)]
    assert rig.request(Acquire(2)) == []
    assert [answer.lease for answer in commit(rig, grant)] == [grant.lease]  # type: ignore[union-attr]


# Other commands.


@pytest.mark.parametrize(
    ("ranges", "marked"),
    [
        ([], set(range(REGIONS))),
        ([(0, 8), (129, 1)], {0, 1}),
        ([(127, 2)], {0, 1}),
        ([(SCANNED.device_sectors - 1, 1)], {REGIONS - 1}),
        ([(SCANNED.device_sectors - 1, 2), (5, 0), (0, 8)], {0}),
    ],
)
def test_command_has_ranges_repaired(ranges: list[tuple[int, int]], marked: set[int]) -> None:
    rig = scanning(set())
    actions = rig.handle(RequestArrived(COMMAND, Resync(7, ranges)))
    assert of(MarkRegions, actions)
    (status,) = answers(actions)
    assert isinstance(status, ResyncStatus)
    assert status.request == 7
    assert rig.dirty == marked
    assert query(rig).dirty_regions == len(marked)


def test_answer_to_a_command_is_about_the_present() -> None:
    """Not as of the last look."""
    rig = streaming(settings=SourceSettings(status_interval_s=1000.0))
    rig.tick(1.0)
    rig.capture.show(replace(STATUS, resync_regions=5, mode=Mode.OVERFLOW, head=4000))
    status = query(rig)
    assert (status.dirty_regions, status.mode) == (5, "OVERFLOW")


def test_answer_to_a_command_says_how_far_the_scan_is() -> None:
    rig = scanning({0, 1, 40})
    grant = acquire(rig)
    commit(rig, grant, batches=1, unreadable=[(40 * 128, 8)])
    rig.ack(1)
    assert query(rig) == ResyncStatus(
        request=99,
        phase="STREAMING",
        condition="INCONSISTENT",
        mode="STREAM",
        epoch=EPOCH,
        region_bytes=65536,
        regions=REGIONS,
        dirty_regions=1,
        unreadable_regions=1,
        scanners=1,
        compared_bytes=3 * 65536,
        repaired_bytes=0,
        unreadable=[(40 * 128, 8)],
    )


def test_scanner_that_has_not_asked_for_a_while_counts_no_longer() -> None:
    rig = scanning(set())
    rig.request(Acquire(1))
    assert query(rig).scanners == 1
    pass_time(rig, 5, durable=0, accepted=0)
    assert query(rig).scanners == 0


def test_answer_to_a_command_fits_a_message_whatever_cannot_be_read() -> None:
    info = replace(INFO, regions=1 << 12, device_sectors=1 << 19)
    regions = range(0, 2 * (UNREADABLE_SHOWN + 9), 2)
    rig = scanning(set(regions), info=info, lease_chunks=2000, lease_sectors=1 << 19)
    while found := rig.request(Acquire(1)):
        (grant,) = found
        assert isinstance(grant, Grant)
        commit(rig, grant, unreadable=grant.ranges)
    status = query(rig)
    assert status.unreadable_regions == UNREADABLE_SHOWN + 9
    assert len(status.unreadable) == UNREADABLE_SHOWN


def test_command_is_answered_while_the_target_is_away() -> None:
    rig = SourceRig()
    assert rig.request(Query(99), COMMAND)[0].phase == "OFFLINE"  # type: ignore[union-attr]
