# SPDX-License-Identifier: GPL-2.0-only
"""How much of a scan goes at a time: leases, resync batches, rate, and the hold."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from bdr.common.capture.api import Bitmap
from bdr.common.errors import InternalError
from bdr.common.ring.layout import Mode
from bdr.common.scan.plan import CHUNK_SECTORS
from bdr.common.source.lease import Lease, LeaseState
from bdr.common.source.rate_limit import ScanRateSettings
from bdr.common.wire.scan import Acquire, Committed, Grant, Renew, Revoked, VerifyBegin
from tests.support.scan_rig import REGIONS, SCANNED, acquire, commit, pass_time, scanning, write
from tests.support.source_rig import STATUS, answers


def test_no_more_leases_are_open_than_the_settings_say() -> None:
    rig = scanning(set(range(0, REGIONS, 2)), lease_chunks=1, open_leases=2)
    grants = [acquire(rig, number) for number in (1, 2)]
    assert rig.request(Acquire(3)) == []
    found = commit(rig, grants[0])
    assert [type(answer) for answer in found] == [Committed, Grant]


def leases_in_memory() -> list[Lease]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Lease)]


def test_leases_that_are_committed_keep_no_flags_until_they_are_durable() -> None:
    """There may be thousands while a slow target makes nothing durable."""
    before = {id(lease) for lease in leases_in_memory()}
    rig = scanning(set(range(0, REGIONS, 2)), lease_chunks=1)
    write(rig, 9999)
    for number in range(100):
        commit(rig, acquire(rig, number))
    assert not rig.node.scheduler.has_open_leases
    waiting = [lease for lease in leases_in_memory() if id(lease) not in before]
    assert [lease.state for lease in waiting] == [LeaseState.COMMITTED] * 100
    assert sum(len(lease.exclusions.flags) for lease in waiting) == 0
    rig.ack(1)
    assert len(rig.dirty) == REGIONS // 2 - 100


def test_window_of_resync_batches_makes_a_commit_wait() -> None:
    rig = scanning(set(range(0, REGIONS, 2)))
    most = rig.node.order.resync_batches_max
    for number in range(2):
        (answer,) = commit(rig, acquire(rig, number), batches=most // 2)
        assert isinstance(answer, Committed)
    rig.capture.bits[Bitmap.RESYNC].add(1)
    rig.look()
    assert commit(rig, acquire(rig, 9), batches=1) == []
    (answer,) = answers(rig.ack(1))
    assert isinstance(answer, Committed)
    assert answer.number == most + 1


@pytest.mark.parametrize(
    ("capacity", "limit"), [(64, 1), (1024, 1), (8192, 8), (16384, 16), (1 << 20, 32)]
)
def test_resync_batches_in_flight_are_few_where_the_ring_is_small(
    capacity: int, limit: int
) -> None:
    rig = scanning(set(range(0, REGIONS, 2)), info=replace(SCANNED, capacity=capacity))
    order = rig.node.order
    assert order.resync_limit == limit
    # Those of one lease always go together.
    assert order.resync_room == 32
    grant = acquire(rig)
    assert sum(sectors for _, sectors in grant.ranges) <= limit * CHUNK_SECTORS
    (committed,) = commit(rig, grant, batches=1)
    assert isinstance(committed, Committed)
    assert order.resync_room == limit - 1


def test_no_resync_batch_is_added_while_the_ring_is_half_full() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    half = STATUS.tail + SCANNED.capacity // 2
    rig.look(head=half + 1)
    assert rig.node.order.resync_room == 0
    assert commit(rig, grant, batches=1) == []
    rig.capture._status = replace(rig.capture._status, head=half)
    (committed,) = answers(rig.look())
    assert isinstance(committed, Committed)


def test_more_resync_batches_than_there_is_room_for_is_an_internal_error() -> None:
    order = scanning({0}).node.order
    for batches in (0, order.resync_room + 1):
        with pytest.raises(InternalError):
            order.number_resync(batches)


def test_pace_is_kept() -> None:
    rate_limit = ScanRateSettings(rate=128 * 512)
    rig = scanning(set(range(0, REGIONS, 2)), lease_chunks=1, rate_limit=rate_limit)
    granted = 0
    for number in range(10):
        granted += len(pass_time(rig, 1, durable=0, accepted=0))
        for each in range(3):
            granted += len(rig.request(Acquire(3 * number + each)))
    assert 8 <= granted <= 12


def test_no_lease_is_opened_before_the_target_has_the_slots_before_a_gap() -> None:
    """One of them would be left out, and hide the newer write that the ring has missed; or it
    would arrive after the digests, which the missed write may equal."""
    rig = scanning({0})
    rig.capture.bits[Bitmap.ACTIVE].add(1)
    rig.look(head=100, mode=Mode.OVERFLOW)  # drained enough: it resumes
    assert rig.request(Acquire(2)) == []
    for _ in range(59):
        write(rig, 9999)
    assert answers(rig.tick()) == []
    write(rig, 0)
    assert answers(rig.tick()) == []
    assert answers(rig.ack(59)) == []
    (grant,) = answers(rig.ack(60))
    assert isinstance(grant, Grant)


def test_bitmap_is_not_read_again_while_all_that_is_dirty_is_out() -> None:
    """Else every round of a reader would read all of it, for as long as a scanner waits."""
    rig = scanning({0, 1})
    grant = acquire(rig, 1)
    rig.request(Acquire(2))
    rig.capture.reads = 0
    for _ in range(10):
        assert answers(rig.tick()) == []
    assert rig.capture.reads == 0
    commit(rig, grant, again=[(128, 128)])
    rig.tick()
    assert rig.capture.reads > 0


def test_chunks_are_not_granted_again_while_their_bits_are_being_cleared() -> None:
    rig = scanning(set(range(REGIONS)), lease_chunks=4)
    seen: list[tuple[int, int]] = []
    for number in range(REGIONS):
        for grant in rig.request(Acquire(number)):
            if isinstance(grant, Grant):
                seen += grant.ranges
                commit(rig, grant)
    rig.tick()
    assert sum(count for _, count in seen) == SCANNED.device_sectors
    assert rig.dirty == set()


# Leases are renewed.


def test_lease_that_is_renewed_does_not_expire_and_one_that_is_not_does() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    for _ in range(10):
        assert pass_time(rig, 25, durable=0, accepted=0) == []
        assert rig.request(Renew(grant.lease)) == []
    assert pass_time(rig, 31, durable=0, accepted=0) == [Revoked(grant.lease)]


def test_renewal_by_another_or_of_no_lease_means_nothing() -> None:
    rig = scanning({0})
    grant = acquire(rig)
    pass_time(rig, 25, durable=0, accepted=0)
    assert rig.request(Renew(grant.lease), b"another") == []
    assert rig.request(Renew(grant.lease + 1)) == []
    assert pass_time(rig, 6, durable=0, accepted=0) == [Revoked(grant.lease)]


def test_command_that_repeats_its_request_may_wait_long_for_its_lease() -> None:
    rig = scanning(set())
    rig.dispatch(1)
    for _ in range(50):
        assert rig.request(VerifyBegin(1, [(0, 64)]), b"command") == []
        assert pass_time(rig, 2, durable=0, accepted=1) == []
    (grant,) = answers(rig.ack(1))
    assert isinstance(grant, Grant)
