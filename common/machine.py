# SPDX-License-Identifier: GPL-2.0-only
"""State machines as literal tables.

A machine is a class with a `TABLE`: state, to event class, to edge. An edge is `goes(handler,
*states)`, a handler and the possible next states, or `IGNORED`. A pair that is not in the table is
impossible: it raises.

    TABLE: ClassVar[Table[Phase]] = {
        Phase.OFFLINE: {LinkUp: goes(_greet, Phase.GREETING), LinkDown: IGNORED},
        ...
    }

`fire` is the only entry point. Transitions are recorded in the story; an error shows the last of
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from bdr.common.errors import InternalError

S = TypeVar("S", bound=Enum)
STORY_LINES = 32
STORY_LINE_CHARACTERS = 200
STORY_VALUE_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Edge:
    """The reaction to an event in a state; without a handler the event is ignored."""

    handler: Callable[[Any, Any], None] | None
    to: tuple[Enum, ...]
    """Possible next states; empty: the state does not change."""


IGNORED = Edge(None, ())
Table = Mapping[S, Mapping[type, Edge]]


def goes(handler: Callable[[Any, Any], None], *to: Enum) -> Edge:
    """An edge: `handler(machine, event)`, after which the state is one of these."""
    return Edge(handler, to)


def stays(handler: Callable[[Any, Any], None]) -> Edge:
    """An edge whose handler does not change the state."""
    return Edge(handler, ())


def brief(value: object) -> str:
    """An event for the story: of a container or a long value only its length.

    Digests and ranges of a message have up to 64 KiB, whose text would be truncated anyway.
    """
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (bytes, str)) and len(value) <= STORY_VALUE_LENGTH:
        return repr(value)
    kind = type(value).__name__
    if isinstance(value, (bytes, str, list, tuple, dict)):
        return f"<{kind} of {len(value)}>"
    if not is_dataclass(value):
        return repr(value)
    names = value.__dataclass_fields__
    return f"{kind}({', '.join([f'{name}={brief(getattr(value, name))}' for name in names])})"


class Story:
    """A bounded trace of recent events, for the message of an internal error."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=STORY_LINES)

    def add(self, line: str) -> None:
        """Appends a line, truncated to `STORY_LINE_CHARACTERS`."""
        self._lines.append(line[:STORY_LINE_CHARACTERS])

    def error(self, what: str) -> InternalError:
        """An internal error whose message includes the story."""
        return InternalError(f"{what}; story: {list(self._lines)}")


class Machine(Generic[S]):
    """See the module's docstring.

    Args:
        state: the initial one.
        story: shared with the machines of the same node.
    """

    TABLE: ClassVar[Table[Any]]

    def __init__(self, state: S, story: Story) -> None:
        self.state = state
        self._story = story

    def fire(self, event: object) -> None:
        """Handles one event.

        Raises:
            InternalError: the event is impossible in this state, or the next state is not in the
                table.
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
        """Called after each event; overridden by tests."""
        if after is not before:
            self._story.add(
                f"{type(self).__name__} {before.name} <- {event.__name__}: {after.name}"
            )
