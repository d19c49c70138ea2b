# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus' view of a volume's status: `/metrics` over HTTP.

A thread serves it; it reads the last status, which the monitor replaces as a
whole, so the two never wait for each other. Of a monitor that hangs nothing is served
but that the health is unknown. What the metrics are: `common.status.metrics`.
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
"""A monitor that lives has a new status several times a second."""

_Family = CounterMetricFamily | GaugeMetricFamily
_FAMILIES: dict[MetricType, type[_Family]] = {
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.GAUGE: GaugeMetricFamily,
}


class Exporter(Collector):
    """Serves what `status` holds.

    Args:
        address: of this host.
        port: for HTTP.

    Raises:
        AddressError: the port is in use.
    """

    def __init__(self, address: str, port: int) -> None:
        self._last: tuple[VolumeStatus, float] | None = None
        """The last status, and when it came."""
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
        """The whole status, each time it is asked for."""
        if self._last is None:
            return iter(())
        status, put_at = self._last
        if time.monotonic() - put_at > STALE_AFTER_S:
            return families(OF_MONITOR, replace(status, health=HealthState.UNKNOWN))
        return families(METRICS, status)

    def put(self, status: VolumeStatus) -> None:
        """What is true as of now."""
        self._last = status, time.monotonic()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def families(metrics: Iterable[Metric], status: VolumeStatus) -> Iterator[_Family]:
    """These metrics of a status, those that its side has."""
    volume = {"volume": status.volume, "role": status.role.value}
    for metric in metrics:
        if status.role not in metric.roles:
            continue
        family = _FAMILIES[metric.type](metric.name, metric.help, labels=[*volume, *metric.labels])
        for labels, value in metric.samples(status):
            family.add_metric([*volume.values(), *labels], float(value))
        yield family
