# SPDX-License-Identifier: GPL-2.0-only
"""What runs have exercised: transitions of the tables, out of those that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any
from unittest import mock

from bdr.common.machine import Machine
from deploy.state_diagrams import MACHINES

Transition = tuple[str, str, str, str]
"""Machine, state before, event, state after."""


def every_transition() -> set[Transition]:
    """Those that the tables allow; an ignored event leads to the same state."""
    found = set()
    for machine in MACHINES.values():
        for state, row in machine.TABLE.items():
            for event, edge in row.items():
                for after in edge.to or (state,):
                    found.add((_name(machine), state.name, event.__name__, after.name))
    return found


@contextmanager
def recorded(counts: Counter[Transition]) -> Iterator[None]:
    """Counts each transition that happens within."""
    moved = Machine._moved

    def record(self: Machine[Any], before: Enum, event: type, after: Enum) -> None:
        counts[_name(type(self)), before.name, event.__name__, after.name] += 1
        moved(self, before, event, after)

    with mock.patch.object(Machine, "_moved", record):
        yield


def _name(machine: type[Machine[Any]]) -> str:
    return f"{machine.__module__.removeprefix('bdr.common.')}.{machine.__name__}"
