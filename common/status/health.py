# SPDX-License-Identifier: GPL-2.0-only
"""Whether a volume is well, judged from what is known of it. No I/O, no clock here.

========== ========= ==========================================================
word       exit code meaning
========== ========= ==========================================================
healthy    0         replicating, and not further behind than allowed
behind     1         replicating, but behind `rpo_seconds`, or not a prefix yet
degraded   1         replicating with fewer senders or scanners than there should be
resyncing  1         regions are being copied by the scanner
broken     2         not replicating: the reasons say why
unknown    2         a process does not report, so nobody knows
========== ========= ==========================================================

The worst that applies counts. Only what is reported now is believed: a state that
a silent process had before it fell silent is not taken for its present one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bdr.common.host.programs import SCALABLE_STAGES

_NEEDS_SCAN = ("INCONSISTENT", "UNKNOWN")
SILENT_AFTER_S = 3.0
"""A process reports every second; after so long it counts as silent."""
MINIMUM_S = 2.0
"""What was outstanding when a monitor began is durable by then, unless it is behind."""


class Word(Enum):
    """From good to bad."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RESYNCING = "resyncing"
    BEHIND = "behind"
    UNKNOWN = "unknown"
    BROKEN = "broken"

    @property
    def exit_code(self) -> int:
        """Of `bdr status`."""
        return {"healthy": 0, "broken": 2, "unknown": 2}.get(self.value, 1)


_ORDER = list(Word)


class StageState(Enum):
    """What is known of a process."""

    REPORTING = "reporting"
    STARTING = "starting"
    """Expected, and no report yet."""
    SILENT = "silent"
    STOPPED = "stopped"
    """It has said goodbye, or does not exist any more."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One process that ought to run."""

    name: str
    stage: str
    state: StageState
    silent_s: float
    """Time since its last report, or since it was first expected."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source's monitor knows."""

    stages: Sequence[Stage]
    capture_error: str | None
    is_overflowing: bool
    dirty_regions: int
    phase: str | None
    """Of the reader's conversation; None if the reader does not report."""
    condition: str | None
    connected_senders: int
    seconds_behind: float
    is_minimum: bool
    """It is at least so far behind: nobody has seen when the oldest write was made."""
    rpo_seconds: float
    is_scanning: bool


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What a target's monitor knows."""

    stages: Sequence[Stage]
    is_fed: bool | None
    """A source's session is open; None if the applier does not report."""
    condition: str | None
    queued_seconds: float
    """Age of the oldest that was received and is not durable."""
    rpo_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, and why it is not a better one."""

    word: Word
    reasons: tuple[str, ...]


def judge(facts: SourceFacts | TargetFacts) -> Verdict:
    """The worst that applies, with every reason from bad to good."""
    found = _judge_stages(facts.stages)
    found += _judge_source(facts) if isinstance(facts, SourceFacts) else _judge_target(facts)
    found.sort(key=lambda entry: _ORDER.index(entry[0]), reverse=True)
    word = found[0][0] if found else Word.HEALTHY
    return Verdict(word, tuple(reason for _, reason in found))


_Found = list[tuple[Word, str]]


def _judge_stages(stages: Sequence[Stage]) -> _Found:
    found: _Found = []
    for stage in stages:
        if stage.state is StageState.REPORTING:
            continue
        others_work = stage.stage in SCALABLE_STAGES and any(
            other.stage == stage.stage and other.state is StageState.REPORTING for other in stages
        )
        # Without a scanner replication goes on; what it would repair is judged apart.
        goes_on = others_work or stage.stage == "scanner"
        if stage.state is StageState.STOPPED:
            word = Word.DEGRADED if goes_on else Word.BROKEN
            found.append((word, f"{stage.name} is not running"))
        elif stage.state is StageState.STARTING:
            word = Word.DEGRADED if goes_on else Word.UNKNOWN
            found.append((word, f"{stage.name} has not reported yet"))
        else:
            found.append(
                (Word.UNKNOWN, f"{stage.name} has not reported for {stage.silent_s:.0f} s")
            )
    return found


def _judge_source(facts: SourceFacts) -> _Found:
    found: _Found = []
    if facts.capture_error is not None:
        found.append((Word.BROKEN, facts.capture_error))
    if facts.phase is not None and facts.phase != "STREAMING":
        said = {
            "OFFLINE": "no connection to the target",
            "GREETING": "waiting for the target's answer",
            "PAUSED": "the target does not take batches for now",
            "STOPPED": "the target refused for good",
        }.get(facts.phase, facts.phase)
        found.append((Word.BROKEN, said))
    elif facts.phase is not None:
        # A sender that does not report is named already, and may be connected.
        do_senders_report = all(
            stage.state is StageState.REPORTING for stage in facts.stages if stage.stage == "sender"
        )
        if not facts.connected_senders and do_senders_report:
            found.append((Word.BROKEN, "no sender is connected to the target"))
        found += _judge_content(facts)
    if facts.seconds_behind > facts.rpo_seconds:
        found.append(
            (
                Word.BEHIND,
                f"{facts.seconds_behind:.1f} s behind, allowed are {facts.rpo_seconds:g} s",
            )
        )
    elif facts.is_minimum and facts.seconds_behind > MINIMUM_S:
        text = f"behind for longer than is known, at least {facts.seconds_behind:.1f} s"
        found.append((Word.BEHIND, text))
    return found


def _judge_content(facts: SourceFacts) -> _Found:
    if facts.is_overflowing or facts.dirty_regions or facts.condition in _NEEDS_SCAN:
        what = (
            "the ring has overflowed"
            if facts.is_overflowing
            else f"{facts.dirty_regions} regions await a resync"
            if facts.dirty_regions
            else "the replica is not consistent and needs a resync"
        )
        if facts.is_scanning:
            return [(Word.RESYNCING, f"{what}: resync under way")]
        return [(Word.BROKEN, f"{what}, and no scanner is at work")]
    if facts.condition == "CATCHING_UP":
        return [(Word.BEHIND, "the replica is catching up after an interruption")]
    return []


def _judge_target(facts: TargetFacts) -> _Found:
    if facts.queued_seconds > facts.rpo_seconds:
        text = f"received {facts.queued_seconds:.0f} s ago and not durable: the disk is slow"
        return [(Word.BEHIND, text), *_judge_session(facts)]
    return _judge_session(facts)


def _judge_session(facts: TargetFacts) -> _Found:
    if facts.is_fed is None:
        return []
    if not facts.is_fed:
        return [(Word.BROKEN, "no source is connected")]
    if facts.condition in _NEEDS_SCAN:
        return [(Word.RESYNCING, "the replica is not consistent: it needs its source's resync")]
    if facts.condition == "CATCHING_UP":
        return [(Word.BEHIND, "the replica is catching up after an interruption")]
    return []
