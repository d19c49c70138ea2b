# SPDX-License-Identifier: GPL-2.0-only
"""Known bugs, to be planted: each must be found, or the checkers do not bite.

A bug is a function that patches one rule away. `focus` changes the options that a
seed draws, where the bug needs some special world to show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from unittest import mock

from bdr.common.machine import IGNORED, Edge, Machine

Patch = AbstractContextManager[Any]


@dataclass(frozen=True)
class Bug:
    """One rule that is broken on purpose."""

    name: str
    plant: Callable[[], Patch]
    focus: dict[str, Any] = field(default_factory=dict)


BUGS: list[Bug] = []


def bug(**focus: Any) -> Callable[[Callable[[], Patch]], Callable[[], Patch]]:
    """Puts the function's bug on the list."""

    def enlist(plant: Callable[[], Patch]) -> Callable[[], Patch]:
        BUGS.append(Bug(plant.__name__, plant, focus))
        return plant

    return enlist


def nothing(*_: Any, **__: Any) -> None:
    """Takes a rule's place."""


def yes(*_: Any) -> bool:
    """Takes a rule's place."""
    return True


def no(*_: Any) -> bool:
    """Takes a rule's place."""
    return False


def zeros(*_: Any) -> bytes:
    """Takes a checksum's place."""
    return bytes(16)


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Replaces `owner.name` by what `make` makes of it."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def ignored(machine: type[Machine[Any]], state: Enum, event: type) -> Patch:
    """Has a machine ignore an event in a state."""
    return mock.patch.dict(machine.TABLE[state], {event: IGNORED})


def followed(
    machine: type[Machine[Any]], state: Enum, event: type, then: Callable[[Any, Any], None]
) -> Patch:
    """Does something more behind a machine's handler."""
    edge = machine.TABLE[state][event]

    def handler(self: Any, what: Any) -> None:
        if edge.handler is not None:
            edge.handler(self, what)
        then(self, what)

    return mock.patch.dict(machine.TABLE[state], {event: Edge(handler, edge.to)})


def handled(node: Any, event: type, make: Callable[[Any], Any]) -> Patch:
    """Replaces a node's handler of an event by what `make` makes of it."""
    return mock.patch.dict(node._HANDLERS, {event: make(node._HANDLERS[event])})


def all_of(*patches: Patch) -> Patch:
    """Several patches as one."""
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack
