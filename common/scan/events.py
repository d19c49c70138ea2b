# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a comparer, and what comes out of it.

Events are what happened, in the past tense; actions what is to be done, in the
imperative, in their order.
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
    """Time is now `now_at`; comes before other events."""

    now_at: float


@dataclass(frozen=True, slots=True)
class LinksUp:
    """Reader and target are connected, all of it."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A connection was lost; all others were dropped with it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A message of the reader."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class DigestsArrived:
    """Digests of the target, or why there are none."""

    message: Digests


@dataclass(frozen=True, slots=True)
class ChunksRead:
    """A `Read` is done."""

    job: int
    digests: bytes
    """One a chunk, whatever stands in the buffer where it could not be read."""
    bad_blocks: Mapping[int, list[int]]
    """Index of a chunk to those of its blocks that cannot be read."""


@dataclass(frozen=True, slots=True)
class BlocksHashed:
    """A `HashBlocks` is done."""

    job: int
    digests: Sequence[bytes]
    """Of each chunk, those of its blocks."""


@dataclass(frozen=True, slots=True)
class RoomSeen:
    """So many batches wait to be sent; comes at the end of each round."""

    batches: int


Event = Tick | LinksUp | LinkLost | Answered | DigestsArrived | ChunksRead | BlocksHashed | RoomSeen


@dataclass(frozen=True, slots=True)
class SendToReader:
    """To the reader; may be lost with the connection."""

    request: Request


@dataclass(frozen=True, slots=True)
class SendToTarget:
    """To the target; may be lost with the connection."""

    message: Checksums


@dataclass(frozen=True, slots=True)
class Read:
    """Read the chunks into the buffer, one after the other, and make their digests."""

    job: int
    buffer: int
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """Make digests of the blocks of these chunks, which stand in the buffer."""

    job: int
    buffer: int
    chunks: list[Chunk]
    offsets: list[int]
    """Where each stands, in bytes."""


@dataclass(frozen=True, slots=True)
class RepairPart:
    """What a batch has of a chunk."""

    sector: int
    offset: int
    length: int
    """Where the chunk stands in the buffer, in bytes."""
    blocks: Flags
    excluded: Flags | None


@dataclass(frozen=True, slots=True)
class SendBatch:
    """Build this resync batch at once, for its buffer is used anew after it, and send it."""

    buffer: int
    epoch: int
    number: int
    first: int
    parts: list[RepairPart]

    def build(self, buffer: memoryview, stream: bytes) -> tuple[BatchHeader, bytes, bytes]:
        """Its header, its slots' headers and its payload.

        Args:
            buffer: what `buffer` is the number of.
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
    """Drop what waits to be sent: its connection is gone."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes more were verified."""

    size: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything was verified, as far as it can be."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Nothing was verified for too long: reader or target are away."""


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
