# SPDX-License-Identifier: GPL-2.0-only
"""The status of a volume on one host, as its monitor publishes it. No I/O here.

The monitor composes it (`common.status.compose`); `bdr status`, `bdr top`, `bdr wait`, events,
hooks and the exporter read it. It is sent over `status.sock` as a msgpack map, which `bdr status
--json` prints; docs/metrics.md lists the keys.

None means unknown, or not applicable on this side; it is never shown as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bdr.common.errors import StatusError
from bdr.common.ring.layout import PAYLOAD_BYTES, Mode
from bdr.common.status.codec import (
    Form,
    flat,
    flat_or_none,
    nested,
    sequence,
    unpack,
    wrong,
)
from bdr.common.status.reports import VALUES, LinkCounts, StageValues
from bdr.common.status.states import ConnectionState, HealthState, StageState, VolumeRole
from bdr.common.wire.codec import pack
from bdr.common.wire.condition import Condition

STATUS_VERSION = 1


@dataclass(frozen=True, slots=True)
class LagStatus:
    """The replica's lag; on a source."""

    seconds: float | None
    """Age of the oldest write that the replica lacks: in the ring, or missed by it and not yet
    brought by a scan that has ended. None: unknown."""
    is_minimum: bool
    """Something is missing since an unknown time: `seconds` is a lower bound."""
    slots: int | None
    catch_up_s: float | None
    """Until caught up at the present rates; None also if never, or only by a scan."""
    written_slots_per_s: float
    acked_slots_per_s: float

    @property
    def bytes(self) -> int | None:
        """Payload not durable on the target, in whole slots."""
        return None if self.slots is None else self.slots * PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class RingStatus:
    """The ring, as read by the monitor itself. Slots are numbers, not indexes."""

    head: int
    tail: int
    capacity: int
    used: int
    """Slots in use."""
    mode: Mode
    regions: int
    dirty_regions: int
    overflows: int
    missed_writes: int
    failed_writes: int
    device_sectors: int

    @property
    def is_overflowing(self) -> bool:
        """Whether writes are only marked."""
        return self.mode is Mode.OVERFLOW


@dataclass(frozen=True, slots=True)
class ResyncStatus:
    """Progress of a resync."""

    is_running: bool
    dirty_regions: int
    compared_bytes: int
    repaired_bytes: int


@dataclass(frozen=True, slots=True)
class VerificationStatus:
    """What verifications have found."""

    ended_utc: datetime | None
    """When the last one of the whole device ended; None: there was none."""
    compared_bytes: int
    ignored_bytes: int
    """Of these, what was in use, marked or unreadable."""
    differing_bytes: int
    unrepaired_bytes: int
    """Size of the ranges that any has found to differ, and that are not repaired."""


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """The connection between source and target."""

    state: ConnectionState | None
    is_up: bool | None
    losses: int
    """Connections to the target that this source has lost; 0 on a target."""
    links: LinkCounts
    """Of all processes of the volume on this host."""


@dataclass(frozen=True, slots=True)
class IntakeStatus:
    """Received batches on a target, and its journal."""

    age_s: float | None
    """Age of the oldest write that the replica lacks, as its source said last, and the time
    since then. None: unknown."""
    last_ack_age_s: float | None
    queued_bytes: int | None
    """Received and not durable."""
    queued_age_s: float | None
    """Of the oldest of these."""
    journal_bytes: int | None
    journal_size_bytes: int | None
    held_age_s: float | None
    """For how long `before_resync` has been due; None: it is not."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """The replica's condition and position."""

    condition: Condition | None
    since_utc: datetime | None
    """Since when the condition holds."""
    as_of_utc: datetime | None
    """The source's wall clock up to which the replica lacks nothing."""
    slot: int | None
    """Every slot below it is durable on the target."""
    stream: str | None
    left_bytes: int | None
    """Bytes to be compared."""
    intake: IntakeStatus | None
    """On a target."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One expected process."""

    name: str
    stage: str
    state: StageState
    age_s: float
    """Time since its last report, or since it was first expected."""
    restarts: int
    """Observed by this monitor."""
    pid: int | None
    values: StageValues | None
    """As last reported, also if it is silent or stopped."""
    waits_for: str | None = None
    """What it lacks, in words, while it waits."""
    lost_lines: int = 0
    """Lines of its log that could not be written, as last reported."""


