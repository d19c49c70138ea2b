# SPDX-License-Identifier: GPL-2.0-only
"""Judges the health of a volume. No I/O, no clock here.

========== ========= ==========================================================
health     exit code meaning
========== ========= ==========================================================
healthy    0         replicating, and within `rpo_seconds`
behind     1         replicating, but behind `rpo_seconds`, or not a prefix yet
degraded   1         replicating with fewer senders or scanners than there should be
resyncing  1         regions are being copied by the scanner
promoted   1         the target's device was taken for use: it is no replica now
broken     2         not replicating, or a verification has found differences that are
                     not repaired: the reasons say why
unknown    2         a process does not report, so the state is not known
========== ========= ==========================================================

The worst state that applies counts. Only current reports count: the last state of a silent process
is not taken as its present one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdr.common.host.programs import SCALABLE_STAGES
from bdr.common.host.sizes import show_size
from bdr.common.status.model import StageStatus
from bdr.common.status.states import ConnectionState, HealthState, StageState
from bdr.common.wire.condition import Condition

MINIMUM_S = 2.0
"""A lower bound of the age above this counts as behind: after a restart of the reader, what it
finds missing is known again by then."""

_ORDER = list(HealthState)
_NOT_STREAMING = {
    ConnectionState.OFFLINE: "no connection to the target",
    ConnectionState.GREETING: "waiting for the target's answer",
    ConnectionState.PAUSED: "the target temporarily refuses batches",
    ConnectionState.STOPPED: "the target refused this source permanently",
}


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Inputs of the judgement on a source."""

    stages: Sequence[StageStatus]
    capture_error: str | None
    is_overflowing: bool
    dirty_regions: int
    phase: ConnectionState | None
    """Of the reader's session; None if the reader does not report."""
    condition: Condition | None
    refused: str | None
    """Why the target refuses this source, in words; None if it does not."""
    unrepaired_bytes: int
    """What verifications have found to differ, and is not repaired."""
    connected_senders: int
    trouble: str | None
    """What a sender found in the target's place, in words; None if that is not known."""
    behind_s: float
    is_minimum: bool
    """`behind_s` is a lower bound: something is missing since an unknown time."""
    rpo_s: float
    is_scanning: bool


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """Inputs of the judgement on a target."""

    stages: Sequence[StageStatus]
    has_source: bool | None
    """A source's session is open; None if the applier does not report."""
    condition: Condition | None
    promoted_at: str | None
    """When the device was taken for use; None: it is a replica."""
    rival: str | None
    """What a source says of itself whose history is another; None: there is none."""
    held_s: float | None
    """For how long `before_resync` has been due; None: it is not."""
    hook_failures: int
    """How often that has failed since."""
    wrong_device: str | None
    """Why the device is not opened; None: it is the one that has the replica."""
    behind_s: float
    """Age of the replica, as its source said last; 0 also if that is not known."""
    queued_s: float
    """Age of the oldest received batch that is not durable."""
    rpo_s: float


@dataclass(frozen=True, slots=True)
class Health:
    """A volume's health, and the reasons for it."""

    state: HealthState
    reasons: tuple[str, ...]


def judge(facts: SourceFacts | TargetFacts) -> Health:
    """The worst state that applies, with all reasons, worst first."""
    is_source = isinstance(facts, SourceFacts)
    found = _judge_stages(facts.stages, needed="reader" if is_source else "applier")
    found += _judge_source(facts) if isinstance(facts, SourceFacts) else _judge_target(facts)
    found.sort(key=lambda entry: _ORDER.index(entry[0]), reverse=True)
    state = found[0][0] if found else HealthState.HEALTHY
    return Health(state, tuple(reason for _, reason in found))


_Found = list[tuple[HealthState, str]]


def _judge_stages(stages: Sequence[StageStatus], *, needed: str) -> _Found:
    found: _Found = []
    if all(stage.stage != needed for stage in stages):
        # Neither expected nor ever reported: nothing is known of the replication.
        found.append((HealthState.UNKNOWN, f"no {needed} has reported"))
    for stage in stages:
        if stage.state is StageState.REPORTING:
            continue
        others_work = stage.stage in SCALABLE_STAGES and any(
            other.stage == stage.stage and other.state is StageState.REPORTING for other in stages
        )
        # Replication continues without a scanner; pending repairs are judged separately.
        goes_on = others_work or stage.stage == "scanner"
        if stage.state is StageState.WAITING:
            judged = HealthState.DEGRADED if goes_on else HealthState.BROKEN
            found.append((judged, f"{stage.name} waits: {stage.waits_for}"))
        elif stage.state is StageState.STOPPED:
            judged = HealthState.DEGRADED if goes_on else HealthState.BROKEN
            found.append((judged, f"{stage.name} is not running"))
        elif stage.state is StageState.STARTING:
            judged = HealthState.DEGRADED if goes_on else HealthState.UNKNOWN
            found.append((judged, f"{stage.name} has not reported yet"))
        else:
            found.append(
                (HealthState.UNKNOWN, f"{stage.name} has not reported for {stage.age_s:.0f} s")
            )
    return found


