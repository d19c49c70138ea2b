# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus' view of a volume's status: `/metrics` over HTTP.

A thread serves it; it reads the last status, which the monitor replaces as a
whole, so the two never wait for each other. Of a monitor that hangs nothing is told
but that the health is unknown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

from bdr.common.errors import AddressError
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.status.health import Word

STALE_AFTER_S = 5.0
"""A monitor that lives has a new status several times a second."""

_COUNTED_BY_ANY = {
    "bad_messages": "Messages that were none of this protocol",
    "connects": "Connections established",
    "disconnects": "Connections ended",
    "handshakes_failed": "Connections that failed to greet",
    "authentications_failed": "Connections refused for their key",
}
"""What processes of several stages count, under these names in their reports."""

_Status = Mapping[str, Any]


class Exporter(Collector):
    """Serves what `status` holds.

    Args:
        address: of this host.
        port: for HTTP.

    Raises:
        AddressError: the port is in use.
    """

    def __init__(self, address: str, port: int) -> None:
        self._status: _Status = {}
        self._status_s = 0.0
        registry = CollectorRegistry(auto_describe=False)
        try:
            server, thread = start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            raise AddressError(
                f"cannot serve metrics on {address}:{port}: {error.strerror}; wanted a free port: "
                "give each volume a metrics_port of its own"
            ) from error
        self._server: WSGIServer = server
        self._thread: threading.Thread = thread
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The whole status, each time it is asked for."""
        status = self._status
        if not status:
            return iter(())
        if time.monotonic() - self._status_s > STALE_AFTER_S:
            return _health({**status, "health": Word.UNKNOWN.value}, _labels(status))
        return families(status)

    def put(self, status: _Status) -> None:
        """What is true as of now."""
        self._status, self._status_s = status, time.monotonic()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def families(status: _Status) -> Iterator[Metric]:
    """Every metric of a status; docs/metrics.md describes each."""
    volume = _labels(status)
    yield from _health(status, volume)
    yield from _lag(status, volume)
    if status["ring"] is not None:
        yield from _ring(status["ring"], volume)
    if status["resync"] is not None:
        yield from _resync(status["resync"], volume)
    yield from _link(status, volume)
    yield from _replica(status, volume)
    yield from _stages(status, volume)
    yield _counter("bdr_events", "Events by name", volume, "event", status["events"])
    yield _counter("bdr_hooks", "Commands run on events, by outcome", volume, "outcome",
                   status["hooks"])  # fmt: skip


def _labels(status: _Status) -> dict[str, str]:
    return {"volume": status["volume"], "role": status["role"]}


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float | None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    if value is not None:
        family.add_metric(list(labels.values()), float(value))
    return family


def _total(name: str, text: str, labels: Mapping[str, str], value: float | None) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    if value is not None:
        family.add_metric(list(labels.values()), float(value))
    return family


def _counter(
    name: str, text: str, labels: Mapping[str, str], label: str, values: Mapping[str, int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=[*labels, label])
    for key, value in values.items():
        family.add_metric([*labels.values(), key], value)
    return family


def _health(status: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "bdr_health", "1 for the word that applies, 0 for the others", labels=[*volume, "health"]
    )
    for word in Word:
        family.add_metric([*volume.values(), word.value], float(word.value == status["health"]))
    yield family
    yield _gauge("bdr_rpo_seconds", "How far behind it may be", volume, status["rpo_seconds"])
    yield _gauge(
        "bdr_rpo_exceeded", "1 while it is further behind", volume, status["is_rpo_exceeded"]
    )
    yield _gauge(
        "bdr_monitor_uptime_seconds",
        "Age of the monitor; a monitor that hangs stops counting",
        volume,
        status["monitor_uptime_seconds"],
    )


def _lag(status: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    if status["role"] != "source":
        return
    for name, text, key in (
        ("bdr_seconds_behind", "Age of the oldest write not durable on the target",
         "seconds_behind"),
        ("bdr_bytes_behind", "Payload not durable on the target, in whole slots", "bytes_behind"),
        ("bdr_catch_up_seconds", "Until level at the present rates; absent if never",
         "catch_up_seconds"),
    ):  # fmt: skip
        yield _gauge(name, text, volume, status[key])


def _ring(ring: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    yield _total("bdr_captured_slots", "Slots written by the source", volume, ring["head"])
    yield _total(
        "bdr_captured_bytes", "The same in bytes of slots", volume, ring["head"] * PAYLOAD_BYTES
    )
    yield _total("bdr_acknowledged_slots", "Slots durable on the target", volume, ring["tail"])
    yield _total(
        "bdr_acknowledged_bytes", "The same in bytes of slots", volume, ring["tail"] * PAYLOAD_BYTES
    )
    yield _gauge("bdr_ring_capacity_slots", "Size of the ring", volume, ring["capacity"])
    yield _gauge("bdr_ring_used_slots", "Slots not released yet", volume, ring["used"])
    yield _gauge("bdr_ring_overflowing", "1 in OVERFLOW", volume, ring["mode"] == "OVERFLOW")
    yield _total("bdr_overflows", "Times that the ring was full", volume, ring["overflows"])
    yield _total("bdr_missed_writes", "Writes only marked as dirty", volume, ring["missed_writes"])
    yield _total("bdr_failed_writes", "Writes that the device refused", volume,
                 ring["failed_writes"])  # fmt: skip
    yield _gauge("bdr_regions", "Regions of the device", volume, ring["regions"])
    yield _gauge("bdr_dirty_regions", "Regions that await a resync", volume, ring["dirty_regions"])


def _resync(resync: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    yield _gauge("bdr_resync_running", "1 while scanners copy", volume, resync["is_running"])
    for key, text in (
        ("compared_bytes", "Compared with the target since the reader's start"),
        ("repaired_bytes", "Found different and sent since the reader's start"),
    ):
        yield _total(f"bdr_scan_{key}", text, volume, resync[key])


def _link(status: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    link = status["connection"]
    yield _gauge("bdr_connected", "1 while source and target talk; absent if unknown", volume,
                 link["is_up"])  # fmt: skip


def _replica(status: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    replica = status["replica"]
    condition = replica["condition"]
    family = GaugeMetricFamily(
        "bdr_replica_condition", "1 for the condition that applies", labels=[*volume, "condition"]
    )
    if condition is not None:
        for name in ("CONSISTENT", "CATCHING_UP", "INCONSISTENT", "UNKNOWN"):
            family.add_metric([*volume.values(), name.lower()], float(name == condition))
    yield family
    if status["role"] != "target":
        return
    for key, text in (
        ("queued_bytes", "Received and not durable"),
        ("queued_age_seconds", "Age of the oldest that is received and not durable"),
        ("last_ack_age_seconds", "Since the last acknowledgement"),
        ("journal_bytes", "Journal in use"),
        ("journal_size_bytes", "Size of the journal"),
    ):
        yield _gauge(f"bdr_{key}", text, volume, replica[key])


def _stages(status: _Status, volume: Mapping[str, str]) -> Iterator[Metric]:
    labels = [*volume, "stage", "process"]
    age = GaugeMetricFamily(
        "bdr_report_age_seconds", "Since a process last reported", labels=labels
    )
    up = GaugeMetricFamily("bdr_process_reporting", "1 while a process reports", labels=labels)
    restarts = CounterMetricFamily(
        "bdr_process_restarts", "Restarts seen by this monitor", labels=labels
    )
    counts = {
        name: CounterMetricFamily(name, text, labels=labels)
        for name, text in (
            ("bdr_sent_batches", "Batches sent, repeats included"),
            ("bdr_sent_slots", "Slots sent, repeats included"),
            ("bdr_sent_bytes", "Bytes handed to the network, repeats included"),
            ("bdr_applied_bytes", "Payload made durable since the applier's start"),
            *((f"bdr_{name}", text) for name, text in _COUNTED_BY_ANY.items()),
        )
    }
    for stage in status["stages"]:
        key = [*volume.values(), stage["stage"], stage["name"]]
        age.add_metric(key, stage["age_seconds"])
        up.add_metric(key, float(stage["state"] == "reporting"))
        restarts.add_metric(key, stage["restarts"])
        values = stage["values"]
        prefix = "bdr_sent_" if stage["stage"] == "sender" else "bdr_applied_"
        for name in ("batches", "slots", "bytes"):
            if prefix + name in counts and name in values:
                counts[prefix + name].add_metric(key, values[name])
        for name in _COUNTED_BY_ANY:
            if name in values:
                counts[f"bdr_{name}"].add_metric(key, values[name])
    yield from (age, up, restarts, *counts.values())
