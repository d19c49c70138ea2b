# SPDX-License-Identifier: GPL-2.0-only
"""Declaration of metrics. No I/O here.

A value of None means unknown: the metric then has no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from bdr.common.status.model import (
    IntakeStatus,
    LagStatus,
    ResyncStatus,
    RingStatus,
    StageStatus,
    VerificationStatus,
    VolumeStatus,
)
from bdr.common.status.reports import ApplierValues, LinkCounts, SenderValues
from bdr.common.status.states import VolumeRole

Sample = tuple[tuple[str, ...], float]
"""The values of a metric's own labels, and its value."""
Roles = tuple[VolumeRole, ...]
_Value = float | None
_Part = TypeVar("_Part")

SOURCE: Roles = (VolumeRole.SOURCE,)
TARGET: Roles = (VolumeRole.TARGET,)
BOTH: Roles = SOURCE + TARGET


class MetricType(Enum):
    """Types of Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as exported; that of a counter ends with `_total`.
        roles: sides that have it.
        labels: in addition to `volume` and `role`, which every metric has.
        help: what it means, in one line.
        samples: computes them from a status.
    """

    name: str
    roles: Roles
    labels: tuple[str, ...]
    help: str
    samples: Callable[[VolumeStatus], Iterable[Sample]]

    @property
    def type(self) -> MetricType:
        """By its name, as Prometheus requires."""
        return MetricType.COUNTER if self.name.endswith("_total") else MetricType.GAUGE


# One sample each.


def of_volume(name: str, text: str, value: Callable[[VolumeStatus], _Value]) -> Metric:
    """A number of the status."""
    return _of_part(name, BOTH, text, lambda status: status, value)


def of_lag(name: str, text: str, value: Callable[[LagStatus], _Value]) -> Metric:
    """A number of the replica's lag."""
    return _of_part(name, SOURCE, text, lambda status: status.lag, value)


def of_ring(name: str, text: str, value: Callable[[RingStatus], _Value]) -> Metric:
    """A number of the ring."""
    return _of_part(name, SOURCE, text, lambda status: status.ring, value)


def of_resync(name: str, text: str, value: Callable[[ResyncStatus], _Value]) -> Metric:
    """A number of the resync."""
    return _of_part(name, SOURCE, text, lambda status: status.resync, value)


def of_verification(name: str, text: str, value: Callable[[VerificationStatus], _Value]) -> Metric:
    """A number of what verifications have found."""
    return _of_part(name, SOURCE, text, lambda status: status.verification, value)


def of_intake(name: str, text: str, value: Callable[[IntakeStatus], _Value]) -> Metric:
    """A number of a target's intake."""
    return _of_part(name, TARGET, text, lambda status: status.replica.intake, value)


def _of_part(
    name: str,
    roles: Roles,
    text: str,
    part: Callable[[VolumeStatus], _Part | None],
    value: Callable[[_Part], _Value],
) -> Metric:
    def samples(status: VolumeStatus) -> Iterator[Sample]:
        found = part(status)
        known = None if found is None else value(found)
        if known is not None:
            yield (), known

    return Metric(name, roles, (), text, samples)


# One sample per process.


def by_process(
    name: str, roles: Roles, text: str, value: Callable[[StageStatus], _Value]
) -> Metric:
    """A number of each process."""

    def samples(status: VolumeStatus) -> Iterator[Sample]:
        for stage in status.stages:
            known = value(stage)
            if known is not None:
                yield (stage.stage, stage.name), known

    return Metric(name, roles, ("stage", "process"), text, samples)


def by_link(name: str, text: str, value: Callable[[LinkCounts], int]) -> Metric:
    """A count of the connections of each process that has reported."""
    return by_process(name, BOTH, text, lambda it: value(it.values.links) if it.values else None)


def by_sender(name: str, text: str, value: Callable[[SenderValues], int]) -> Metric:
    """A count of each sender that has reported."""
    return by_process(name, SOURCE, text, _if_a(SenderValues, value))


def by_applier(name: str, text: str, value: Callable[[ApplierValues], int]) -> Metric:
    """A count of each applier that has reported."""
    return by_process(name, TARGET, text, _if_a(ApplierValues, value))


def _if_a(kind: type[_Part], value: Callable[[_Part], int]) -> Callable[[StageStatus], _Value]:
    return lambda stage: value(stage.values) if isinstance(stage.values, kind) else None
