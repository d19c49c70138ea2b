# SPDX-License-Identifier: GPL-2.0-only
"""Diagrams of the machines' tables, in Mermaid, and their ignored events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bdr.common.machine import Machine
from bdr.common.scan.job import Job
from bdr.common.source.consistency import Consistency
from bdr.common.source.lease import Lease
from bdr.common.source.overflow import OverflowPacing
from bdr.common.source.session import Session as SourceSession
from bdr.common.target.before_resync import BeforeResync
from bdr.common.target.session import Session as TargetSession

MACHINES: Mapping[str, type[Machine[Any]]] = {
    "source-session": SourceSession,
    "consistency": Consistency,
    "overflow": OverflowPacing,
    "lease": Lease,
    "scan-job": Job,
    "target-session": TargetSession,
    "before-resync": BeforeResync,
}


def parts() -> dict[str, Callable[[], str]]:
    """Name of a machine to the generator of its diagram."""
    return {name: partial(diagram, machine) for name, machine in MACHINES.items()}


def diagram(machine: type[Machine[Any]]) -> str:
    """The machine's states, its transitions, and the events that a state ignores."""
    edges: dict[tuple[str, str], list[str]] = {}
    ignored: list[str] = []
    for state, row in machine.TABLE.items():
        passed = [event.__name__ for event, edge in row.items() if edge.handler is None]
        if passed:
            ignored.append(f"- {state.name}: {', '.join(passed)}")
        for event, edge in row.items():
            if edge.handler is not None:
                for after in edge.to or (state,):
                    edges.setdefault((state.name, after.name), []).append(event.__name__)
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [
        f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in edges.items()
    ]
    lines.append("```")
    if ignored:
        lines += ["", "Ignored:", "", *ignored]
    return "\n".join(lines) + "\n"
