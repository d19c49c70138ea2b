# SPDX-License-Identifier: GPL-2.0-only
"""How far the replica is behind its source, as the source said last. No I/O, no clock here.

A statement holds from when the batch that brought it is durable, or a PING's at once. Since
then time passes on the target's own clock. A source that lacks nothing says so at least once a
second: until the next word is due its replica is not behind, so that second is the resolution
of what a target knows. Before the first word of a source, and while that does not know itself,
the age is not known.
"""

from __future__ import annotations

from collections import deque

from bdr.common.wire.statement import STAMP_ORIGIN_NS, Statement

WORD_S = 1.0
"""A source says at least so often how far its replica is behind; see
`SessionSettings.ping_s`."""


class Age:
    """See the module's docstring.

    Args:
        as_of_utc: of the record; 0: not known.
    """

    def __init__(self, *, as_of_utc: int) -> None:
        self.as_of_utc = as_of_utc
        """The source's wall clock up to which the replica lacks nothing; 0: not known."""
        self.words = 0
        """How many PINGs said something."""
        self._until_at: float | None = None
        self._is_complete = False
        self._said_ns = 0
        self._waiting: deque[tuple[int, Statement]] = deque()
        """By job; of those that are not durable."""

    @property
    def level_at(self) -> float | None:
        """The age is counted from this instant of the monotonic clock; None: it is not known."""
        if self._until_at is None:
            return None
        return self._until_at + (WORD_S if self._is_complete else 0.0)

    def seconds(self, now_at: float) -> float | None:
        """The age; None if it is not known."""
        level_at = self.level_at
        return None if level_at is None else max(0.0, now_at - level_at)

    def begin(self) -> None:
        """A session begins: its source may have another clock. What was known stays true."""
        self._said_ns = 0
        self._is_complete = False

    def accepted(self, job: int, statement: Statement) -> None:
        """A batch was accepted, which this job makes durable."""
        if statement.said_ns:
            self._waiting.append((job, statement))

    def durable(self, job: int) -> None:
        """Every job up to this one is durable."""
        while self._waiting and self._waiting[0][0] <= job:
            self._take(self._waiting.popleft()[1])

    def said(self, statement: Statement) -> None:
        """A PING arrived."""
        if statement.said_ns:
            self.words += 1
            self._take(statement)

    def _take(self, said: Statement) -> None:
        # What a batch says may come into force after what was said later.
        is_newest = said.said_ns >= self._said_ns
        if is_newest:
            self._said_ns = said.said_ns
            self._is_complete = said.is_complete
            self.as_of_utc = said.as_of_utc
            if not said.until_ns:
                self._until_at = None
        if said.until_at_ns and (is_newest or self._until_at is not None):
            until_at = (said.until_at_ns - STAMP_ORIGIN_NS) / 1e9
            is_later = self._until_at is None or until_at > self._until_at
            self._until_at = until_at if is_later else self._until_at
