# SPDX-License-Identifier: GPL-2.0-only
"""Health and rates: the rules, case by case, and that nothing bad is ever called healthy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bdr.common.status.health import Health, SourceFacts, TargetFacts, judge
from bdr.common.status.lag import RateMeter, Rates
from bdr.common.status.model import StageStatus
from bdr.common.status.states import ConnectionState, HealthState, StageState
from bdr.common.wire.condition import Condition

UP, SILENT = StageState.REPORTING, StageState.SILENT
STREAMING = ConnectionState.STREAMING


def stage(name: str, kind: str, state: StageState, age_s: float) -> StageStatus:
    return StageStatus(name, kind, state, age_s, restarts=0, pid=None, values=None)


def stages(*states: StageState) -> list[StageStatus]:
    names = ["v-reader", "v-sender-1", "v-sender-2"]
    kinds = ["reader", "sender", "sender"]
    return [
        stage(name, kind, state, 0.2 if state is UP else 7.0)
        for name, kind, state in zip(names, kinds, states, strict=False)
    ]


GOOD = SourceFacts(
    stages=stages(UP, UP, UP),
    capture_error=None,
    is_overflowing=False,
    dirty_regions=0,
    phase=STREAMING,
    condition=Condition.CONSISTENT,
    refused=None,
    unrepaired_bytes=0,
    connected_senders=2,
    trouble=None,
    behind_s=0.0,
    is_minimum=False,
    rpo_s=10.0,
    is_scanning=False,
)


def test_a_volume_without_a_fault_is_healthy() -> None:
    verdict = judge(GOOD)
    assert verdict.state is HealthState.HEALTHY
    assert verdict.reasons == ()
    assert verdict.state.exit_code == 0


STOPPED, STARTING = StageState.STOPPED, StageState.STARTING
WAITING = StageState.WAITING


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({"behind_s": 10.0}, HealthState.HEALTHY, None),
        ({"behind_s": 10.1}, HealthState.BEHIND, "10.1 s behind, allowed: 10 s"),
        ({"behind_s": 2.0, "is_minimum": True}, HealthState.HEALTHY, None),
        ({"behind_s": 2.1, "is_minimum": True}, HealthState.BEHIND, "at least 2.1 s"),
        ({"condition": Condition.CATCHING_UP}, HealthState.BEHIND, "catching up"),
        ({"condition": Condition.INCONSISTENT}, HealthState.BROKEN, "no scanner is running"),
        (
            {"condition": Condition.INCONSISTENT, "is_scanning": True},
            HealthState.RESYNCING,
            "under way",
        ),
        ({"dirty_regions": 3}, HealthState.BROKEN, "3 regions await a resync"),
        ({"dirty_regions": 3, "is_scanning": True}, HealthState.RESYNCING, "3 regions"),
        ({"unrepaired_bytes": 8192}, HealthState.BROKEN, "8.0 KiB that are not repaired"),
        ({"is_overflowing": True}, HealthState.BROKEN, "the ring has overflowed"),
        ({"phase": ConnectionState.OFFLINE}, HealthState.BROKEN, "no connection to the target"),
        (
            {"phase": ConnectionState.GREETING},
            HealthState.BROKEN,
            "waiting for the target's answer",
        ),
        ({"phase": ConnectionState.PAUSED}, HealthState.BROKEN, "temporarily refuses"),
        ({"phase": ConnectionState.STOPPED}, HealthState.BROKEN, "refused this source permanently"),
        ({"connected_senders": 0}, HealthState.BROKEN, "no sender is connected"),
        ({"capture_error": "capture /x: gone"}, HealthState.BROKEN, "capture /x: gone"),
        ({"stages": stages(UP, UP, STOPPED)}, HealthState.DEGRADED, "v-sender-2 is not running"),
        (
            {"stages": stages(UP, UP, STARTING)},
            HealthState.DEGRADED,
            "v-sender-2 has not reported yet",
        ),
        (
            {"stages": [*stages(UP, UP), stage("v-scanner-1", "scanner", STOPPED, 1.0)]},
            HealthState.DEGRADED,
            "v-scanner-1 is not running",
        ),
        ({"stages": stages(UP, STOPPED, STOPPED)}, HealthState.BROKEN, "v-sender-1 is not running"),
        ({"stages": stages(STOPPED, UP, UP), "phase": None}, HealthState.BROKEN, "v-reader is not"),
        (
            {"stages": stages(SILENT, UP, UP), "phase": None},
            HealthState.UNKNOWN,
            "v-reader has not",
        ),
        ({"stages": stages(UP, UP, SILENT)}, HealthState.UNKNOWN, "not reported for 7 s"),
        ({"stages": stages(UP, UP, WAITING)}, HealthState.DEGRADED, "v-sender-2 waits"),
        ({"stages": stages(WAITING, UP, UP), "phase": None}, HealthState.BROKEN, "v-reader waits"),
        (
            {"stages": stages(STARTING, UP, UP), "phase": None},
            HealthState.UNKNOWN,
            "not reported yet",
        ),
        (
            {"stages": stages(UP, SILENT), "connected_senders": 0},
            HealthState.UNKNOWN,
            "v-sender-1 has not reported",
        ),
    ],
)
def test_each_fault_of_a_source_has_its_word(
    change: dict[str, object], state: HealthState, reason: str | None
) -> None:
    verdict = judge(replace(GOOD, **change))  # type: ignore[arg-type]
    assert verdict.state is state
    if reason is None:
        assert not verdict.reasons
    else:
        assert any(reason in text for text in verdict.reasons)


APPLIER = [stage("v-applier", "applier", UP, 0.1)]


GOOD_TARGET = TargetFacts(
    stages=APPLIER,
    has_source=True,
    condition=Condition.CONSISTENT,
    promoted_at=None,
    rival=None,
    held_s=None,
    hook_failures=0,
    wrong_device=None,
    behind_s=0.0,
    queued_s=0.0,
    rpo_s=10.0,
)
PROMOTED = {"promoted_at": "2026-01-02", "has_source": False}
RIVAL = {"rival": "two histories: generation 7"}


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, HealthState.HEALTHY),
        ({"queued_s": 10.0}, HealthState.HEALTHY),
        ({"queued_s": 10.1}, HealthState.BEHIND),
        ({"has_source": False, "queued_s": 10.1}, HealthState.BROKEN),
        ({"condition": Condition.CATCHING_UP}, HealthState.BEHIND),
        ({"condition": Condition.INCONSISTENT}, HealthState.RESYNCING),
        ({"condition": Condition.UNVERIFIED}, HealthState.RESYNCING),
        ({"condition": Condition.UNKNOWN}, HealthState.RESYNCING),
        ({"has_source": False}, HealthState.BROKEN),
        ({"held_s": 3.0}, HealthState.RESYNCING),
        ({"held_s": 3.0, "hook_failures": 1}, HealthState.BROKEN),
        ({"held_s": 3.0, "has_source": False}, HealthState.BROKEN),
        (PROMOTED, HealthState.PROMOTED),
        # A rival is shown, whether the right source is there or not; one that greets a promoted
        # device is refused as any other.
        (RIVAL, HealthState.BROKEN),
        (RIVAL | {"has_source": False}, HealthState.BROKEN),
        (RIVAL | PROMOTED, HealthState.PROMOTED),
        ({"wrong_device": "another disk", "has_source": False}, HealthState.BROKEN),
        (
            {
                "stages": [replace(APPLIER[0], state=SILENT)],
                "has_source": None,
                "condition": None,
            },
            HealthState.UNKNOWN,
        ),
        (
            {
                "stages": [replace(APPLIER[0], state=STOPPED)],
                "has_source": None,
                "condition": None,
            },
            HealthState.BROKEN,
        ),
    ],
)
def test_each_state_of_a_target_has_its_word(change: dict[str, Any], state: HealthState) -> None:
    assert judge(replace(GOOD_TARGET, **change)).state is state


def test_rival_is_shown_as_it_is_described() -> None:
    assert judge(replace(GOOD_TARGET, rival="seen")).reasons == ("seen",)


def test_wrong_device_is_shown_instead_of_the_missing_source() -> None:
    facts = replace(GOOD_TARGET, wrong_device="another disk", has_source=False)
    assert judge(facts).reasons == ("another disk",)


@pytest.mark.parametrize(
    "phase", [each for each in ConnectionState if each is not ConnectionState.STREAMING]
)
def test_targets_refusal_is_shown_instead_of_the_phase(phase: ConnectionState) -> None:
    verdict = judge(replace(GOOD, phase=phase, refused="two histories"))
    assert (verdict.state, verdict.reasons) == (HealthState.BROKEN, ("two histories",))


def test_a_volume_whose_process_was_never_seen_is_unknown() -> None:
    unseen = replace(GOOD, stages=(), phase=None, condition=None, connected_senders=0)
    assert judge(unseen).state is HealthState.UNKNOWN
    assert judge(replace(unseen, stages=stages(UP, UP)[1:])).state is HealthState.UNKNOWN
    assert (
        judge(TargetFacts((), None, None, None, None, None, 0, None, 0.0, 0.0, 10.0)).state
        is HealthState.UNKNOWN
    )


def test_nothing_but_the_good_case_is_ever_healthy() -> None:
    states = list(itertools.product(StageState, repeat=3))
    for trio, phase, dirty, connected, behind in itertools.product(
        states, (STREAMING, ConnectionState.OFFLINE, None), (0, 1), (0, 2), (0.0, 99.0)
    ):
        is_good = (
            set(trio) == {UP} and phase is STREAMING and not dirty and connected and not behind
        )
        if phase is None and trio[0] is UP:
            continue  # a reader that reports says its phase
        facts = replace(
            GOOD,
            stages=stages(*trio),
            phase=phase,
            dirty_regions=dirty,
            connected_senders=connected,
            behind_s=behind,
        )
        verdict = judge(facts)
        assert (verdict.state is HealthState.HEALTHY) == bool(is_good), facts
        assert bool(verdict.reasons) != bool(is_good)


# Rates.


def look(meter: RateMeter, *looks: tuple[float, int, int]) -> None:
    for now_at, head, tail in looks:
        meter.sample(now_at=now_at, head=head, tail=tail)


def test_rates_without_an_interval_are_none() -> None:
    meter = RateMeter()
    assert meter.rates == Rates(0.0, 0.0)
    look(meter, (1, 10, 5))
    assert meter.rates == Rates(0.0, 0.0)


def test_a_new_capture_begins_anew() -> None:
    meter = RateMeter()
    look(meter, (0, 0, 0), (1, 100, 0), (2, 3, 3), (3, 5, 4))
    assert meter.rates == Rates(2.0, 1.0)


def test_rates_and_time_to_catch_up() -> None:
    meter = RateMeter()
    look(meter, *((t, 1000 + 10 * t, 30 * t) for t in range(11)))
    rates = meter.rates
    assert (rates.written_per_s, rates.acked_per_s) == (10, 30)
    assert rates.catch_up_s(1100 - 300) == pytest.approx((1100 - 300) / 20)
    assert rates.catch_up_s(0) == 0
    look(meter, *((t, 1000 + 50 * t, 300) for t in range(11, 22)))
    assert meter.rates.catch_up_s(1) is None


@pytest.mark.parametrize(
    ("connected", "state"), [(0, HealthState.BROKEN), (1, HealthState.DEGRADED)]
)
def test_what_a_sender_finds_in_the_targets_place_is_a_reason(
    connected: int, state: HealthState
) -> None:
    verdict = judge(replace(GOOD, connected_senders=connected, trouble="another program"))
    assert verdict == Health(state, ("another program",))
