# SPDX-License-Identifier: GPL-2.0-only
"""State machines as literal tables.

A machine is a class with a `TABLE`: state, to event class, to what happens. An entry is
`goes(handler, *states)`, the handler and the states in which it may leave the machine, or
`IGNORED`. A pair that is not in the table is impossible: it raises.

    TABLE: ClassVar[Table[Phase]] = {
        Phase.OFFLINE: {LinkUp: goes(_greet, Phase.GREETING), LinkDown: IGNORED},
        ...
    }

`fire` is the only way in. Each transition is kept in the story, of which an error shows
the last ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from bdr.common.errors import InternalError

S = TypeVar("S", bound=Enum)
STORY_LINES = 32
STORY_LINE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Edge:
    """What happens for an event in a state; without a handler nothing does."""

    handler: Callable[[Any, Any], None] | None
    to: tuple[Enum, ...]
    """States in which the handler may leave the machine; none for the same."""


IGNORED = Edge(None, ())
Table = Mapping[S, Mapping[type, Edge]]


def goes(handler: Callable[[Any, Any], None], *to: Enum) -> Edge:
    """An edge: `handler(machine, event)`, which leaves the machine in one of these states."""
    return Edge(handler, to)


def stays(handler: Callable[[Any, Any], None]) -> Edge:
    """An edge whose handler leaves the machine in the state that it was in."""
    return Edge(handler, ())


class Story:
    """The last things that happened, for the message of an internal error."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=STORY_LINES)

    def add(self, line: str) -> None:
        """Keeps a line; of a long one only its begin."""
        self._lines.append(line[:STORY_LINE_CHARACTERS])

    def error(self, what: str) -> InternalError:
        """An internal error that tells the story."""
        return InternalError(f"{what}; story: {list(self._lines)}")


class Machine(Generic[S]):
    """See the module's text.

    Args:
        state: where it begins.
        story: kept with that of the machines around it.
    """

    TABLE: ClassVar[Table[Any]]

    def __init__(self, state: S, story: Story) -> None:
        self.state = state
        self._story = story

    def fire(self, event: object) -> None:
        """Takes one event.

        Raises:
            InternalError: the event is impossible in this state, or its handler has left
                the table.
        """
        before, kind = self.state, type(event)
        edge = self.TABLE[before].get(kind)
        if edge is None:
            raise self._story.error(
                f"{type(self).__name__}: {kind.__name__} is impossible in {before.name}"
            )
        if edge.handler is not None:
            edge.handler(self, event)
            if self.state not in (edge.to or (before,)):
                raise self._story.error(
                    f"{type(self).__name__}: {before.name} -> {self.state.name} for "
                    f"{kind.__name__} is not in the table"
                )
        self._moved(before, kind, self.state)

    def _moved(self, before: S, event: type, after: S) -> None:
        """Called after each event that the table has."""
        if after is not before:
            self._story.add(
                f"{type(self).__name__} {before.name} <- {event.__name__}: {after.name}"
            )
