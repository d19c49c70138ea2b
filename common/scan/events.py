# SPDX-License-Identifier: GPL-2.0-only
"""Events and actions of a comparer.

Events state what happened, in the past tense; actions what to do, in the imperative, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bdr.common.errors import BdrError
from bdr.common.facts import Facts
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.scan.plan import Chunk, Flags
from bdr.common.scan.repair import Repair, build_batch
from bdr.common.wire.batch import BatchHeader, BatchKind, Marker
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.scan import Answer, Request

LogName = Literal["unreadable", "abandoned", "unexpected"]
"""Names of the log events of a comparer."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time is `now_at`; precedes the other events of a round."""

    now_at: float


@dataclass(frozen=True, slots=True)
class LinksUp:
    """All connections to reader and target are up."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A connection was lost; all others were closed too."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A message arrived from the reader."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class DigestsArrived:
    """Digests arrived from the target, or a refusal."""

    message: Digests


@dataclass(frozen=True, slots=True)
class ChunksRead:
    """A `Read` was completed."""

    job: int
    digests: bytes
    """One per chunk; meaningless for chunks that could not be read."""
    bad_blocks: Mapping[int, list[int]]
    """Index of a chunk to its unreadable blocks."""


@dataclass(frozen=True, slots=True)
class BlocksHashed:
    """A `HashBlocks` was completed."""

    job: int
    digests: Sequence[bytes]
    """For each chunk, those of its blocks."""


@dataclass(frozen=True, slots=True)
class RoomSeen:
    """Number of batches in the send queue; at the end of each round."""

    batches: int


Event = Tick | LinksUp | LinkLost | Answered | DigestsArrived | ChunksRead | BlocksHashed | RoomSeen


@dataclass(frozen=True, slots=True)
class SendToReader:
    """Send to the reader; may be lost with the connection."""

    request: Request


@dataclass(frozen=True, slots=True)
class SendToTarget:
    """Send to the target; may be lost with the connection."""

    message: Checksums


@dataclass(frozen=True, slots=True)
class Read:
    """Read the chunks into the buffer, one after the other, and compute their digests."""

    job: int
    buffer: int
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """Compute digests of the blocks of these chunks, which are in the buffer."""

    job: int
    buffer: int
    chunks: list[Chunk]
    offsets: list[int]
    """Offset of each in the buffer, in bytes."""


@dataclass(frozen=True, slots=True)
class RepairPart:
    """The blocks of a chunk that a batch repairs."""

    sector: int
    offset: int
    length: int
    """Length of the chunk in the buffer, in bytes, as is `offset`."""
    blocks: Flags
    excluded: Flags | None


@dataclass(frozen=True, slots=True)
class SendBatch:
    """Build this resync batch at once, since its buffer is reused afterwards, and send it."""

    buffer: int
    epoch: int
    number: int
    first: int
    parts: list[RepairPart]

    def build(self, buffer: memoryview, stream: bytes) -> tuple[BatchHeader, bytes, bytes]:
        """Its header, its slots' headers and its payload.

        Args:
            buffer: the memory of buffer number `buffer`.
            stream: of the capture.
        """
        headers, payload = build_batch(
            [
                Repair(
                    part.sector,
                    buffer[part.offset : part.offset + part.length],
                    part.blocks,
                    part.excluded,
                )
                for part in self.parts
            ]
        )
        count = len(payload) // PAYLOAD_BYTES
        header = BatchHeader(
            BatchKind.RESYNC,
            Marker.NONE,
            stream,
            self.epoch,
            self.number,
            self.first,
            count,
        )
        return header, headers, payload


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a line to the log."""

    name: LogName
    facts: Facts


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process with this error."""

    error: BdrError


@dataclass(frozen=True, slots=True)
class DropUnsent:
    """Drop the send queue: its connection is gone."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Report that `size` more bytes were verified."""

    size: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything was verified, as far as possible."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Nothing was verified within the timeout: reader or target does not respond."""


Action = (
    SendToReader
    | SendToTarget
    | Read
    | HashBlocks
    | SendBatch
    | DropUnsent
    | Progress
    | Finished
    | Interrupted
    | LogEvent
    | Stop
)
