# SPDX-License-Identifier: GPL-2.0-only
"""Composes the status of a volume from the reports of its processes and the ring's status.

No I/O, no clock here. Only current reports count: the values of a process that is silent or stopped
are shown with it, but nothing is derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from bdr.common.ring.layout import MISSED_UNKNOWN
from bdr.common.status.health import Health, SourceFacts, TargetFacts, judge
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
from bdr.common.status.processes import IsAlive, Processes
from bdr.common.status.reports import (
    ApplierValues,
    LinkCounts,
    ReaderValues,
    ScannerValues,
    SenderValues,
    StageValues,
    VerificationValues,
)
from bdr.common.status.ring_view import RingView
from bdr.common.status.states import ConnectionState, StageState, VolumeRole
from bdr.common.wire.condition import Condition

_YEAR_3000_UTC = 32_503_680_000
_V = TypeVar("_V", bound=StageValues)
_Stages = tuple[StageStatus, ...]


@dataclass(frozen=True, slots=True)
class _RoleParts:
    """The parts of a status that are derived differently on source and target."""

    health: Health
    is_rpo_exceeded: bool | None
    lag: LagStatus | None
    ring: RingStatus | None
    connection: ConnectionStatus
    replica: ReplicaStatus
    resync: ResyncStatus | None
    verification: VerificationStatus | None


class Composer:
    """Collects the state of a volume, and composes its status.

    Args:
        volume: the volume's name.
        role: which side this host is.
        rpo_s: recovery point objective.
        started_at: start of the monitor, on the monotonic clock.

    Attributes:
        processes: takes reports, and the set of expected processes.
        ring: on a source, takes the ring's status.
    """

    def __init__(self, *, volume: str, role: VolumeRole, rpo_s: float, started_at: float) -> None:
        self._volume = volume
        self._role = role
        self._rpo_s = rpo_s
        self._started_at = started_at
        self.processes = Processes()
        self.ring = RingView()

    def compose(
        self,
        *,
        now_at: float,
        now_utc: datetime,
        is_alive: IsAlive,
        events: Mapping[str, int],
        hooks: HookCounts,
        lost_lines: int = 0,
    ) -> VolumeStatus:
        """The status as of now.

        Args:
            now_at: on the monotonic clock.
            now_utc: on the wall clock.
            is_alive: whether a process with this id exists.
            events: count of each event.
            hooks: outcomes of the commands run on events.
            lost_lines: of the monitor's own log.
        """
        stages = self.processes.stages(now_at, is_alive)
        is_source = self._role is VolumeRole.SOURCE
        side = self._source(stages) if is_source else self._target(stages, now_at)
        return VolumeStatus(
            volume=self._volume,
            role=self._role,
            time_utc=now_utc.replace(microsecond=now_utc.microsecond // 1000 * 1000),
            health=side.health.state,
            reasons=side.health.reasons,
            rpo_s=self._rpo_s,
            is_rpo_exceeded=side.is_rpo_exceeded,
            lag=side.lag,
            ring=side.ring,
            connection=side.connection,
            replica=side.replica,
            resync=side.resync,
            verification=side.verification,
            stages=stages,
            events=dict(events),
            hooks=hooks,
            monitor_uptime_s=round(now_at - self._started_at, 3),
            monitor_lost_lines=lost_lines,
        )

    def _is_rpo_exceeded(self, behind_s: float | None, *, is_minimum: bool) -> bool | None:
        if behind_s is None or (is_minimum and behind_s <= self._rpo_s):
            return None
        return behind_s > self._rpo_s

    def _source(self, stages: _Stages) -> _RoleParts:
        ring = self.ring.ring
        reader = _first(stages, ReaderValues)
        lag = self.ring.lag(_missed_since_ns(stages, self.ring.stream))
        is_scanning = bool(_reporting(stages, ScannerValues))
        senders = _reporting(stages, SenderValues)
        facts = SourceFacts(
            stages=stages,
            capture_error=self.ring.error,
            is_overflowing=ring is not None and ring.is_overflowing,
            dirty_regions=ring.dirty_regions if ring else 0,
            phase=reader.phase if reader else None,
            condition=reader.condition if reader else None,
            refused=reader.refused if reader else None,
            unrepaired_bytes=reader.verification.unrepaired_bytes if reader else 0,
            connected_senders=sum(sender.is_connected for sender in senders),
            trouble=next((sender.trouble for sender in senders if sender.trouble), None),
            behind_s=lag.seconds or 0.0,
            is_minimum=lag.is_minimum,
            rpo_s=self._rpo_s,
            is_scanning=is_scanning,
        )
        return _RoleParts(
            health=judge(facts),
            is_rpo_exceeded=self._is_rpo_exceeded(lag.seconds, is_minimum=lag.is_minimum),
            lag=lag,
            ring=ring,
            connection=ConnectionStatus(
                state=reader.phase if reader else None,
                is_up=reader.phase is ConnectionState.STREAMING if reader else None,
                losses=reader.links.disconnects if reader else 0,
                links=_links(stages),
            ),
            replica=_replica(
                reader,
                slot=ring.tail if ring else None,
                stream=self.ring.stream,
                left_bytes=self.ring.left_bytes,
                intake=None,
            ),
            resync=_resync(ring, reader, is_scanning=is_scanning) if ring and reader else None,
            verification=_verification(reader.verification) if reader else None,
        )

    def _target(self, stages: _Stages, now_at: float) -> _RoleParts:
        applier = _first(stages, ApplierValues)
        intake = _intake(applier, now_at)
        has_source = applier.has_source if applier else None
        states = {None: None, True: ConnectionState.CONNECTED, False: ConnectionState.WAITING}
        facts = TargetFacts(
            stages=stages,
            has_source=has_source,
            condition=applier.condition if applier else None,
            promoted_at=_day(applier.promoted_utc) if applier else None,
            behind_s=intake.age_s or 0.0,
            rival=applier.rival if applier else None,
            held_s=intake.held_age_s,
            hook_failures=applier.hook_failures if applier else 0,
            wrong_device=applier.wrong_device if applier else None,
            queued_s=intake.queued_age_s or 0.0,
            rpo_s=self._rpo_s,
        )
        return _RoleParts(
            health=judge(facts),
            is_rpo_exceeded=self._is_rpo_exceeded(intake.age_s, is_minimum=False),
            lag=None,
            ring=None,
            connection=ConnectionStatus(
                state=states[has_source], is_up=has_source, losses=0, links=_links(stages)
            ),
            replica=_replica(
                applier,
                slot=applier.slot if applier else None,
                stream=applier.stream if applier else None,
                left_bytes=applier.left_bytes if applier else None,
                intake=intake,
            ),
            resync=None,
            verification=None,
        )


def _missed_since_ns(stages: _Stages, stream: str | None) -> int:
    """Since when the replica lacks what is not in the ring, as a reader reported last."""
    found = (stage.values for stage in stages if isinstance(stage.values, ReaderValues))
    return next((each.missed_since_ns for each in found if each.stream == stream), MISSED_UNKNOWN)


def _reporting(stages: _Stages, kind: type[_V]) -> list[_V]:
    """The current values of the processes of one stage."""
    found = (stage.values for stage in stages if stage.state is StageState.REPORTING)
    return [values for values in found if isinstance(values, kind)]


def _first(stages: _Stages, kind: type[_V]) -> _V | None:
    return next(iter(_reporting(stages, kind)), None)


def _links(stages: _Stages) -> LinkCounts:
    """Includes processes that have stopped, since the counts are cumulative."""
    return sum((stage.values.links for stage in stages if stage.values), LinkCounts())


def _replica(
    values: ReaderValues | ApplierValues | None,
    *,
    slot: int | None,
    stream: str | None,
    left_bytes: int | None,
    intake: IntakeStatus | None,
) -> ReplicaStatus:
    return ReplicaStatus(
        condition=values.condition if values else None,
        since_utc=_time(values.since_utc) if values else None,
        as_of_utc=_time(values.as_of_utc) if values else None,
        slot=slot,
        stream=stream,
        left_bytes=left_bytes,
        intake=intake,
    )


def _resync(ring: RingStatus, reader: ReaderValues, *, is_scanning: bool) -> ResyncStatus:
    is_required = bool(ring.dirty_regions) or reader.condition in (
        Condition.INCONSISTENT,
        Condition.UNVERIFIED,
    )
    return ResyncStatus(
        is_running=is_required and is_scanning,
        dirty_regions=ring.dirty_regions,
        compared_bytes=reader.scan_compared_bytes,
        repaired_bytes=reader.scan_repaired_bytes,
    )


def _verification(values: VerificationValues) -> VerificationStatus:
    return VerificationStatus(
        ended_utc=_time(values.verified_utc),
        compared_bytes=values.verified_bytes,
        ignored_bytes=values.ignored_bytes,
        differing_bytes=values.differing_bytes,
        unrepaired_bytes=values.unrepaired_bytes,
    )


def _intake(applier: ApplierValues | None, now_at: float) -> IntakeStatus:
    if applier is None:
        return IntakeStatus(None, None, None, None, None, None, None)
    acked_at, level_at = applier.acked_at, None if applier.promoted_utc else applier.level_at
    return IntakeStatus(
        age_s=None if level_at is None else round(max(0.0, now_at - level_at), 3),
        last_ack_age_s=round(now_at - acked_at, 3) if acked_at is not None else None,
        queued_bytes=applier.queued_bytes,
        queued_age_s=round(applier.queued_s, 1),
        journal_bytes=applier.journal_bytes,
        journal_size_bytes=applier.journal_size_bytes,
        held_age_s=None if applier.held_s is None else round(applier.held_s, 1),
    )


def _day(utc_s: int) -> str | None:
    found = _time(utc_s)
    return None if found is None else f"{found:%Y-%m-%d %H:%M:%S} UTC"


def _time(utc_s: int) -> datetime | None:
    """A reported time; None for 0 and for implausible values."""
    return datetime.fromtimestamp(utc_s, UTC) if 0 < utc_s < _YEAR_3000_UTC else None
