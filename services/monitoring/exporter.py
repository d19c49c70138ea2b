# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus exporter of a volume's status: `/metrics` over HTTP.

A thread serves it from the last status, which the monitor replaces atomically, so neither blocks
the other. If the monitor hangs, only its own metrics are served, with the health unknown.
`common.status.metrics` declares the metrics.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

from bdr.common.errors import AddressError
from bdr.common.status.metric import Metric, MetricType
from bdr.common.status.metrics import METRICS, OF_MONITOR
from bdr.common.status.model import VolumeStatus
from bdr.common.status.states import HealthState

STALE_AFTER_S = 5.0
"""A running monitor updates its status several times a second."""

_Family = CounterMetricFamily | GaugeMetricFamily
_FAMILIES: dict[MetricType, type[_Family]] = {
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.GAUGE: GaugeMetricFamily,
}


class Exporter(Collector):
    """Serves the last status.

    Args:
        address: of this host.
        port: for HTTP.

    Raises:
        AddressError: the port is in use.
    """

    def __init__(self, address: str, port: int) -> None:
        self._last: tuple[VolumeStatus, float] | None = None
        """The last status, and the time of its arrival."""
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

    def collect(self) -> Iterator[_Family]:
        """The metrics of the last status, for each scrape."""
        if self._last is None:
            return iter(())
        status, put_at = self._last
        if time.monotonic() - put_at > STALE_AFTER_S:
            return families(OF_MONITOR, replace(status, health=HealthState.UNKNOWN))
        return families(METRICS, status)

    def put(self, status: VolumeStatus) -> None:
        """Replaces the status."""
        self._last = status, time.monotonic()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def families(metrics: Iterable[Metric], status: VolumeStatus) -> Iterator[_Family]:
    """Those of these metrics that the status's side has."""
    volume = {"volume": status.volume, "role": status.role.value}
    for metric in metrics:
        if status.role not in metric.roles:
            continue
        family = _FAMILIES[metric.type](metric.name, metric.help, labels=[*volume, *metric.labels])
        for labels, value in metric.samples(status):
            family.add_metric([*volume.values(), *labels], float(value))
        yield family
