# SPDX-License-Identifier: GPL-2.0-only
"""What `bdr status` makes of a monitor's answer and of what supervisord says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from bdr.common.ring.layout import Mode
from bdr.common.status.model import encode_status
from bdr.common.status.states import HealthState, StageState
from bdr.common.wire.condition import Condition
from bdr.services.cli import status as cli_status
from bdr.services.cli.status import Answer, MonitorLocation
from bdr.services.monitoring.client import STATUS_TOPIC
from tests.unit.statuses import SOURCE, TARGET, VERIFICATION, stage

DEADLINE_S = 30.0
GOOD = Answer("v", HealthState.HEALTHY, (), SOURCE)
SILENT = Answer("v", HealthState.UNKNOWN, ("no answer",), None)
RUNNING = {"v-reader": "RUNNING", "v-sender-1": "RUNNING", "other-reader": "FATAL"}
DOWN = RUNNING | {"v-sender-1": "BACKOFF"}


@pytest.mark.parametrize(
    ("answer", "states", "silence", "health", "reasons"),
    [
        (GOOD, RUNNING, None, HealthState.HEALTHY, ()),
        (GOOD, DOWN, None, HealthState.UNKNOWN, ("v-sender-1: BACKOFF",)),
        (GOOD, {}, "no supervisord", HealthState.BROKEN, ("no supervisord",)),
        (SILENT, RUNNING, None, HealthState.UNKNOWN, ("no answer",)),
        (SILENT, DOWN, None, HealthState.UNKNOWN, ("no answer", "v-sender-1: BACKOFF")),
        (SILENT, {}, "no supervisord", HealthState.UNKNOWN, ("no supervisord", "no answer")),
        (
            replace(GOOD, health=HealthState.BEHIND, reasons=("late",)),
            DOWN,
            None,
            HealthState.BEHIND,
            ("late",),
        ),
    ],
)
def test_what_supervisord_says_never_makes_it_better(
    answer: Answer,
    states: dict[str, str],
    silence: str | None,
    health: HealthState,
    reasons: tuple[str, ...],
) -> None:
    found = cli_status._with_supervisor(answer, states, silence)
    assert (found.health, found.reasons) == (health, reasons)
    own = {name: state for name, state in states.items() if name.startswith("v-")}
    assert found.supervisor == (None if silence else own)
    assert found.to_map()["exit_code"] == health.exit_code
    assert found.to_map()["health"] == health.value
    assert found.to_map()["reasons"] == list(reasons)
    assert found.to_map()["supervisor"] == found.supervisor


def test_without_an_answer_only_what_is_known_is_printed() -> None:
    assert SILENT.to_map().keys() == {
        "volume", "health", "exit_code", "reasons", "stages", "supervisor",
    }  # fmt: skip
    assert cli_status.lines(SILENT) == ["v: unknown", "  no answer"]


def test_both_sides_are_shown_with_what_they_have() -> None:
    assert cli_status.lines(replace(GOOD, supervisor=DOWN)) == [
        "v: healthy (source)",
        "  behind      0.2 s, 40.0 KiB, caught up in 2 s",
        "  target      streaming, 6 connects, 0 disconnects",
        "  ring        10 of 1024 slots (1 %), 2 overflows",
        "  replica     consistent, at slot 90",
        "              since 2026-01-02 03:04:05 UTC; slot 90 of stream 00010203, "
        "as of 2026-01-02 03:04:05 UTC",
        "  verified    2026-01-02 03:04:05 UTC: 8192 bytes differed, 64.0 KiB were ignored, "
        "repaired since",
        "  v-reader            reporting, last report 0.2 s ago, pid 7",
        "  v-scanner-1         reporting, last report 0.2 s ago, pid 7",
        "  v-sender-1          reporting, last report 0.2 s ago, pid 7 (supervisord: BACKOFF)",
    ]
    assert TARGET.replica.intake
    full = replace(TARGET.replica.intake, journal_bytes=1 << 20, journal_size_bytes=1 << 24)
    status = replace(TARGET, replica=replace(TARGET.replica, intake=full), stages=())
    assert cli_status.lines(Answer("v", HealthState.BROKEN, ("why",), status))[:5] == [
        "v: broken (target)",
        "  why",
        "  behind      0.5 s",
        "  source      connected, 4 connects, 0 disconnects, 1 refused",
        "  replica     consistent, at slot 90, last acknowledged 0.2 s ago, "
        "journal 1.0 MiB of 16.0 MiB",
    ]


def test_what_is_unknown_is_not_shown_as_a_number() -> None:
    assert SOURCE.lag
    assert SOURCE.ring
    unknown = replace(
        SOURCE,
        lag=replace(SOURCE.lag, seconds=None, slots=None, catch_up_s=None),
        ring=None,
        connection=replace(SOURCE.connection, state=None, is_up=None),
        replica=replace(SOURCE.replica, condition=None, since_utc=None),
        verification=None,
        stages=(replace(stage("v-reader", StageState.STARTING), pid=None, values=None),),
    )
    assert cli_status.lines(Answer("v", HealthState.UNKNOWN, (), unknown)) == [
        "v: unknown (source)",
        "  behind      not known: the ring cannot be read",
        "  target      not known, 6 connects, 0 disconnects",
        "  replica     not known",
        "  v-reader            starting",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ended_utc": None, "differing_bytes": 0}, ""),
        (
            {"differing_bytes": 0, "ignored_bytes": 0},
            "2026-01-02 03:04:05 UTC: 0 bytes differed",
        ),
        (
            {"ignored_bytes": 0, "unrepaired_bytes": 8192},
            "2026-01-02 03:04:05 UTC: 8192 bytes differed, 8.0 KiB are not repaired",
        ),
        (
            {"ended_utc": None, "differing_bytes": 0, "unrepaired_bytes": 4096},
            "4.0 KiB are not repaired",
        ),
    ],
)
def test_verifications_are_shown_with_what_they_found(changes: dict[str, Any], text: str) -> None:
    assert cli_status.verification(replace(VERIFICATION, **changes)) == text


def test_replica_that_needs_a_scan_is_shown_with_what_is_left() -> None:
    assert SOURCE.ring
    bad = replace(SOURCE.replica, condition=Condition.INCONSISTENT, left_bytes=3 << 20)
    assert cli_status.replica_details(bad) == [
        "resync under way since 2026-01-02 03:04:05 UTC, 3.0 MiB left to compare"
    ]
    full = replace(SOURCE.ring, mode=Mode.OVERFLOW, dirty_regions=7)
    assert cli_status.ring(full) == (
        "10 of 1024 slots (1 %), OVERFLOWING, 2 overflows, 7 of 256 regions await a resync"
    )


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.set(zmq.XPUB_VERBOSE, 1)
    socket.set(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
    socket.bind(f"ipc://{tmp_path}/status.sock")
    yield socket
    context.destroy(linger=0)


@pytest.mark.parametrize("change", [{"version": 2}, {"ring": {"head": "x"}}])
def test_status_that_cannot_be_read_is_unknown_and_its_reason_says_so(
    tmp_path: Path, publisher: zmq.Socket[bytes], change: dict[str, object]
) -> None:
    place = MonitorLocation("v", str(tmp_path))
    with ThreadPoolExecutor(1) as pool:

        def answer(data: bytes) -> Answer:
            asked = pool.submit(cli_status.query, place, DEADLINE_S)
            while publisher.recv() != b"\x01" + STATUS_TOPIC:
                pass  # the end of the subscription before
            publisher.send_multipart([STATUS_TOPIC, data])
            return asked.result(DEADLINE_S)

        assert answer(encode_status(SOURCE)) == GOOD
        other = answer(msgpack.packb(SOURCE.to_map() | change))
    assert (other.health, other.status) == (HealthState.UNKNOWN, None)
    assert "another version" in other.reasons[0]