@dataclass(frozen=True, slots=True)
class HookCounts:
    """Commands run on events, by outcome."""

    run: int
    failed: int
    dropped: int


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume's status on one host."""

    volume: str
    role: VolumeRole
    time_utc: datetime
    """To the millisecond."""
    health: HealthState
    reasons: tuple[str, ...]
    """Reasons for the health, worst first."""
    rpo_s: float
    is_rpo_exceeded: bool | None
    """Whether the replica is known to be further behind than that; None: unknown."""
    lag: LagStatus | None
    """Of a source."""
    ring: RingStatus | None
    connection: ConnectionStatus
    replica: ReplicaStatus
    resync: ResyncStatus | None
    verification: VerificationStatus | None
    """On a source; None if unknown."""
    stages: tuple[StageStatus, ...]
    events: Mapping[str, int]
    """Count of each event."""
    hooks: HookCounts
    monitor_uptime_s: float
    monitor_lost_lines: int = 0
    """Lines of the monitor's own log that could not be written."""

    @property
    def seconds_behind(self) -> float | None:
        """How far the replica is behind, as this side knows; None: unknown."""
        if self.lag is not None:
            return self.lag.seconds
        return self.replica.intake.age_s if self.replica.intake else None

    def to_map(self) -> dict[str, Any]:
        """The map for JSON and subscribers."""
        return {
            "version": STATUS_VERSION,
            **_STATUS.encode(self),
            "time_utc": self.time_utc.isoformat(timespec="milliseconds"),
            "exit_code": self.health.exit_code,
            "seconds_behind": self.seconds_behind,
            "bytes_behind": self.lag.bytes if self.lag else None,
        }

    @classmethod
    def from_map(cls, raw: object) -> VolumeStatus:
        """The inverse of `to_map`.

        Raises:
            StatusError: not a status of this version.
        """
        if isinstance(raw, dict) and raw.get("version") != STATUS_VERSION:
            raise wrong(raw.get("version"), f"a status of version {STATUS_VERSION}")
        found = _STATUS.decode(raw)
        is_source = found.role is VolumeRole.SOURCE
        if (found.lag is not None, found.replica.intake is None) != (is_source, is_source):
            raise StatusError(f"found keys of the other side, wanted those of a {found.role.value}")
        return found


_LAG = Form(
    LagStatus,
    keys={
        "seconds": "seconds_behind",
        "is_minimum": "is_seconds_behind_minimum",
        "slots": "slots_behind",
        "catch_up_s": "catch_up_seconds",
        "written_slots_per_s": "written_slots_per_second",
        "acked_slots_per_s": "acked_slots_per_second",
    },
)
_INTAKE = Form(
    IntakeStatus,
    keys={
        "age_s": "age_seconds",
        "last_ack_age_s": "last_ack_age_seconds",
        "queued_age_s": "queued_age_seconds",
        "held_age_s": "held_age_seconds",
    },
)
_REPLICA = Form(
    ReplicaStatus,
    types={"intake": flat_or_none(_INTAKE)},
)
_STATUS = Form(
    VolumeStatus,
    keys={
        "rpo_s": "rpo_seconds",
        "monitor_uptime_s": "monitor_uptime_seconds",
    },
    types={
        "lag": flat_or_none(_LAG),
        "connection": nested(Form(ConnectionStatus, types={"links": flat(Form(LinkCounts))})),
        "replica": nested(_REPLICA),
        "stages": sequence(
            nested(Form(StageStatus, keys={"age_s": "age_seconds"}, types={"values": VALUES}))
        ),
    },
)


def encode_status(status: VolumeStatus) -> bytes:
    """The message on `status.sock`."""
    return pack(status.to_map())


def decode_status(data: bytes) -> VolumeStatus:
    """The inverse of `encode_status`.

    Raises:
        StatusError: no status of this version.
    """
    return VolumeStatus.from_map(unpack(data))
