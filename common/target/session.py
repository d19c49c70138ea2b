# SPDX-License-Identifier: GPL-2.0-only
"""A source's session at its target.

- NONE: no source.
- OPENING: a HELLO was admitted; its WELCOME is sent when everything accepted before, and the new
  epoch, are durable.
- OPEN: batches are accepted.
- BROKEN: no more batches are accepted; `close_reason` was sent to its source, and is sent again at
  each PING, since the message may have been lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from bdr.common.machine import IGNORED, Machine, Story, Table, goes, stays
from bdr.common.target.events import Durable, Peer
from bdr.common.wire.control import Refused, Rewind


class SessionState(Enum):
    """See the module's docstring."""

    NONE = auto()
    OPENING = auto()
    OPEN = auto()
    BROKEN = auto()


@dataclass(frozen=True, slots=True)
class Admitted:
    """A HELLO of `peer` was admitted; `job` makes its epoch durable."""

    peer: Peer
    attempt: int
    job: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same source sent HELLO again, before its WELCOME was sent."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The next batch in order became this job."""

    job: int


@dataclass(frozen=True, slots=True)
class Broken:
    """No more batches can be accepted; `close_reason` is sent to the source."""

    close_reason: Rewind | Refused


@dataclass(frozen=True, slots=True)
class Closed:
    """The process ends."""


class Session(Machine[SessionState]):
    """See the module's docstring. Batches are numbered 1, 2, 3 ... within a session."""

    def __init__(self, story: Story) -> None:
        super().__init__(SessionState.NONE, story)
        self._forget()

    def _forget(self) -> None:
        self.peer: Peer = b""
        self.attempt = 0
        self.accepted = 0
        """Every batch up to this number has arrived."""
        self.durable = 0
        """Every batch up to this number is durable."""
        self.close_reason: Rewind | Refused | None = None
        self._opened_by = 0
        self._jobs: deque[tuple[int, int]] = deque()
        """(job, batch number) of those that are not durable yet."""

    @property
    def is_open(self) -> bool:
        """Whether batches are accepted."""
        return self.state is SessionState.OPEN

    # Handlers.

    def _on_admitted(self, admitted: Admitted) -> None:
        self._forget()
        self.peer, self.attempt = admitted.peer, admitted.attempt
        self._opened_by = admitted.job
        self.state = SessionState.OPENING

    def _on_repeated(self, repeated: Repeated) -> None:
        self.attempt = repeated.attempt

    def _on_durable_opening(self, durable: Durable) -> None:
        if durable.job >= self._opened_by:
            self.state = SessionState.OPEN

    def _on_accepted(self, accepted: Accepted) -> None:
        self.accepted += 1
        self._jobs.append((accepted.job, self.accepted))

    def _on_durable(self, durable: Durable) -> None:
        while self._jobs and self._jobs[0][0] <= durable.job:
            self.durable = self._jobs.popleft()[1]

    def _on_broken(self, broken: Broken) -> None:
        self.close_reason = broken.close_reason
        self.state = SessionState.BROKEN

    def _on_closed(self, _: Closed) -> None:
        self._forget()
        self.state = SessionState.NONE

    TABLE: ClassVar[Table[SessionState]] = {
        SessionState.NONE: {
            Admitted: goes(_on_admitted, SessionState.OPENING),
            Durable: IGNORED,
            Closed: IGNORED,
        },
        SessionState.OPENING: {
            Admitted: stays(_on_admitted),
            Repeated: stays(_on_repeated),
            Durable: goes(_on_durable_opening, SessionState.OPENING, SessionState.OPEN),
            Closed: goes(_on_closed, SessionState.NONE),
        },
        SessionState.OPEN: {
            Admitted: goes(_on_admitted, SessionState.OPENING),
            Accepted: stays(_on_accepted),
            Durable: stays(_on_durable),
            Broken: goes(_on_broken, SessionState.BROKEN),
            Closed: goes(_on_closed, SessionState.NONE),
        },
        SessionState.BROKEN: {
            Admitted: goes(_on_admitted, SessionState.OPENING),
            Durable: stays(_on_durable),
            Closed: goes(_on_closed, SessionState.NONE),
        },
    }
