# SPDX-License-Identifier: GPL-2.0-only
"""A healthy status of either side, to be changed by tests with `dataclasses.replace`."""

from __future__ import annotations

from datetime import UTC, datetime

from bdr.common.ring.layout import Mode
from bdr.common.status.model import (
    ConnectionStatus,
    HookCounts,
    IntakeStatus,
    LagStatus,
    ReplicaStatus,
    ResyncStatus,
    RingStatus,
    StageStatus,
    VerificationStatus,
    VolumeStatus,
)
from bdr.common.status.reports import (
    ApplierValues,
    LinkCounts,
    ReaderValues,
    Report,
    ScannerValues,
    SenderValues,
    StageValues,
    VerificationValues,
)
from bdr.common.status.states import ConnectionState, HealthState, StageState, VolumeRole
from bdr.common.wire.condition import Condition

STREAM = bytes(range(16))
SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SINCE_UTC = int(SINCE.timestamp())

READER = ReaderValues(
    phase=ConnectionState.STREAMING,
    condition=Condition.CONSISTENT,
    since_utc=SINCE_UTC,
    as_of_utc=SINCE_UTC + 60,
    stream=STREAM.hex(),
    missed_since_ns=0,
    refused=None,
    epoch=1,
    tail=90,
    cursor=100,
    in_flight=3,
    scanners=1,
    scan_compared_bytes=8192,
    scan_repaired_bytes=4096,
    scan_unreadable_ranges=0,
    verification=VerificationValues(
        verified_utc=SINCE_UTC,
        verified_bytes=1 << 24,
        ignored_bytes=65536,
        differing_bytes=8192,
        unrepaired_bytes=0,
    ),
    links=LinkCounts(connects=1),
)
SENDER = SenderValues(
    is_connected=True,
    trouble=None,
    batches=5,
    slots=100,
    bytes=410_400,
    links=LinkCounts(connects=2),
)
SCANNER = ScannerValues(
    is_connected=True,
    leases=0,
    compared_bytes=8192,
    repaired_bytes=4096,
    sent_bytes=4200,
    abandoned_leases=0,
    links=LinkCounts(connects=3),
)
APPLIER = ApplierValues(
    condition=Condition.CONSISTENT,
    has_source=True,
    stream=STREAM.hex(),
    slot=90,
    epoch=1,
    since_utc=SINCE_UTC,
    as_of_utc=SINCE_UTC + 60,
    level_at=9.5,
    promoted_utc=0,
    rival=None,
    wrong_device=None,
    left_bytes=0,
    device_sectors=32768,
    source_sectors=32768,
    jobs=7,
    bytes=368_640,
    queued_bytes=0,
    queued_s=0.0,
    checksummed_bytes=8192,
    journal_bytes=None,
    journal_size_bytes=None,
    held_s=None,
    hook_failures=0,
    acked_at=9.75,
    bad_messages=0,
    dropped={"stale": 1},
    links=LinkCounts(connects=4, handshakes_failed=1),
)
VALUES: dict[str, StageValues] = {
    "reader": READER,
    "sender": SENDER,
    "scanner": SCANNER,
    "applier": APPLIER,
}


def report(name: str, *, pid: int = 7, sent_at: float = 10.0, is_last: bool = False) -> Report:
    """One of a process such as v-sender-1."""
    stage = name.split("-")[1]
    return Report(stage, name, pid, sent_at, is_last, VALUES[stage])


def stage(name: str, state: StageState = StageState.REPORTING) -> StageStatus:
    """A process such as v-sender-1."""
    kind = name.split("-")[1]
    return StageStatus(name, kind, state, 0.25, restarts=0, pid=7, values=VALUES[kind])


LAG = LagStatus(
    seconds=0.25,
    is_minimum=False,
    slots=10,
    catch_up_s=1.5,
    written_slots_per_s=20.0,
    acked_slots_per_s=30.0,
)
RING = RingStatus(
    head=100,
    tail=90,
    capacity=1024,
    used=10,
    mode=Mode.STREAM,
    regions=256,
    dirty_regions=0,
    overflows=2,
    missed_writes=5,
    failed_writes=3,
    device_sectors=32768,
)
RESYNC = ResyncStatus(is_running=False, dirty_regions=0, compared_bytes=8192, repaired_bytes=4096)
VERIFICATION = VerificationStatus(
    ended_utc=SINCE,
    compared_bytes=1 << 24,
    ignored_bytes=65536,
    differing_bytes=8192,
    unrepaired_bytes=0,
)
SOURCE = VolumeStatus(
    volume="v",
    role=VolumeRole.SOURCE,
    time_utc=datetime(2026, 1, 2, 4, 0, 0, 125_000, tzinfo=UTC),
    health=HealthState.HEALTHY,
    reasons=(),
    rpo_s=10.0,
    is_rpo_exceeded=False,
    lag=LAG,
    ring=RING,
    connection=ConnectionStatus(
        state=ConnectionState.STREAMING, is_up=True, losses=0, links=LinkCounts(connects=6)
    ),
    replica=ReplicaStatus(
        condition=Condition.CONSISTENT,
        since_utc=SINCE,
        as_of_utc=SINCE,
        slot=90,
        stream=STREAM.hex(),
        left_bytes=0,
        intake=None,
    ),
    resync=RESYNC,
    verification=VERIFICATION,
    stages=(stage("v-reader"), stage("v-scanner-1"), stage("v-sender-1")),
    events={"consistent": 1},
    hooks=HookCounts(run=1, failed=2, dropped=3),
    monitor_uptime_s=3600.0,
)
TARGET = VolumeStatus(
    volume="v",
    role=VolumeRole.TARGET,
    time_utc=SOURCE.time_utc,
    health=HealthState.HEALTHY,
    reasons=(),
    rpo_s=10.0,
    is_rpo_exceeded=False,
    lag=None,
    ring=None,
    connection=ConnectionStatus(
        state=ConnectionState.CONNECTED, is_up=True, losses=0, links=APPLIER.links
    ),
    replica=ReplicaStatus(
        condition=Condition.CONSISTENT,
        since_utc=SINCE,
        as_of_utc=SINCE,
        slot=90,
        stream=STREAM.hex(),
        left_bytes=0,
        intake=IntakeStatus(
            age_s=0.5,
            last_ack_age_s=0.25,
            queued_bytes=0,
            queued_age_s=0.0,
            journal_bytes=None,
            journal_size_bytes=None,
            held_age_s=None,
        ),
    ),
    resync=None,
    verification=None,
    stages=(stage("v-applier"),),
    events={},
    hooks=HookCounts(run=0, failed=0, dropped=0),
    monitor_uptime_s=3600.0,
)
