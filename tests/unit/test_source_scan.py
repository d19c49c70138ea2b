# SPDX-License-Identifier: GPL-2.0-only
"""Leases of scanners: who scans what, what is left out, what is cleared and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.ring.layout import Mode, Op
from bdr.common.source.events import Event, LinkDown, LinkUp, ScannerLost
from bdr.common.source.session import Phase
from bdr.common.wire.batch import Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.scan import Acquire, Commit, Committed, Grant, Resync, Revoked, VerifyEnd
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
from tests.support.source_rig import EPOCH, STREAM, answers

# Granting and clearing.


def test_lease_is_of_the_dirty_chunks_and_each_is_granted_once() -> None:
    rig = scanning({0, 1, 40})
    assert acquire(rig, 1) == Grant(1, 1, STREAM, EPOCH, [(0, 256), (40 * 128, 128)])
    assert rig.request(Acquire(2)) == []


def test_request_that_is_repeated_gets_one_lease() -> None:
    rig = scanning({0, 40}, lease_chunks=1)
    rig.handle(LinkDown())
    assert [rig.request(Acquire(1)) for _ in range(2)] == [[], []]
    rig.handle(LinkUp())
    (grant,) = answers(rig.welcome(40, Condition.INCONSISTENT))
    assert isinstance(grant, Grant)
    assert answers(rig.tick()) == []


def test_equal_chunks_are_cleared_when_what_was_dispatched_before_is_durable() -> None:
    rig = scanning({0, 1})
    grant = acquire(rig)
    write(rig, 9999)
    (committed,) = commit(rig, grant)
    assert isinstance(committed, Committed)
    assert rig.dirty == {0, 1}
    rig.ack(1)
    assert rig.dirty == set()


def test_differing_chunks_are_cleared_when_their_batches_are_durable() -> None:
    rig = scanning({0, 1})
    grant = acquire(rig)
    assert commit(rig, grant, batches=2) == [Committed(grant.lease, EPOCH, 1, 40, b"")]
    assert (rig.node.order.dispatched, rig.node.order.window.resync_in_flight) == (2, 2)
    rig.ack(1)
    assert rig.dirty == {0, 1}
    rig.ack(2)
    assert rig.dirty == set()


def test_resync_batches_are_numbered_among_the_others_and_move_nothing() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    assert rig.dispatch(5).number == 1
    (committed,) = commit(rig, grant, batches=2)
    assert isinstance(committed, Committed)
    assert (committed.number, committed.first) == (2, 45)
    header = rig.dispatch(5)
    assert (header.number, header.first) == (4, 45)
    rig.ack(3)
    assert (rig.node.order.tail, rig.node.order.durable) == (45, 3)


@pytest.mark.parametrize("op", [Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES])
def test_sectors_that_a_live_batch_covers_meanwhile_are_excluded(op: Op) -> None:
    rig = scanning({1})
    write(rig, 128)  # before: the scanner's read has it
    grant = acquire(rig)
    write(rig, 128 + 16, 3, op)
    (committed,) = commit(rig, grant, batches=1)
    assert isinstance(committed, Committed)
    assert bits(committed.excluded) == [16, 17, 18]
    assert committed.number == 3


def test_failed_write_of_a_live_batch_excludes_nothing() -> None:
    """It brings nothing, and has marked its region, which is repaired anew."""
    rig = scanning({1})
    grant = acquire(rig)
    write(rig, 128 + 16, 3, Op.NOP)
    (committed,) = commit(rig, grant, batches=1)
    assert isinstance(committed, Committed)
    assert committed.excluded == b""


def test_sectors_that_a_live_batch_covers_while_the_commit_waits_are_excluded_too() -> None:
    rig = scanning(set(range(0, REGIONS, 2)))
    most = rig.node.order.resync_batches_max
    commit(rig, acquire(rig, 1), batches=most)
    grant = acquire(rig, 2)
    assert commit(rig, grant, batches=1) == []
    write(rig, grant.ranges[0][0], 2)
    (committed,) = answers(rig.ack(most))
    assert isinstance(committed, Committed)
    assert bits(committed.excluded) == [0, 1]


def test_consistent_replica_is_declared_inconsistent_before_anything_is_granted() -> None:
    rig = scanning({3}, condition=Condition.CONSISTENT)
    assert rig.request(Acquire(1)) == []
    assert rig.marker() is Marker.INCONSISTENT
    (grant,) = answers(rig.tick())
    assert isinstance(grant, Grant)


def test_consistent_replica_stays_so_while_no_scanner_asks() -> None:
    assert scanning({3}, condition=Condition.CONSISTENT).marker() is None


def test_scan_before_a_gap_does_not_make_the_replica_inconsistent() -> None:
    rig = scanning({3}, condition=Condition.CONSISTENT)
    rig.look(gap=70)
    rig.request(Acquire(1))
    assert rig.marker() is None


def test_consistent_is_declared_at_the_head_of_the_look_that_finds_nothing_dirty() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    rig.look(head=45)
    commit(rig, grant)
    rig.tick()
    assert rig.dirty == set()
    assert rig.marker() is None
    for _ in range(5):
        write(rig, 9999)
    assert rig.marker() is Marker.CONSISTENT


def test_scan_that_was_wanted_in_an_epoch_that_is_over_is_wanted_no_longer() -> None:
    rig = scanning({3}, condition=Condition.CONSISTENT)
    assert rig.request(Acquire(1)) == []
    rig.handle(ScannerLost())
    rig.handle(LinkDown())
    rig.handle(LinkUp())
    rig.welcome(40, Condition.CONSISTENT)
    assert rig.marker() is None


def test_commit_waits_while_a_marker_is_due() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    rig.dirty.clear()  # so that it is consistent from here on
    rig.look()
    assert rig.node.order.resync_room == 0
    assert commit(rig, grant, batches=1) == []
    assert rig.marker() is Marker.CONSISTENT


# Losses.


@pytest.mark.parametrize("event", [LinkDown(), LinkUp()], ids=["link lost", "greets again"])
def test_epoch_lost_revokes_leases_and_forgets_what_was_not_acknowledged(event: Event) -> None:
    rig = scanning({0, 40})
    commit(rig, acquire(rig), batches=1)
    rig.capture.bits[Bitmap.RESYNC].add(80)
    rig.look()
    second = acquire(rig, 2)
    assert second.ranges == [(80 * 128, 128)]
    assert answers(rig.handle(event)) == [Revoked(second.lease)]
    assert commit(rig, second) == [Revoked(second.lease)]
    rig.handle(LinkUp())
    rig.welcome(40, Condition.INCONSISTENT)
    rig.tick()
    assert rig.dirty == {0, 40, 80}
    assert acquire(rig, 3).ranges == [(0, 128), (40 * 128, 128), (80 * 128, 128)]


def test_region_marked_during_its_own_repair_is_repaired_again() -> None:
    """What RESUME merges cannot be told from what is under way: all of it begins anew."""
    rig = scanning({0})
    commit(rig, acquire(rig), batches=1)
    rig.capture.bits[Bitmap.ACTIVE].add(0)
    rig.look(mode=Mode.OVERFLOW)  # drained: it resumes
    assert rig.capture.bits[Bitmap.ACTIVE] == set()
    rig.ack(1)
    assert rig.dirty == {0}
    assert acquire(rig, 2).ranges == [(0, 128)]


def test_region_marked_by_a_command_during_its_own_repair_is_repaired_again() -> None:
    rig = scanning({0})
    commit(rig, acquire(rig), batches=1)
    rig.request(Resync(5, [(8, 8)]), b"command")
    rig.ack(1)
    assert rig.dirty == {0}
    assert acquire(rig, 2).ranges == [(0, 128)]


def test_target_that_is_unknown_again_has_every_region_repaired() -> None:
    rig = scanning({0, 1})
    rig.handle(LinkDown())
    rig.handle(LinkUp())
    rig.welcome(40, Condition.UNKNOWN)
    assert rig.dirty == set(range(REGIONS))
    assert rig.request(Acquire(1)) == []
    assert rig.marker() is Marker.UNVERIFIED
    (grant,) = answers(rig.tick())
    assert isinstance(grant, Grant)
    assert grant.ranges[0] == (0, 2048)


def test_chunks_given_back_wait_until_the_repair_under_way_is_durable() -> None:
    rig = scanning({0})
    commit(rig, acquire(rig), batches=1)
    rig.ack(0, accepted=1)  # it has arrived, so a lost scanner is no reason to greet again
    rig.handle(ScannerLost())
    assert rig.node.session.state is Phase.STREAMING
    assert rig.request(Acquire(2)) == []
    (grant,) = answers(rig.ack(1))
    assert isinstance(grant, Grant)


def test_scanner_lost_with_batches_that_have_not_arrived_greets_again() -> None:
    rig = scanning({0})
    commit(rig, acquire(rig), batches=1)
    rig.handle(ScannerLost())
    assert rig.node.session.state is Phase.GREETING


def test_scanner_lost_with_live_batches_under_way_does_not_greet_again() -> None:
    rig = scanning({0})
    acquire(rig)
    rig.dispatch(1)
    rig.handle(ScannerLost())
    assert rig.node.session.state is Phase.STREAMING


def test_scanner_lost_revokes_every_lease_and_forgets_who_asked() -> None:
    """Which one it was is not known; those that live ask again."""
    rig = scanning({0})
    grant = acquire(rig)
    assert rig.request(Acquire(2), b"another") == []
    assert query(rig).scanners == 2
    assert answers(rig.handle(ScannerLost())) == [Revoked(grant.lease)]
    assert answers(rig.tick()) == []
    assert query(rig).scanners == 0
    assert acquire(rig, 3).ranges == grant.ranges


def test_lease_of_a_frozen_scanner_is_granted_to_another() -> None:
    rig = scanning({0})
    grant = acquire(rig, 1)
    assert pass_time(rig, 30, durable=0, accepted=0) == []
    assert answers(rig.tick(rig.now_at + 0.1)) == [Revoked(grant.lease)]
    assert acquire(rig, 2).ranges == grant.ranges
    assert commit(rig, grant, batches=1) == [Revoked(grant.lease)]


def test_lease_that_waits_for_its_place_is_not_revoked() -> None:
    """Over a slow link the repairs before it may take longer than a lease may."""
    rig = scanning(set(range(0, REGIONS, 2)))
    most = rig.node.order.resync_batches_max
    commit(rig, acquire(rig, 1), batches=most)
    rig.capture.bits[Bitmap.RESYNC].add(1)
    rig.look()
    grant = acquire(rig, 2)
    assert commit(rig, grant, batches=1) == []
    assert pass_time(rig, 31, durable=0, accepted=most) == []
    (answer,) = answers(rig.ack(most))
    assert isinstance(answer, Committed)
    assert answer.lease == grant.lease


# What a scanner may not do.


def test_commit_of_another_peers_lease_is_answered_by_revoked_and_changes_nothing() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    assert rig.request(Commit(grant.lease, 0, 0, [], []), b"other") == [Revoked(grant.lease)]
    (committed,) = commit(rig, grant)
    assert isinstance(committed, Committed)


def test_verification_of_a_scanners_lease_cannot_be_ended() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    assert rig.request(VerifyEnd(grant.lease)) == [Revoked(grant.lease)]
    assert rig.node.scheduler.has_open_leases


def test_commit_of_more_batches_than_ever_fit_is_revoked() -> None:
    """It would wait for ever: this scanner is of another version."""
    rig = scanning({0})
    grant = acquire(rig)
    most = rig.node.order.resync_batches_max
    assert commit(rig, grant, batches=most + 1) == [Revoked(grant.lease)]
    assert acquire(rig, 2).ranges == grant.ranges


def test_commit_twice_is_numbered_once() -> None:
    rig = scanning(set(range(0, REGIONS, 2)))
    most = rig.node.order.resync_batches_max
    commit(rig, acquire(rig, 1), batches=most)
    rig.capture.bits[Bitmap.RESYNC].add(1)
    rig.look()
    grant = acquire(rig, 2)
    assert commit(rig, grant, batches=1) == []
    assert commit(rig, grant, batches=2) == []
    assert len(answers(rig.ack(most))) == 1
    assert rig.node.order.dispatched == most + 1
    assert commit(rig, grant, batches=1) == [Revoked(grant.lease)]


# What is not judged.


def test_chunks_that_were_not_judged_are_granted_again() -> None:
    rig = scanning({0, 1, 40})
    commit(rig, acquire(rig, 1), again=[(0, 256)])
    rig.tick()
    assert rig.dirty == {0, 1}
    assert acquire(rig, 2).ranges == [(0, 256)]


def test_unreadable_region_stays_dirty_and_is_tried_again_later() -> None:
    rig = scanning({0, 1})
    commit(rig, acquire(rig, 1), batches=1, unreadable=[(128, 8)])
    rig.ack(1)
    assert rig.dirty == {1}
    status = query(rig)
    assert (status.unreadable, status.unreadable_regions) == ([(128, 8)], 1)
    assert rig.request(Acquire(2)) == []
    rig.look()
    assert rig.marker() is None  # not consistent
    assert pass_time(rig, 59, durable=1, accepted=1) == []
    (grant,) = pass_time(rig, 2, durable=1, accepted=1)
    assert isinstance(grant, Grant)
    assert grant.ranges == [(128, 128)]


def test_region_longer_than_a_chunk_is_cleared_when_all_of_it_is_done() -> None:
    info = replace(SCANNED, region_sectors=8192, regions=4, device_sectors=3 * 8192 + 100)
    rig = scanning({0, 3}, info=info)
    grant = acquire(rig)
    assert grant.ranges == [(0, 2048), (2048, 2048), (4096, 2048), (6144, 2048), (24576, 100)]
    commit(rig, grant, again=[(2048, 2048)])
    rig.tick()
    assert rig.dirty == {0}
    commit(rig, acquire(rig, 2))
    rig.tick()
    assert rig.dirty == set()


def test_region_longer_than_a_lease_is_cleared_with_the_last_of_its_chunks() -> None:
    info = replace(SCANNED, region_sectors=8192, regions=4, device_sectors=4 * 8192)
    rig = scanning({1}, info=info, lease_chunks=3)
    first, second = acquire(rig, 1), acquire(rig, 2)
    assert (len(first.ranges), len(second.ranges)) == (3, 1)
    commit(rig, first)
    rig.tick()
    assert rig.dirty == {1}
    commit(rig, second)
    rig.tick()
    assert rig.dirty == set()
