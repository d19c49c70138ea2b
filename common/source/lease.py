# SPDX-License-Identifier: GPL-2.0-only
"""A lease: some chunks that one scanner compares, or one command verifies.

From its opening until it is committed or ended, every sector of its chunks that a live
batch covers is noted in its exclusions.

- WAITING: of a command; its grant waits until everything dispatched before is durable.
- GRANTED: being compared.
- COMMITTING: its repairs wait for numbers. However long that takes, they are somebody's.
- COMMITTED: numbered; its regions are cleared when the batches up to `barrier` are durable.
- ENDING: of a command; ends when everything up to `barrier` has been dispatched.
- CLOSED: over.
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
    """See the module's text."""

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
    """A VERIFY-END came; `head` is the ring's as of then."""

    head: int


@dataclass(frozen=True, slots=True)
class Numbered:
    """Its batches have numbers; `done` may be cleared when `barrier` is durable."""

    barrier: int
    done: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Completed:
    """Everything that it waited for has happened."""


@dataclass(frozen=True, slots=True)
class Expired:
    """It has been open for too long."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Batches, marks or a scanner were lost: what it has found is worth nothing."""


class Lease(Machine[LeaseState]):
    """See the module's text.

    Args:
        number: by which its peer names it.
        request: of the peer's question.
        opened_at: monotonic, seconds.
        barrier: of a command's, the batch that must be durable before it is granted; None
            for a scanner's, which is granted at once.
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
        self.opened_at = opened_at
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
        self.exclusions = Exclusions(())  # a flag for each sector: not to be kept
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
