# SPDX-License-Identifier: GPL-2.0-only
"""Events, hooks, log lines: each by itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bdr.common.status.model import VolumeStatus
from bdr.common.status.states import ConnectionState, HealthState, StageState
from bdr.common.wire.condition import Condition
from bdr.services.cli.top import gauge, sparkline
from bdr.services.monitoring.events import Detector, Event
from bdr.services.monitoring.hooks import QUEUE_MAX, Hooks, environment
from bdr.services.runtime import log
from bdr.services.runtime.log import Logger, RateLimit
from tests.unit.statuses import LAG, RESYNC, RING, SOURCE, VERIFICATION, stage


def topics(*statuses: VolumeStatus) -> list[list[str]]:
    detector = Detector()
    return [[event.name for event in detector.update(entry)] for entry in statuses]


UNKNOWN_LINK = replace(SOURCE.connection, state=None, is_up=None)
DOWN = replace(SOURCE.connection, state=ConnectionState.OFFLINE, is_up=False)


def in_condition(condition: Condition | None) -> VolumeStatus:
    return replace(SOURCE, replica=replace(SOURCE.replica, condition=condition))


def test_the_first_status_says_what_holds() -> None:
    assert topics(SOURCE) == [["connection-restored", "consistent"]]
    assert topics(replace(in_condition(None), connection=UNKNOWN_LINK)) == [[]]


@pytest.mark.parametrize(
    ("bad", "there", "back"),
    [
        (replace(SOURCE, connection=DOWN), ["connection-lost"], ["connection-restored"]),
        (replace(SOURCE, connection=UNKNOWN_LINK), [], []),
        (in_condition(Condition.INCONSISTENT), ["inconsistent"], ["consistent"]),
        (in_condition(Condition.CATCHING_UP), [], ["consistent"]),
        (replace(SOURCE, is_rpo_exceeded=True), ["rpo-exceeded"], ["rpo-restored"]),
        (replace(SOURCE, is_rpo_exceeded=None), [], []),
        (replace(SOURCE, ring=None), [], []),
        (replace(SOURCE, resync=None), [], []),
        (
            replace(SOURCE, resync=replace(RESYNC, is_running=True)),
            ["resync-start"],
            ["resync-end"],
        ),
        (
            replace(SOURCE, stages=(stage("v-reader", StageState.SILENT),)),
            ["stage-lost"],
            ["stage-back"],
        ),
        (
            replace(SOURCE, stages=(stage("v-reader", StageState.STOPPED),)),
            ["stage-lost"],
            ["stage-back"],
        ),
        (
            replace(SOURCE, stages=(stage("v-reader", StageState.WAITING),)),
            ["stage-lost"],
            ["stage-back"],
        ),
        (replace(SOURCE, health=HealthState.BROKEN), ["health"], ["health"]),
    ],
)
def test_what_changes_there_and_back_is_named_once(
    bad: VolumeStatus, there: list[str], back: list[str]
) -> None:
    assert topics(SOURCE, bad, bad, SOURCE, SOURCE)[1:] == [there, [], back, []]


def test_unknown_age_neither_exceeds_nor_restores() -> None:
    exceeded, unknown = (replace(SOURCE, is_rpo_exceeded=each) for each in (True, None))
    assert topics(SOURCE, exceeded, unknown, exceeded)[1:] == [["rpo-exceeded"], [], []]
    assert topics(SOURCE, exceeded, unknown, SOURCE)[1:] == [["rpo-exceeded"], [], ["rpo-restored"]]
    # A monitor that begins says what holds.
    assert "rpo-exceeded" in topics(exceeded)[0]
    assert "rpo-restored" not in topics(SOURCE)[0]


def test_what_came_and_went_between_two_looks_is_named() -> None:
    lost = replace(SOURCE, connection=replace(SOURCE.connection, losses=1))
    assert topics(SOURCE, lost)[1] == ["connection-lost", "connection-restored"]
    overflown = replace(SOURCE, ring=replace(RING, overflows=3))
    assert topics(SOURCE, overflown)[1] == ["overflow"]
    # An unknown time between does not hide that it was lost.
    unknown = replace(SOURCE, connection=UNKNOWN_LINK)
    down = replace(SOURCE, connection=DOWN)
    assert topics(SOURCE, unknown, down)[1:] == [[], ["connection-lost"]]


def verified(**changes: Any) -> VolumeStatus:
    return replace(SOURCE, verification=replace(VERIFICATION, **changes))


def test_what_verifications_find_is_named_until_it_is_repaired() -> None:
    later = VERIFICATION.ended_utc + timedelta(hours=1) if VERIFICATION.ended_utc else None
    bad = verified(ended_utc=later, unrepaired_bytes=4096)
    more = verified(ended_utc=later, unrepaired_bytes=8192)
    unknown = replace(SOURCE, verification=None)
    good = verified(ended_utc=later, unrepaired_bytes=0)
    named = topics(SOURCE, bad, unknown, bad, more, bad, good, good)
    assert named[1:] == [["verified"], [], [], ["verified"], [], ["repaired"], []]
    # What holds when the monitor begins.
    assert topics(unknown, bad)[1] == ["verified"]
    assert topics(unknown, good)[1] == []


def test_reader_that_reports_again_has_lost_no_connection() -> None:
    """Its count is unknown meanwhile, and not 0."""
    lost = replace(SOURCE, connection=replace(SOURCE.connection, losses=1))
    unknown = replace(SOURCE, connection=UNKNOWN_LINK)
    assert topics(lost, unknown, lost)[1:] == [[], []]


def test_a_hook_gets_facts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    unknown = replace(SOURCE, lag=replace(LAG, seconds=None, slots=None))
    facts = environment(Event("stage-lost", {"process": "v-reader"}), unknown)
    assert facts["BDR_EVENT"] == "stage-lost"
    assert facts["BDR_FACT_PROCESS"] == "v-reader"
    assert facts["BDR_SECONDS_BEHIND"] == ""
    assert {name for name in facts if not name.startswith("BDR_")} <= {"PATH", "HOME", "LANG"}


def run_all(hooks: Hooks, *, until: int) -> None:
    deadline_at = time.monotonic() + 20
    while hooks.run + hooks.failed < until:
        hooks.tick()
        assert time.monotonic() < deadline_at
        os.sched_yield()


def test_hooks_run_in_order_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import os; open({str(out)!r}, 'a').write(os.environ['BDR_EVENT'] + '\\n')"
    hooks = Hooks([sys.executable, "-c", code])
    for at in range(5):
        hooks.put(Event(f"e{at}"), SOURCE)
    run_all(hooks, until=5)
    assert out.read_text().split() == [f"e{at}" for at in range(5)]
    assert (hooks.run, hooks.failed, hooks.dropped) == (5, 0, 0)


def test_hooks_that_fail_hang_or_do_not_exist_are_counted() -> None:
    for command in (["/bin/false"], ["/nonexistent"], ["/bin/sleep", "100"]):
        hooks = Hooks(command, timeout_s=0.1)
        hooks.put(Event("e"), SOURCE)
        run_all(hooks, until=1)
        assert (hooks.run, hooks.failed) == (0, 1)


def test_hooks_have_a_bounded_queue() -> None:
    hooks = Hooks(["/bin/sleep", "100"])
    hooks.put(Event("e"), SOURCE)
    hooks.tick()
    for _ in range(QUEUE_MAX + 3):
        hooks.put(Event("e"), SOURCE)
    assert hooks.dropped == 3
    hooks.close()


Logged = Callable[[], list[str]]


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """The lines that are logged; the logger is as new afterwards."""

    def lines() -> list[str]:
        log.flush()
        return capfd.readouterr().err.splitlines()

    yield lines
    log.use_format("text")
    log.logger().base.handlers = []


def configure(limit: RateLimit | None = None, **options: bool) -> Logger:
    levels = {"verbose": False, "debug": False, "quiet": False} | options
    log.configure(stage="reader", volume="v", limit=limit, **levels)
    return log.logger()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_is_one_line_in_either_form(logged: Logged, form: str) -> None:
    log.use_format(form)
    odd = 'a "b"\nc\x1b[1m'
    configure().info("connected", target="tcp://x", odd=odd, number=3, bad=b"\xff", none=None)
    (line,) = logged()
    if form == "json":
        found = json.loads(line)
        time_ = found.pop("timestamp")
        assert found == {
            "level": "info", "volume": "v", "stage": "reader", "event": "connected",
            "target": "tcp://x", "odd": odd, "number": 3, "bad": "b'\\xff'", "none": None,
        }  # fmt: skip
    else:
        time_, _, rest = line.removeprefix("timestamp=").partition(" ")
        assert rest == (
            "level=info volume=v stage=reader event=connected target=tcp://x "
            r'odd="a \"b\"\nc\x1b[1m" '
            r"number=3 bad=b'\xff' none="
        )
    age_s = datetime.now(UTC) - datetime.fromisoformat(time_)
    assert timedelta() <= age_s < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, ["info", "warning", "error"]),
        ({"debug": True}, ["debug", "info", "warning", "error"]),
        ({"quiet": True}, ["warning", "error"]),
        ({"quiet": True, "verbose": True}, ["info", "warning", "error"]),
    ],
)
def test_what_is_logged_is_what_was_asked_for(
    logged: Logged, options: dict[str, Any], levels: list[str]
) -> None:
    logger = configure(**options)
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)(level)
    lines = logged()
    assert [line.partition("event=")[2] for line in lines] == levels
    assert [line.partition("level=")[2].split()[0] for line in lines] == levels


def test_a_repeated_line_says_how_many_were_left_out(logged: Logged) -> None:
    now_at = [0.0]
    logger = configure(RateLimit(burst=2, window_s=10.0, clock=lambda: now_at[0]))
    for _ in range(5):
        logger.info("again")
    logger.info("another")
    now_at[0] = 10.0
    logger.info("again")
    logger.info("again")
    said = [line.partition("event=")[2] for line in logged()]
    assert said == ["again", "again", "another", "again suppressed=3", "again"]


def test_an_exception_is_logged_on_one_line_with_where_it_came_from(logged: Logged) -> None:
    logger = configure()
    try:
        int("x")
    except ValueError:
        logger.exception("crashed")
    (line,) = logged()
    assert "level=error" in line
    assert "test_monitoring.py" in line
    assert "invalid literal" in line


def test_what_top_draws() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
    assert gauge(0.5, 4) == "[##..]  50 %"
    assert gauge(7, 4) == "[####] 100 %"
