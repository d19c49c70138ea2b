# SPDX-License-Identifier: GPL-2.0-only
"""Reports, events, hooks, log lines: each by itself."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services import log, metrics
from services.cli_top import gauge, sparkline
from services.events import QUEUE_MAX, Detector, Event, Hooks, environment
from services.log import RateLimit
from services.metrics import Report

REPORT = Report("sender", "v-sender-1", 7, 1.5, False, {"bytes": 3, "text": "x", "none": None})


def test_a_report_crosses_the_socket() -> None:
    assert metrics.decode(metrics.encode(REPORT)) == REPORT


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_none(data: bytes) -> None:
    found = metrics.decode(data)
    assert found is None or isinstance(found, Report)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.sampled_from(["version", "stage", "name", "pid", "sent_s", "is_last", "values"]), JSON)
def test_a_report_with_a_wrong_field_is_none_or_still_typed(key: str, value: Any) -> None:
    tree = msgpack.unpackb(metrics.encode(REPORT)) | {key: value}
    found = metrics.decode(msgpack.packb(tree))
    if found is not None:
        assert isinstance(found.name, str)
        assert isinstance(found.pid, int)
        assert all(v is None or isinstance(v, int | float | str) for v in found.values.values())


def status(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "volume": "v",
        "role": "source",
        "time": "now",
        "health": "healthy",
        "reasons": [],
        "seconds_behind": 0.0,
        "bytes_behind": 0,
        "rpo_seconds": 10.0,
        "is_rpo_exceeded": False,
        "ring": {"overflows": 0},
        "resync": {"is_running": False, "dirty_regions": 0},
        "connection": {"is_up": True, "losses": 0},
        "replica": {"condition": "CONSISTENT"},
        "stages": [{"name": "v-reader", "state": "reporting"}],
    }
    for key, value in changes.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    return found


def topics(*statuses: Mapping[str, Any]) -> list[list[str]]:
    detector = Detector()
    return [[event.topic for event in detector.update(entry)] for entry in statuses]


def test_the_first_status_says_what_holds() -> None:
    assert topics(status()) == [["connection-restored", "consistent"]]
    assert topics(status(connection={"is_up": None}, replica={"condition": None})) == [[]]


@pytest.mark.parametrize(
    ("change", "there", "back"),
    [
        ({"connection": {"is_up": False}}, ["connection-lost"], ["connection-restored"]),
        ({"connection": {"is_up": None}}, [], []),
        ({"replica": {"condition": "INCONSISTENT"}}, ["inconsistent"], ["consistent"]),
        ({"replica": {"condition": "CATCHING_UP"}}, [], ["consistent"]),
        ({"is_rpo_exceeded": True}, ["rpo-exceeded"], ["rpo-restored"]),
        ({"ring": None}, [], []),
        ({"resync": None}, [], []),
        ({"resync": {"is_running": True}}, ["resync-start"], ["resync-end"]),
        (
            {"stages": [{"name": "v-reader", "state": "silent"}]},
            ["stage-lost"],
            ["stage-back"],
        ),
        ({"health": "broken"}, ["health"], ["health"]),
    ],
)
def test_what_changes_there_and_back_is_named_once(
    change: dict[str, Any], there: list[str], back: list[str]
) -> None:
    bad = status(**change)
    assert topics(status(), bad, bad, status(), status())[1:] == [there, [], back, []]


def test_what_came_and_went_between_two_looks_is_named() -> None:
    lost = status(connection={"losses": 1})
    assert topics(status(), lost)[1] == ["connection-lost", "connection-restored"]
    assert topics(status(), status(ring={"overflows": 3}))[1] == ["overflow"]
    # An unknown time between does not hide that it was lost.
    unknown, down = status(connection={"is_up": None}), status(connection={"is_up": False})
    assert topics(status(), unknown, down)[1:] == [[], ["connection-lost"]]


def test_a_hook_gets_facts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    facts = environment(Event("stage-lost", {"process": "v-reader"}), status(seconds_behind=None))
    assert facts["BDR_EVENT"] == "stage-lost"
    assert facts["BDR_FACT_PROCESS"] == "v-reader"
    assert facts["BDR_SECONDS_BEHIND"] == ""
    assert {name for name in facts if not name.startswith("BDR_")} <= {"PATH", "HOME", "LANG"}


def run_all(hooks: Hooks, *, until: int) -> None:
    deadline_s = time.monotonic() + 20
    while hooks.run + hooks.failed < until:
        hooks.tick()
        assert time.monotonic() < deadline_s
        os.sched_yield()


def test_hooks_run_in_order_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import os; open({str(out)!r}, 'a').write(os.environ['BDR_EVENT'] + '\\n')"
    hooks = Hooks([sys.executable, "-c", code])
    for at in range(5):
        hooks.put(Event(f"e{at}"), status())
    run_all(hooks, until=5)
    assert out.read_text().split() == [f"e{at}" for at in range(5)]
    assert (hooks.run, hooks.failed, hooks.dropped) == (5, 0, 0)


def test_hooks_that_fail_hang_or_do_not_exist_are_counted() -> None:
    for command in (["/bin/false"], ["/nonexistent"], ["/bin/sleep", "100"]):
        hooks = Hooks(command, timeout_s=0.1)
        hooks.put(Event("e"), status())
        run_all(hooks, until=1)
        assert (hooks.run, hooks.failed) == (0, 1)


def test_hooks_have_a_bounded_queue() -> None:
    hooks = Hooks(["/bin/sleep", "100"])
    hooks.put(Event("e"), status())
    hooks.tick()
    for _ in range(QUEUE_MAX + 3):
        hooks.put(Event("e"), status())
    assert hooks.dropped == 3
    hooks.close()


def test_an_event_that_repeats_is_counted_instead() -> None:
    clock = itertools.chain([0.0] * 26, [10.0] * 5)
    limit = RateLimit(burst=20, window_s=10.0, clock=lambda: next(clock))
    passed = 0
    for _ in range(25):
        try:
            limit(None, "info", {"event": "a"})
            passed += 1
        except structlog.DropEvent:
            pass
    assert passed == 20
    assert limit(None, "info", {"event": "b"}) == {"event": "b"}
    assert limit(None, "info", {"event": "a"}) == {"event": "a", "suppressed": 5}
    assert limit(None, "info", {"event": "a"}) == {"event": "a"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_is_one_line_in_either_form(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    structlog.reset_defaults()
    try:
        log.use_format(form)
        log.configure(stage="reader", volume="v", verbose=False, debug=False, quiet=False)
        log.logger().info("connected", target="tcp://x", odd='a "b"\nc', number=3, bad=b"\xff")
    finally:
        log.use_format("text")
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    (line,) = out.getvalue().splitlines()
    if form == "json":
        found = json.loads(line)
        assert found["event"] == "connected"
        assert found["volume"] == "v"
        assert found["number"] == 3
    else:
        assert "level=info volume=v stage=reader event=connected target=tcp://x" in line


def test_what_top_draws() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
    assert gauge(0.5, 4) == "[##..]  50 %"
    assert gauge(7, 4) == "[####] 100 %"
