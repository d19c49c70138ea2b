# SPDX-License-Identifier: GPL-2.0-only
"""Events of a volume, detected by comparing two statuses.

Counters are compared in addition to states, so events between two statuses are detected too.

======================  =======================================================
event                   when
======================  =======================================================
connection-lost         source and target were disconnected
connection-restored     they are connected again
overflow                the ring was full: writes only marked regions
inconsistent            the replica is no longer a prefix of its source
consistent              it is a prefix again
resync-start            scanners start to copy what the replica lacks
resync-end              nothing is left to copy
rpo-exceeded            further behind than `rpo_seconds`
rpo-restored            no longer further behind
stage-lost              a process stopped, became silent, or waits for something of its host
stage-back              it reports again
verified                a verification has ended, or has found differences
repaired                none of the differences is left that verifications have found
health                  the health has changed
======================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bdr.common.status.model import VerificationStatus, VolumeStatus
from bdr.common.status.states import StageState
from bdr.common.wire.condition import Condition

_AWAY = (StageState.SILENT, StageState.STOPPED, StageState.WAITING)


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    facts: Mapping[str, object] = field(default_factory=dict)


class Detector:
    """Detects the events between one status and the next."""

    def __init__(self) -> None:
        self._before: VolumeStatus | None = None
        self._is_connected: bool | None = None
        self._losses = 0
        """As last known, like `_is_connected`."""
        self._condition: Condition | None = None
        self._is_resyncing = False
        self._verification: VerificationStatus | None = None
        self._is_rpo_exceeded: bool | None = None
        """As last known."""

    def update(self, now: VolumeStatus) -> list[Event]:
        """Takes the next status; returns the events since the previous one."""
        found = [*self._connection(now), *self._content(now), *self._resync(now), *self._rpo(now)]
        found += self._verified(now)
        before, self._before = self._before, now
        if before is not None:
            found += [*_overflow(before, now), *_stages(before, now)]
            if before.health is not now.health:
                facts = {"from": before.health.value, "to": now.health.value}
                found.append(Event("health", facts | {"reasons": "; ".join(now.reasons)}))
        return found

    def _connection(self, now: VolumeStatus) -> list[Event]:
        is_connected = now.connection.is_up
        if is_connected is None:
            return []  # unknown; the last known state is kept
        was_connected, self._is_connected = self._is_connected, is_connected
        losses, self._losses = self._losses, now.connection.losses
        if was_connected is None:
            return [Event("connection-restored")] if is_connected else []
        lost, restored = Event("connection-lost"), Event("connection-restored")
        if was_connected and not is_connected:
            return [lost]
        if not was_connected and is_connected:
            return [restored]
        return [lost, restored] if is_connected and self._losses > losses else []

    def _resync(self, now: VolumeStatus) -> list[Event]:
        resync = now.resync
        if resync is None or resync.is_running == self._is_resyncing:
            return []
        self._is_resyncing = resync.is_running
        name = "resync-start" if self._is_resyncing else "resync-end"
        facts = {
            "dirty_regions": resync.dirty_regions,
            "compared_bytes": resync.compared_bytes,
            "repaired_bytes": resync.repaired_bytes,
        }
        return [Event(name, facts)]

    def _verified(self, now: VolumeStatus) -> list[Event]:
        found = now.verification
        if found is None or found == self._verification:
            return []
        before, self._verification = self._verification, found
        if before is None:
            # What was found before the monitor's start holds now.
            return [Event("verified", _verified_facts(found))] if found.unrepaired_bytes else []
        if before.unrepaired_bytes and not found.unrepaired_bytes:
            return [Event("repaired")]
        is_new = before.ended_utc != found.ended_utc
        if is_new or found.unrepaired_bytes > before.unrepaired_bytes:
            return [Event("verified", _verified_facts(found))]
        return []

    def _content(self, now: VolumeStatus) -> list[Event]:
        condition = now.replica.condition
        if condition is None or condition == self._condition:
            return []
        before, self._condition = self._condition, condition
        if condition is Condition.CONSISTENT:
            return [Event("consistent")]
        if condition is Condition.INCONSISTENT and before is not None:
            return [Event("inconsistent")]
        return []

    def _rpo(self, now: VolumeStatus) -> list[Event]:
        is_exceeded = now.is_rpo_exceeded
        if is_exceeded is None:
            return []  # unknown; the last known state is kept
        was_exceeded, self._is_rpo_exceeded = self._is_rpo_exceeded, is_exceeded
        if is_exceeded:
            return [] if was_exceeded else [Event("rpo-exceeded")]
        return [Event("rpo-restored")] if was_exceeded else []


def _verified_facts(found: VerificationStatus) -> dict[str, object]:
    return {
        "compared_bytes": found.compared_bytes,
        "differing_bytes": found.differing_bytes,
        "unrepaired_bytes": found.unrepaired_bytes,
    }


def _overflow(before: VolumeStatus, now: VolumeStatus) -> list[Event]:
    ring, old = now.ring, before.ring
    if ring is None or old is None or ring.overflows <= old.overflows:
        return []
    return [Event("overflow", {"overflows": ring.overflows})]


def _stages(before: VolumeStatus, now: VolumeStatus) -> list[Event]:
    old = {stage.name: stage.state for stage in before.stages}
    found = []
    for stage in now.stages:
        was = old.get(stage.name)
        if was is StageState.REPORTING and stage.state in _AWAY:
            facts = {"process": stage.name, "state": stage.state.value}
            found.append(Event("stage-lost", facts))
        elif was in _AWAY and stage.state is StageState.REPORTING:
            found.append(Event("stage-back", {"process": stage.name}))
    return found
