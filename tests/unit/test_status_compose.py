# SPDX-License-Identifier: GPL-2.0-only
"""The status that follows from reports and from looks at the ring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.ring.layout import MISSED_UNKNOWN, Mode
from bdr.common.status.compose import Composer
from bdr.common.status.model import HookCounts, IntakeStatus, VolumeStatus
from bdr.common.status.processes import SILENT_AFTER_S, Processes
from bdr.common.status.reports import LinkCounts, Report, StageValues
from bdr.common.status.states import ConnectionState, HealthState, StageState, VolumeRole
from bdr.common.wire.condition import Condition
from tests.unit.statuses import APPLIER, READER, SINCE, SINCE_UTC, STREAM, report

NOW_UTC = datetime(2026, 1, 2, 4, 0, 0, 125_999, tzinfo=UTC)
RPO_S = 10.0
INFO = CaptureInfo(
    stream=STREAM,
    device_sectors=32768,
    capacity=1024,
    region_sectors=128,
    regions=256,
    underlying="/dev/x",
)
RING = CaptureStatus(
    head=100,
    tail=90,
    unpublished=98,
    gap=None,
    last_gap=None,
    mode=Mode.STREAM,
    active_regions=0,
    resync_regions=0,
    unlogged=0,
    overflows=2,
    missed_writes=5,
    failed_writes=3,
    device_sectors=32768,
    stream=STREAM,
    acknowledged=0,
    counted=0,
    clock_ns=7_000_000_000,
    marks=1,
    missed_since_ns=0,
)
SECOND_NS = 10**9
MARKS = [(85, 6_750_000_000)]


class Host:
    """A composer, and the world that its monitor would ask."""

    def __init__(self, role: VolumeRole, *reports: Report) -> None:
        self.composer = Composer(volume="v", role=role, rpo_s=RPO_S, started_at=4.0)
        self.dead: set[int] = set()
        for each in reports:
            self.composer.processes.take(each)

    def see(self, status: CaptureStatus = RING, *, now_at: float = 10.0) -> None:
        self.composer.ring.seen(INFO, status, MARKS, now_at=now_at)

    def status(self, now_at: float = 10.0) -> VolumeStatus:
        return self.composer.compose(
            now_at=now_at,
            now_utc=NOW_UTC,
            is_alive=lambda pid: pid not in self.dead,
            events={"consistent": 1},
            hooks=HookCounts(run=1, failed=0, dropped=0),
        )


def source(*others: Report) -> Host:
    names = ("v-reader", "v-scanner-1", "v-sender-1")
    host = Host(VolumeRole.SOURCE, *map(report, names), *others)
    host.see(replace(RING, head=0, tail=0, unpublished=0), now_at=0.0)
    host.see()
    return host


def target(values: StageValues = APPLIER) -> Host:
    return Host(VolumeRole.TARGET, replace(report("v-applier"), values=values))


def test_source_with_everything_reported_is_healthy_and_known() -> None:
    found = source().status()
    assert (found.health, found.reasons) == (HealthState.HEALTHY, ())
    assert found.time_utc == NOW_UTC.replace(microsecond=125_000)
    assert (found.monitor_uptime_s, found.rpo_s, found.is_rpo_exceeded) == (6.0, RPO_S, False)
    assert (found.events, found.hooks.run) == ({"consistent": 1}, 1)
    assert found.lag
    assert (found.lag.slots, found.lag.bytes, found.lag.seconds) == (10, 10 * 4096, 0.25)
    assert (found.lag.written_slots_per_s, found.lag.acked_slots_per_s) == (10.0, 9.0)
    assert found.ring
    assert (found.ring.used, found.ring.capacity, found.ring.overflows) == (10, 1024, 2)
    assert (found.connection.state, found.connection.is_up) == (ConnectionState.STREAMING, True)
    replica = found.replica
    assert (replica.condition, replica.slot, replica.stream) == (
        Condition.CONSISTENT,
        90,
        STREAM.hex(),
    )
    assert (replica.since_utc, replica.left_bytes, replica.intake) == (SINCE, 0, None)
    assert found.resync
    assert (found.resync.is_running, found.resync.compared_bytes) == (False, 8192)


def test_target_with_everything_reported_is_healthy_and_known() -> None:
    found = target().status()
    assert (found.health, found.reasons) == (HealthState.HEALTHY, ())
    assert (found.lag, found.ring, found.resync) == (None, None, None)
    assert (found.connection.state, found.connection.is_up) == (ConnectionState.CONNECTED, True)
    assert found.replica.intake == IntakeStatus(0.5, 0.25, 0, 0.0, None, None, None)
    waiting = target(replace(APPLIER, has_source=False)).status()
    assert (waiting.connection.state, waiting.connection.is_up) == (ConnectionState.WAITING, False)
    assert waiting.health is HealthState.BROKEN


# Unknown is never a number.


@pytest.mark.parametrize("host", [source, target])
def test_of_a_silent_process_nothing_is_concluded_and_its_values_are_shown(
    host: Callable[[], Host],
) -> None:
    found = host().status(now_at=10.0 + SILENT_AFTER_S + 0.1)
    assert {stage.state for stage in found.stages} == {StageState.SILENT}
    assert found.health is HealthState.UNKNOWN
    assert (found.connection.state, found.connection.is_up) == (None, None)
    assert found.connection.losses == 0
    replica = found.replica
    assert (replica.condition, replica.since_utc, replica.as_of_utc) == (None, None, None)
    assert found.resync is None
    assert all(stage.values and stage.pid for stage in found.stages)
    if found.role is VolumeRole.TARGET:
        assert replica.intake == IntakeStatus(None, None, None, None, None, None, None)
        assert (replica.slot, replica.stream, replica.left_bytes) == (None, None, None)


def test_ring_that_cannot_be_looked_at_is_unknown() -> None:
    host = source()
    host.composer.ring.lost("capture /x: gone")
    found = host.status()
    assert found.lag
    assert (found.lag.seconds, found.lag.slots, found.lag.bytes) == (None, None, None)
    assert (found.lag.catch_up_s, found.ring, found.resync) == (None, None, None)
    replica = found.replica
    assert (replica.slot, replica.stream, replica.left_bytes) == (None, None, None)
    # What was measured stays; it is over a time that has passed.
    assert found.lag.written_slots_per_s == 10.0
    assert found.health is HealthState.BROKEN
    assert found.reasons == ("capture /x: gone",)
    host.see()
    assert host.status().health is HealthState.HEALTHY


def test_rpo_exceeded_is_unknown_while_the_ring_cannot_be_looked_at() -> None:
    host = source()
    late = replace(RING, head=200, clock_ns=RING.clock_ns + 30 * SECOND_NS)
    host.see(late)
    assert host.status().is_rpo_exceeded is True
    host.composer.ring.lost("gone")
    assert host.status().is_rpo_exceeded is None
    host.see(replace(late, tail=200))
    assert host.status().is_rpo_exceeded is False


# The age.


def behind(host: Host, **changes: object) -> tuple[float | None, bool]:
    host.see(replace(RING, **changes))  # type: ignore[arg-type]
    found = host.status().lag
    assert found
    return found.seconds, found.is_minimum


LEVEL = {"head": 90, "unpublished": 90}


def test_age_is_that_of_the_oldest_write_in_the_ring_or_missed_by_it() -> None:
    host = source()
    assert behind(host) == (0.25, False)
    assert behind(host, **LEVEL) == (0.0, False)
    assert behind(host, **LEVEL, missed_since_ns=3 * SECOND_NS) == (4.0, False)
    assert behind(host, missed_since_ns=6_900_000_000) == (0.25, False)
    assert behind(host, missed_since_ns=3 * SECOND_NS) == (4.0, False)


def test_age_of_what_was_marked_is_unknown_and_what_is_known_a_minimum() -> None:
    host = source()
    assert behind(host, **LEVEL, missed_since_ns=MISSED_UNKNOWN) == (None, True)
    assert host.status().is_rpo_exceeded is None
    assert behind(host, missed_since_ns=MISSED_UNKNOWN) == (0.25, True)
    assert host.status().is_rpo_exceeded is None
    late_ns = RING.clock_ns + 30 * SECOND_NS
    assert behind(host, missed_since_ns=MISSED_UNKNOWN, clock_ns=late_ns) == (30.25, True)
    assert host.status().is_rpo_exceeded is True


def test_what_a_scan_has_brought_is_missing_until_the_reader_knows_it_consistent() -> None:
    values = replace(READER, missed_since_ns=2 * SECOND_NS)
    host = source(replace(report("v-reader"), values=values))
    assert behind(host, **LEVEL) == (5.0, False)
    # A reader that has ended said it too.
    host.composer.processes.take(replace(report("v-reader"), values=values, is_last=True))
    assert behind(host, **LEVEL) == (5.0, False)
    host.composer.processes.take(replace(report("v-reader"), values=READER))
    assert behind(host, **LEVEL) == (0.0, False)


@pytest.mark.parametrize("stream", [None, bytes(16).hex()])
def test_age_is_a_minimum_without_a_reader_of_this_capture(stream: str | None) -> None:
    reports = []
    if stream is not None:
        reports = [replace(report("v-reader"), values=replace(READER, stream=stream))]
    host = Host(VolumeRole.SOURCE, *reports)
    assert behind(host) == (0.25, True)
    assert behind(host, **LEVEL) == (None, True)


def test_monitor_that_begins_knows_the_age_that_another_knew() -> None:
    late = {"clock_ns": RING.clock_ns + 20 * SECOND_NS, "missed_since_ns": SECOND_NS}
    before = behind(source(), **late)
    assert before == (26.0, False)
    assert behind(Host(VolumeRole.SOURCE, report("v-reader")), **late) == before


def test_target_counts_on_from_what_its_source_said_last() -> None:
    host = target()
    assert host.status(9.0).seconds_behind == 0.0
    assert host.status(12.0).seconds_behind == 2.5
    assert host.status(12.0).is_rpo_exceeded is False
    unknown = target(replace(APPLIER, level_at=None)).status()
    assert (unknown.seconds_behind, unknown.is_rpo_exceeded) == (None, None)
    late = target(replace(APPLIER, level_at=-1.0)).status()
    assert (late.health, late.is_rpo_exceeded) == (HealthState.BEHIND, True)
    promoted = target(replace(APPLIER, level_at=-1.0, promoted_utc=SINCE_UTC)).status()
    assert (promoted.health, promoted.is_rpo_exceeded) == (HealthState.PROMOTED, None)


@pytest.mark.parametrize("utc_s", [0, 32_503_680_000, (1 << 64) - 1])
def test_time_that_no_clock_says_is_unknown(utc_s: int) -> None:
    unknown = replace(report("v-reader"), values=replace(READER, since_utc=utc_s, as_of_utc=utc_s))
    on_source = source(unknown).status().replica
    on_target = target(replace(APPLIER, since_utc=utc_s, as_of_utc=utc_s)).status().replica
    for replica in (on_source, on_target):
        assert (replica.since_utc, replica.as_of_utc) == (None, None)


def test_before_the_first_acknowledgement_its_age_is_unknown() -> None:
    intake = target(replace(APPLIER, acked_at=None)).status().replica.intake
    assert intake
    assert intake.last_ack_age_s is None


def test_queue_that_waits_for_longer_than_allowed_is_behind() -> None:
    slow = target(replace(APPLIER, queued_bytes=4096, queued_s=RPO_S + 0.25)).status()
    assert slow.replica.intake
    assert (slow.replica.intake.queued_bytes, slow.replica.intake.queued_age_s) == (4096, 10.2)
    assert slow.health is HealthState.BEHIND


# What is to be resynced.


def test_marked_regions_are_left_to_compare_and_no_more_than_the_device() -> None:
    host = source()
    host.see(replace(RING, active_regions=2, resync_regions=3))
    found = host.status()
    assert found.replica.left_bytes == 5 * 128 * 512
    assert found.resync
    assert (found.resync.is_running, found.resync.dirty_regions) == (True, 5)
    host.see(replace(RING, active_regions=256, resync_regions=256))
    assert host.status().replica.left_bytes == 32768 * 512


def test_resync_runs_only_with_a_scanner_and_something_to_do() -> None:
    bad = replace(
        report("v-reader"), values=replace(READER, condition=Condition.INCONSISTENT, links=LINKS)
    )
    host = source(bad)
    found = host.status()
    assert found.resync
    assert found.resync.is_running
    host.composer.processes.take(report("v-scanner-1", is_last=True))
    found = host.status()
    assert found.resync
    assert not found.resync.is_running
    assert found.health is HealthState.BROKEN


LINKS = LinkCounts(connects=5, disconnects=4)


def test_links_are_those_of_all_processes_and_losses_those_of_the_reader() -> None:
    host = source(replace(report("v-reader", is_last=True), values=replace(READER, links=LINKS)))
    assert host.status().connection.links == LinkCounts(connects=5 + 2 + 3, disconnects=4)
    assert host.status().connection.losses == 0  # it does not report now
    host = source(replace(report("v-reader"), values=replace(READER, links=LINKS)))
    assert host.status().connection.losses == 4


# Processes.


def states(found: Processes, now_at: float, dead: int = -1) -> dict[str, StageState]:
    stages = found.stages(now_at, lambda pid: pid != dead)
    return {stage.name: stage.state for stage in stages}


def test_process_is_starting_then_reporting_then_silent_then_stopped() -> None:
    found = Processes()
    found.expect({"v-reader": "reader"}, now_at=0.0)
    assert states(found, 1.0) == {"v-reader": StageState.STARTING}
    assert states(found, SILENT_AFTER_S + 0.1) == {"v-reader": StageState.SILENT}
    found.take(report("v-reader", sent_at=5.0))
    assert states(found, 5.0 + SILENT_AFTER_S) == {"v-reader": StageState.REPORTING}
    assert states(found, 5.1 + SILENT_AFTER_S) == {"v-reader": StageState.SILENT}
    # One that was killed sends no last report.
    assert states(found, 5.0, dead=7) == {"v-reader": StageState.STOPPED}
    found.take(report("v-reader", sent_at=6.0, is_last=True))
    (stage,) = found.stages(6.0, lambda pid: True)
    assert (stage.state, stage.pid, stage.age_s) == (StageState.STOPPED, None, 0.0)


def test_process_that_waits_is_shown_with_what_it_lacks() -> None:
    found = Processes()
    found.take(report("v-reader"))
    waiting = replace(report("v-reader"), values=None, waits_for="capture /x: gone", lost_lines=3)
    found.take(waiting)
    (stage,) = found.stages(10.0, lambda pid: True)
    assert (stage.state, stage.waits_for) == (StageState.WAITING, "capture /x: gone")
    assert (stage.values, stage.lost_lines, stage.pid, stage.restarts) == (None, 3, 7, 0)
    # It is not known to wait any more, once it is silent or has ended.
    for now_at, is_alive in ((10.1 + SILENT_AFTER_S, True), (10.0, False)):
        (stage,) = found.stages(now_at, lambda pid: is_alive)  # noqa: B023
        assert (stage.state is StageState.WAITING, stage.waits_for) == (False, None)
    found.take(report("v-reader", sent_at=11.0))
    assert states(found, 11.0) == {"v-reader": StageState.REPORTING}


def test_restarts_are_counted_and_an_older_report_is_ignored() -> None:
    found = Processes()
    for pid in (7, 8, 9):
        found.take(report("v-reader", pid=pid))
    found.take(report("v-reader", pid=9, sent_at=9.0))
    (stage,) = found.stages(10.0, lambda pid: True)
    assert (stage.restarts, stage.pid, stage.age_s) == (2, 9, 0.0)


def test_report_of_another_stage_under_a_known_name_is_ignored() -> None:
    found = Processes()
    found.expect({"v-reader": "reader"}, now_at=9.0)
    found.take(replace(report("v-sender-1"), name="v-reader"))
    assert states(found, 10.0) == {"v-reader": StageState.STARTING}


def test_only_what_ought_to_run_is_known() -> None:
    found = Processes()
    found.take(report("v-sender-1"))
    found.take(report("v-sender-2"))
    found.expect({"v-sender-2": "sender", "v-reader": "reader"}, now_at=10.0)
    assert states(found, 10.0) == {
        "v-reader": StageState.STARTING,
        "v-sender-2": StageState.REPORTING,
    }
    found.expect({}, now_at=10.0)
    assert not found.stages(10.0, lambda pid: True)


def test_last_report_time_of_the_source_is_the_one_it_sent() -> None:
    late = replace(report("v-reader"), values=replace(READER, as_of_utc=SINCE_UTC + 5))
    as_of_utc = source(late).status().replica.as_of_utc
    assert as_of_utc
    assert as_of_utc.timestamp() == SINCE_UTC + 5
