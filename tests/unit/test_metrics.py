# SPDX-License-Identifier: GPL-2.0-only
"""The metrics: names, labels and values; and that rules, dashboard and docs name what exists."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bdr.common.ring.layout import Mode
from bdr.common.status.metric import MetricType
from bdr.common.status.metrics import METRICS, OF_MONITOR
from bdr.common.status.model import VolumeStatus
from bdr.common.status.reports import LinkCounts
from bdr.common.status.states import ConnectionState, HealthState, StageState
from bdr.services.monitoring.exporter import families
from deploy import docs
from tests.unit.statuses import APPLIER, SOURCE, TARGET, stage

ROOT = Path(__file__).parents[2]
LINKS = LinkCounts(connects=4, disconnects=3, handshakes_failed=2, authentications_failed=1)
assert SOURCE.ring
assert SOURCE.resync
assert SOURCE.verification
assert TARGET.replica.intake
LATE_SOURCE = replace(
    SOURCE,
    health=HealthState.RESYNCING,
    is_rpo_exceeded=True,
    ring=replace(SOURCE.ring, mode=Mode.OVERFLOW, dirty_regions=7),
    resync=replace(SOURCE.resync, is_running=True, dirty_regions=7),
    verification=replace(SOURCE.verification, unrepaired_bytes=4096),
    connection=replace(SOURCE.connection, state=ConnectionState.OFFLINE, is_up=False),
    stages=(
        stage("v-sender-1"),
        replace(stage("v-sender-2", StageState.STARTING), values=None, restarts=2, age_s=0.5),
    ),
)
LATE_TARGET = replace(
    TARGET,
    replica=replace(
        TARGET.replica,
        intake=replace(
            TARGET.replica.intake,
            queued_bytes=10,
            queued_age_s=1.5,
            journal_bytes=11,
            journal_size_bytes=12,
            held_age_s=2.5,
        ),
    ),
    stages=(replace(stage("v-applier"), values=replace(APPLIER, bad_messages=6, links=LINKS)),),
    events={"consistent": 5, "health": 8},
)

SAMPLES_OF_SOURCE = {
    'bdr_health{health="healthy"}': 0,
    'bdr_health{health="degraded"}': 0,
    'bdr_health{health="resyncing"}': 1,
    'bdr_health{health="behind"}': 0,
    'bdr_health{health="unknown"}': 0,
    'bdr_health{health="broken"}': 0,
    'bdr_health{health="promoted"}': 0,
    "bdr_rpo_seconds": 10,
    "bdr_rpo_exceeded": 1,
    "bdr_monitor_uptime_seconds": 3600,
    "bdr_monitor_lost_log_lines_total": 0,
    "bdr_seconds_behind": 0.25,
    "bdr_bytes_behind": 40960,
    "bdr_catch_up_seconds": 1.5,
    "bdr_captured_slots_total": 100,
    "bdr_captured_bytes_total": 409600,
    "bdr_acknowledged_slots_total": 90,
    "bdr_acknowledged_bytes_total": 368640,
    'bdr_sent_batches_total{stage="sender",process="v-sender-1"}': 5,
    'bdr_sent_slots_total{stage="sender",process="v-sender-1"}': 100,
    'bdr_sent_bytes_total{stage="sender",process="v-sender-1"}': 410400,
    "bdr_ring_capacity_slots": 1024,
    "bdr_ring_used_slots": 10,
    "bdr_ring_overflowing": 1,
    "bdr_overflows_total": 2,
    "bdr_missed_writes_total": 5,
    "bdr_failed_writes_total": 3,
    "bdr_regions": 256,
    "bdr_dirty_regions": 7,
    "bdr_resync_running": 1,
    "bdr_scan_compared_bytes_total": 8192,
    "bdr_scan_repaired_bytes_total": 4096,
    "bdr_verified_timestamp_seconds": 1767323045,
    "bdr_verify_differing_bytes": 8192,
    "bdr_verify_unrepaired_bytes": 4096,
    "bdr_connected": 0,
    'bdr_connects_total{stage="sender",process="v-sender-1"}': 2,
    'bdr_disconnects_total{stage="sender",process="v-sender-1"}': 0,
    'bdr_handshakes_failed_total{stage="sender",process="v-sender-1"}': 0,
    'bdr_authentications_failed_total{stage="sender",process="v-sender-1"}': 0,
    'bdr_replica_condition{condition="consistent"}': 1,
    'bdr_replica_condition{condition="catching_up"}': 0,
    'bdr_replica_condition{condition="inconsistent"}': 0,
    'bdr_replica_condition{condition="unknown"}': 0,
    'bdr_replica_condition{condition="unverified"}': 0,
    'bdr_process_reporting{stage="sender",process="v-sender-1"}': 1,
    'bdr_process_reporting{stage="sender",process="v-sender-2"}': 0,
    'bdr_report_age_seconds{stage="sender",process="v-sender-1"}': 0.25,
    'bdr_report_age_seconds{stage="sender",process="v-sender-2"}': 0.5,
    'bdr_process_restarts_total{stage="sender",process="v-sender-1"}': 0,
    'bdr_process_waiting{stage="sender",process="v-sender-1"}': 0,
    'bdr_lost_log_lines_total{stage="sender",process="v-sender-1"}': 0,
    'bdr_process_restarts_total{stage="sender",process="v-sender-2"}': 2,
    'bdr_process_waiting{stage="sender",process="v-sender-2"}': 0,
    'bdr_lost_log_lines_total{stage="sender",process="v-sender-2"}': 0,
    'bdr_events_total{event="consistent"}': 1,
    'bdr_hooks_total{outcome="run"}': 1,
    'bdr_hooks_total{outcome="failed"}': 2,
    'bdr_hooks_total{outcome="dropped"}': 3,
}
SAMPLES_OF_TARGET = {
    'bdr_health{health="healthy"}': 1,
    'bdr_health{health="degraded"}': 0,
    'bdr_health{health="resyncing"}': 0,
    'bdr_health{health="behind"}': 0,
    'bdr_health{health="unknown"}': 0,
    'bdr_health{health="broken"}': 0,
    'bdr_health{health="promoted"}': 0,
    "bdr_rpo_seconds": 10,
    "bdr_rpo_exceeded": 0,
    "bdr_monitor_uptime_seconds": 3600,
    "bdr_monitor_lost_log_lines_total": 0,
    "bdr_seconds_behind": 0.5,
    "bdr_connected": 1,
    'bdr_connects_total{stage="applier",process="v-applier"}': 4,
    'bdr_disconnects_total{stage="applier",process="v-applier"}': 3,
    'bdr_handshakes_failed_total{stage="applier",process="v-applier"}': 2,
    'bdr_authentications_failed_total{stage="applier",process="v-applier"}': 1,
    'bdr_replica_condition{condition="consistent"}': 1,
    'bdr_replica_condition{condition="catching_up"}': 0,
    'bdr_replica_condition{condition="inconsistent"}': 0,
    'bdr_replica_condition{condition="unknown"}': 0,
    'bdr_replica_condition{condition="unverified"}': 0,
    "bdr_queued_bytes": 10,
    "bdr_queued_age_seconds": 1.5,
    "bdr_held_age_seconds": 2.5,
    "bdr_last_ack_age_seconds": 0.25,
    "bdr_journal_bytes": 11,
    "bdr_journal_size_bytes": 12,
    'bdr_applied_bytes_total{stage="applier",process="v-applier"}': 368640,
    'bdr_bad_messages_total{stage="applier",process="v-applier"}': 6,
    'bdr_process_reporting{stage="applier",process="v-applier"}': 1,
    'bdr_report_age_seconds{stage="applier",process="v-applier"}': 0.25,
    'bdr_process_restarts_total{stage="applier",process="v-applier"}': 0,
    'bdr_process_waiting{stage="applier",process="v-applier"}': 0,
    'bdr_lost_log_lines_total{stage="applier",process="v-applier"}': 0,
    'bdr_events_total{event="consistent"}': 5,
    'bdr_events_total{event="health"}': 8,
    'bdr_hooks_total{outcome="run"}': 0,
    'bdr_hooks_total{outcome="failed"}': 0,
    'bdr_hooks_total{outcome="dropped"}': 0,
}


def samples(status: VolumeStatus) -> dict[str, float]:
    """What is scraped; without the labels that every sample has."""
    found = {}
    for family in families(METRICS, status):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("volume"), labels.pop("role")) == ("v", status.role.value)
            words = ",".join(f'{name}="{value}"' for name, value in labels.items())
            found[f"{sample.name}{{{words}}}" if words else sample.name] = sample.value
    return found


@pytest.mark.parametrize(
    ("status", "wanted"),
    [(LATE_SOURCE, SAMPLES_OF_SOURCE), (LATE_TARGET, SAMPLES_OF_TARGET)],
    ids=["source", "target"],
)
def test_names_labels_and_values_that_are_scraped_stay_what_they_are(
    status: VolumeStatus, wanted: dict[str, float]
) -> None:
    assert samples(status) == wanted


def test_a_metric_of_the_other_side_is_not_served() -> None:
    served = [{family.name for family in families(METRICS, each)} for each in (SOURCE, TARGET)]
    assert "bdr_ring_used_slots" in served[0] - served[1]
    assert "bdr_queued_bytes" in served[1] - served[0]


def test_what_is_unknown_has_no_sample() -> None:
    assert SOURCE.lag
    unknown = replace(
        SOURCE,
        lag=replace(SOURCE.lag, seconds=None, slots=None, catch_up_s=None),
        ring=None,
        resync=None,
        verification=None,
        connection=replace(SOURCE.connection, state=None, is_up=None),
        replica=replace(SOURCE.replica, condition=None),
        stages=(replace(stage("v-reader", StageState.STARTING), values=None),),
        events={},
    )
    assert {name.split("{")[0] for name in samples(unknown)} == {
        *(metric.name for metric in OF_MONITOR),
        "bdr_process_reporting",
        "bdr_report_age_seconds",
        "bdr_process_restarts_total",
        "bdr_process_waiting",
        "bdr_lost_log_lines_total",
        "bdr_monitor_lost_log_lines_total",
        "bdr_hooks_total",
    }


def test_each_metric_is_declared_once_and_typed_by_its_name() -> None:
    assert max(Counter(metric.name for metric in METRICS).values()) == 1
    for metric in METRICS:
        assert metric.help
        assert "|" not in metric.help
        is_total = metric.name.endswith("_total")
        assert metric.type is (MetricType.COUNTER if is_total else MetricType.GAUGE)


@pytest.mark.parametrize("name", docs.PARTS)
def test_page_is_what_the_code_says(name: str) -> None:
    assert docs.page(name) == (ROOT / "docs" / name).read_text(), "stale: run `make docs`"


@pytest.mark.parametrize(
    "path", ["prometheus-rules.yml", "prometheus-rules-test.yml", "grafana-dashboard.json"]
)
def test_rules_and_dashboard_ask_for_metrics_and_labels_that_exist(path: str) -> None:
    text = (ROOT / "deploy" / path).read_text()
    asked = set(re.findall(r"\bbdr_\w+", text))
    assert len(asked) > 8
    assert asked <= {metric.name for metric in METRICS}
    if path.endswith(".json"):
        text = " ".join(
            target["expr"]
            for panel in json.loads(text)["panels"]
            for target in panel.get("targets", [])
        )
    labels = {metric.name: {"volume", "role", "instance", *metric.labels} for metric in METRICS}
    for name, selector in re.findall(r"\b(bdr_\w+)\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)=", selector.replace("=~", "="))) <= labels[name], name