def _judge_source(facts: SourceFacts) -> _Found:
    found: _Found = []
    if facts.capture_error is not None:
        found.append((HealthState.BROKEN, facts.capture_error))
    if facts.trouble is not None:
        judged = HealthState.DEGRADED if facts.connected_senders else HealthState.BROKEN
        found.append((judged, facts.trouble))
    if facts.unrepaired_bytes:
        text = (
            f"a verification has found differences in {show_size(facts.unrepaired_bytes)} that are "
            "not repaired: see `bdr verify --repair`"
        )
        found.append((HealthState.BROKEN, text))
    if facts.phase is not None and facts.phase is not ConnectionState.STREAMING:
        said = facts.refused or _NOT_STREAMING.get(facts.phase, facts.phase.value)
        found.append((HealthState.BROKEN, said))
    elif facts.phase is not None:
        # A sender that does not report is listed already, and may be connected.
        do_senders_report = all(
            stage.state is StageState.REPORTING for stage in facts.stages if stage.stage == "sender"
        )
        if not facts.connected_senders and do_senders_report and facts.trouble is None:
            found.append((HealthState.BROKEN, "no sender is connected to the target"))
        found += _judge_content(facts)
    if facts.behind_s > facts.rpo_s:
        found.append(
            (
                HealthState.BEHIND,
                f"{facts.behind_s:.1f} s behind, allowed: {facts.rpo_s:g} s",
            )
        )
    elif facts.is_minimum and facts.behind_s > MINIMUM_S:
        text = f"at least {facts.behind_s:.1f} s behind"
        found.append((HealthState.BEHIND, text))
    return found


def _judge_content(facts: SourceFacts) -> _Found:
    if facts.is_overflowing or facts.dirty_regions or _needs_scan(facts.condition):
        what = (
            "the ring has overflowed"
            if facts.is_overflowing
            else f"{facts.dirty_regions} regions await a resync"
            if facts.dirty_regions
            else "the replica is not consistent and needs a resync"
        )
        if facts.is_scanning:
            return [(HealthState.RESYNCING, f"{what}: resync under way")]
        return [(HealthState.BROKEN, f"{what}, and no scanner is running")]
    if facts.condition is Condition.CATCHING_UP:
        return [(HealthState.BEHIND, "the replica is catching up after an interruption")]
    return []


def _judge_target(facts: TargetFacts) -> _Found:
    if facts.queued_s > facts.rpo_s:
        text = f"received {facts.queued_s:.0f} s ago and not durable: the disk is slow"
        return [(HealthState.BEHIND, text), *_judge_session(facts)]
    if facts.behind_s > facts.rpo_s:
        text = f"{facts.behind_s:.1f} s behind, allowed: {facts.rpo_s:g} s"
        return [(HealthState.BEHIND, text), *_judge_session(facts)]
    return _judge_session(facts)


def _judge_session(facts: TargetFacts) -> _Found:
    if facts.has_source is None:
        return []
    if facts.promoted_at is not None:
        text = f"promoted on {facts.promoted_at}: its device is in use, and takes no batches"
        return [(HealthState.PROMOTED, text)]
    if facts.wrong_device is not None:
        return [(HealthState.BROKEN, facts.wrong_device)]
    if facts.rival is not None:
        return [(HealthState.BROKEN, facts.rival)]
    if facts.hook_failures:
        text = (
            f"before_resync has failed {facts.hook_failures} times: until it succeeds the replica "
            "is kept as it was"
        )
        return [(HealthState.BROKEN, text)]
    if not facts.has_source:
        return [(HealthState.BROKEN, "no source is connected")]
    if facts.held_s is not None:
        text = f"before_resync runs, since {facts.held_s:.0f} s: batches wait for it"
        return [(HealthState.RESYNCING, text)]
    if facts.condition is Condition.UNVERIFIED:
        return [(HealthState.RESYNCING, "the replica is compared; nothing is known to be wrong")]
    if _needs_scan(facts.condition):
        return [
            (HealthState.RESYNCING, "the replica is not consistent: it needs its source's resync")
        ]
    if facts.condition is Condition.CATCHING_UP:
        return [(HealthState.BEHIND, "the replica is catching up after an interruption")]
    return []


def _needs_scan(condition: Condition | None) -> bool:
    return condition is not None and condition.needs_scan
