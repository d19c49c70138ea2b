# SPDX-License-Identifier: GPL-2.0-only
"""A lease: chunks that one scanner compares, or one command verifies.

From its opening until it is committed or ended, every sector of its chunks that a live batch covers
is added to its exclusions.

- WAITING: command only; granted when everything dispatched before is durable.
- GRANTED: being compared.
- COMMITTING: its repairs wait for batch numbers. It does not expire.
- COMMITTED: numbered; its regions are cleared when the batches up to `barrier` are durable.
- ENDING: command only; ends when everything up to `barrier` has been dispatched.
- CLOSED: final state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from bdr.common.machine import Machine, Story, Table, goes
from bdr.common.scan.plan import Chunk
from bdr.common.source.events import Peer
from bdr.common.source.exclusions import Exclusions
from bdr.common.wire.scan import Commit


class LeaseState(Enum):
    """See the module's docstring."""

    WAITING = auto()
    GRANTED = auto()
    COMMITTING = auto()
    COMMITTED = auto()
    ENDING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Granted:
    """Everything dispatched before is durable: the lease was sent to its peer."""


@dataclass(frozen=True, slots=True)
class EndRequested:
    """A VERIFY-END arrived; `head` is the ring's at that time."""

    head: int


@dataclass(frozen=True, slots=True)
class Numbered:
    """Its batches have numbers; `done` may be cleared when `barrier` is durable."""

    barrier: int
    done: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Completed:
    """Its barrier was reached."""


@dataclass(frozen=True, slots=True)
class Expired:
    """Its peer has not renewed it for `lease_s`."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Batches, marks or a scanner were lost: its results are invalid."""


class Lease(Machine[LeaseState]):
    """See the module's docstring.

    Args:
        number: its identifier in messages.
        request: number of the peer's request.
        opened_at: monotonic, seconds.
        barrier: for a command, the batch that must be durable before it is granted; None for a
            scanner, whose lease is granted at once.
    """

    def __init__(
        self,
        *,
        number: int,
        peer: Peer,
        request: int,
        chunks: list[Chunk],
        opened_at: float,
        barrier: int | None,
        story: Story,
    ) -> None:
        is_verify = barrier is not None
        super().__init__(LeaseState.WAITING if is_verify else LeaseState.GRANTED, story)
        self.number = number
        self.peer = peer
        self.request = request
        self.chunks = chunks
        self.renewed_at = opened_at
        """When its peer last showed that it is at work on it."""
        self.is_verify = is_verify
        self.exclusions = Exclusions(chunks)
        self.barrier = barrier or 0
        """Number of a batch, or while ENDING a slot."""
        self.commit: Commit | None = None
        self.done: Sequence[Chunk] = ()

    # Handlers.

    def _grant(self, _: Granted) -> None:
        self.state = LeaseState.GRANTED

    def _on_commit(self, commit: Commit) -> None:
        self.commit = commit
        self.state = LeaseState.COMMITTING

    def _on_end(self, asked: EndRequested) -> None:
        self.barrier = asked.head
        self.state = LeaseState.ENDING

    def _on_numbered(self, numbered: Numbered) -> None:
        self.barrier, self.done = numbered.barrier, numbered.done
        self.exclusions = Exclusions(())  # no longer needed: one flag per sector
        self.state = LeaseState.COMMITTED

    def _close(self, _: object) -> None:
        self.state = LeaseState.CLOSED

    TABLE: ClassVar[Table[LeaseState]] = {
        LeaseState.WAITING: {
            Granted: goes(_grant, LeaseState.GRANTED),
            Expired: goes(_close, LeaseState.CLOSED),
            Lost: goes(_close, LeaseState.CLOSED),
        },
        LeaseState.GRANTED: {
            Commit: goes(_on_commit, LeaseState.COMMITTING),
            EndRequested: goes(_on_end, LeaseState.ENDING),
            Expired: goes(_close, LeaseState.CLOSED),
            Lost: goes(_close, LeaseState.CLOSED),
        },
        LeaseState.COMMITTING: {
            Numbered: goes(_on_numbered, LeaseState.COMMITTED),
            Lost: goes(_close, LeaseState.CLOSED),
        },
        LeaseState.COMMITTED: {
            Completed: goes(_close, LeaseState.CLOSED),
            Lost: goes(_close, LeaseState.CLOSED),
        },
        LeaseState.ENDING: {
            Completed: goes(_close, LeaseState.CLOSED),
            Expired: goes(_close, LeaseState.CLOSED),
            Lost: goes(_close, LeaseState.CLOSED),
        },
        LeaseState.CLOSED: {},
    }
