# SPDX-License-Identifier: GPL-2.0-only
"""One lease in a comparer, from the request to the reader to its end.

================= =========================================== =========================
state             waits for                                   next state
================= =========================================== =========================
ACQUIRING         GRANT of the reader; repeats the request    COMPARING
COMPARING         digests of the chunks, of both sides        COMPARING_BLOCKS if any
                                                              differs, else FINISHING
COMPARING_BLOCKS  digests of the blocks of these, of both     FINISHING
FINISHING         the reader's answer to COMMIT or VERIFY-END CLOSED
CLOSED            a thread that may still use the buffer      dropped
================= =========================================== =========================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import numpy as np

from bdr.common.machine import Machine, Story, Table, goes
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.digests import BLOCK_SECTORS, differing
from bdr.common.scan.plan import Chunk, Flags, joined, unpack_bits
from bdr.common.wire.scan import Grant, Request


class JobState(Enum):
    """See the module's docstring."""

    ACQUIRING = auto()
    COMPARING = auto()
    COMPARING_BLOCKS = auto()
    FINISHING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Suspected:
    """Indexes of chunks whose digests differ, or that are unreadable."""

    chunks: list[int]


@dataclass(frozen=True, slots=True)
class Compared:
    """The differing blocks are known: the lease can be finished."""

    differing: list[tuple[int, Flags]]


@dataclass(frozen=True, slots=True)
class Closed:
    """Finished, abandoned, revoked, or a connection was lost."""


class Job(Machine[JobState]):
    """See the module's docstring.

    Args:
        number: also that of its request.
        request: to the reader.
        buffer: number of the buffer that it owns.
        requested_at: when its lease was last requested or renewed; monotonic, seconds.
    """

    def __init__(
        self, *, number: int, request: Request, buffer: int, requested_at: float, story: Story
    ) -> None:
        super().__init__(JobState.ACQUIRING, story)
        self.number = number
        self.request = request
        self.buffer = buffer
        self.requested_at = requested_at
        self.began_at = 0.0
        """When its present state began."""
        self.lease = 0
        self.epoch = 0
        self.chunks: list[Chunk] = []
        self.offsets: list[int] = []
        """Offset of each chunk in the buffer, in bytes."""
        self.bad_blocks: Mapping[int, list[int]] = {}
        """Index of a chunk, to its blocks that are unreadable on the source."""
        self.is_in_thread = False
        self.own: bytes | None = None
        self.theirs: bytes | None = None
        self.suspects: list[int] = []
        """Indexes of chunks that are compared by blocks."""
        self.own_blocks: Sequence[bytes] | None = None
        self.their_blocks: dict[int, bytes] = {}
        """By the position in `suspects` of the request's first chunk."""
        self.requested_blocks = 0
        """Number of requests for digests of blocks."""
        self.differing: list[tuple[int, Flags]] = []

    @property
    def sizes(self) -> list[int]:
        """Sectors of each chunk."""
        return [sectors for _, sectors in self.chunks]

    @property
    def size_bytes(self) -> int:
        """Size of its chunks together."""
        return sum(self.sizes) * SECTOR_BYTES

    def by_chunk(self, bits: bytes) -> list[Flags]:
        """The flags of each chunk, from packed bits of its sectors; empty bits: none is set."""
        total = sum(self.sizes)
        flags = unpack_bits(bits, total) if bits else np.zeros(total, np.bool_)
        found: list[Flags] = np.split(flags, np.cumsum(self.sizes)[:-1])
        return found

    # Comparison.

    @property
    def has_lease(self) -> bool:
        """Whether the reader has granted the lease."""
        return self.state is not JobState.ACQUIRING

    @property
    def awaits_target(self) -> bool:
        """Whether digests of the target are missing."""
        return self.state in (JobState.COMPARING, JobState.COMPARING_BLOCKS)

    @property
    def has_digests(self) -> bool:
        """Whether the digests of the chunks of both sides have arrived."""
        return self.own is not None and self.theirs is not None

    @property
    def has_block_digests(self) -> bool:
        """Whether the digests of the suspects' blocks of both sides have arrived."""
        return self.own_blocks is not None and len(self.their_blocks) == self.requested_blocks

    def suspected(self) -> list[int] | None:
        """Indexes of chunks that differ or are unreadable; None if the answer's length is wrong."""
        assert self.own is not None
        assert self.theirs is not None
        if len(self.own) != len(self.theirs):
            return None
        differs = differing(self.own, self.theirs)
        differs[list(self.bad_blocks)] = True
        found: list[int] = np.flatnonzero(differs).tolist()
        return found

    def differing_blocks(self) -> list[tuple[int, Flags]] | None:
        """Suspects and flags of their differing blocks; None if the answer's length is wrong."""
        assert self.own_blocks is not None
        theirs = b"".join(self.their_blocks[at] for at in sorted(self.their_blocks))
        if len(theirs) != sum(map(len, self.own_blocks)):
            return None
        at = 0
        found: list[tuple[int, Flags]] = []
        for index, own in zip(self.suspects, self.own_blocks, strict=True):
            blocks = differing(own, theirs[at : at + len(own)])
            blocks[self.bad_blocks.get(index, [])] = False
            at += len(own)
            found.append((index, blocks))
        return found

    def unreadable(self) -> list[Chunk]:
        """Ranges of its chunks that are unreadable on the source."""
        found = []
        for index, blocks in self.bad_blocks.items():
            sector, sectors = self.chunks[index]
            for block in blocks:
                at = block * BLOCK_SECTORS
                found.append((sector + at, min(BLOCK_SECTORS, sectors - at)))
        return joined(found)

    # Handlers.

    def _on_grant(self, grant: Grant) -> None:
        self.lease, self.epoch, self.chunks = grant.lease, grant.epoch, grant.ranges
        at = 0
        for sectors in self.sizes:
            self.offsets.append(at)
            at += sectors * SECTOR_BYTES
        self.state = JobState.COMPARING

    def _on_suspected(self, suspected: Suspected) -> None:
        self.suspects = suspected.chunks
        self.state = JobState.COMPARING_BLOCKS

    def _on_compared(self, compared: Compared) -> None:
        self.differing = compared.differing
        self.state = JobState.FINISHING

    def _on_closed(self, _: Closed) -> None:
        self.state = JobState.CLOSED

    TABLE: ClassVar[Table[JobState]] = {
        JobState.ACQUIRING: {
            Grant: goes(_on_grant, JobState.COMPARING),
            Closed: goes(_on_closed, JobState.CLOSED),
        },
        JobState.COMPARING: {
            Suspected: goes(_on_suspected, JobState.COMPARING_BLOCKS),
            Compared: goes(_on_compared, JobState.FINISHING),
            Closed: goes(_on_closed, JobState.CLOSED),
        },
        JobState.COMPARING_BLOCKS: {
            Compared: goes(_on_compared, JobState.FINISHING),
            Closed: goes(_on_closed, JobState.CLOSED),
        },
        JobState.FINISHING: {
            Closed: goes(_on_closed, JobState.CLOSED),
        },
        JobState.CLOSED: {},
    }
