# SPDX-License-Identifier: GPL-2.0-only
"""Events and actions of a source's node.

Events state what happened, in the past tense; actions what to do, in the imperative. Actions are
performed in order; a `QueryStatus` is answered by `StatusArrived` before any other event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdr.common.capture.api import CaptureStatus
from bdr.common.errors import BdrError
from bdr.common.facts import Facts
from bdr.common.source.identity import Findings
from bdr.common.wire.batch import BatchHeader
from bdr.common.wire.control import Message
from bdr.common.wire.scan import Answer, Request

Peer = bytes
"""Address of the scanner or command that sent a request."""

EventName = Literal[
    "streaming", "rewind", "pause", "overflow", "condition", "assume-clean", "verified"
]
"""Names of the events that a source announces."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time is `now_at`; precedes the other events of a round, at least every 250 ms."""

    now_at: float
    now_utc_ms: int = 0
    """Wall clock: milliseconds since 1970, for display."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The control connection's handshake succeeded."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The control connection was lost."""


@dataclass(frozen=True, slots=True)
class SenderLost:
    """A sender disconnected, possibly with unsent batches."""


@dataclass(frozen=True, slots=True)
class ScannerLost:
    """A scanner disconnected, possibly with unsent numbered batches.

    Its identity is unknown: every lease is revoked.
    """


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message arrived from the target."""

    message: Message


@dataclass(frozen=True, slots=True)
class GenerationSaved:
    """A new generation identifier is durable on the source's own disk."""

    generation: bytes


@dataclass(frozen=True, slots=True)
class FindingsSaved:
    """The oldest `SaveFindings` that was not answered yet is durable."""


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A message arrived from a scanner or a command."""

    peer: Peer
    request: Request


@dataclass(frozen=True, slots=True)
class StatusArrived:
    """The capture's status: the answer to `QueryStatus`."""

    status: CaptureStatus


@dataclass(frozen=True, slots=True)
class RingWoken:
    """The capture woke the reader: the awaited slot was published, or the mode changed."""


@dataclass(frozen=True, slots=True)
class SenderReady:
    """A sender can accept one more batch."""


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """End of a round: deferred work is done now."""


Event = (
    Tick
    | LinkUp
    | LinkDown
    | SenderLost
    | ScannerLost
    | MessageArrived
    | GenerationSaved
    | FindingsSaved
    | RequestArrived
    | StatusArrived
    | RingWoken
    | SenderReady
    | RoundEnded
)

FREQUENT = (Tick, StatusArrived, RingWoken, SenderReady, RoundEnded)
"""Events of every round, which would fill a story."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the target, over the control connection; may be lost."""

    message: Message


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Dispatch this batch to a sender."""

    header: BatchHeader


@dataclass(frozen=True, slots=True)
class Reply:
    """Send to this peer; may be lost."""

    peer: Peer
    answer: Answer


@dataclass(frozen=True, slots=True)
class Release:
    """Free the slots below `tail`, which are durable on the target; arm the wake-up for
    `cursor`.

    The capture keeps `acknowledged` and `counted`; see `Capture.release`.
    """

    tail: int
    cursor: int
    acknowledged: int
    """Changes of the stream that are durable on the target."""
    counted: int
    """A bound of those that were sent."""


@dataclass(frozen=True, slots=True)
class SaveGeneration:
    """Make a new generation identifier, durably; the answer is `GenerationSaved`."""


@dataclass(frozen=True, slots=True)
class SaveAssumption:
    """Remember durably that "both devices are equal" was used for this target."""

    target: bytes


@dataclass(frozen=True, slots=True)
class SaveFindings:
    """Remember durably what verifications have found; the answer is `FindingsSaved`."""

    findings: Findings


@dataclass(frozen=True, slots=True)
class Resume:
    """Leave OVERFLOW; the capture merges missed regions into `RESYNC`."""


@dataclass(frozen=True, slots=True)
class MarkRegions:
    """Set these regions of `RESYNC`."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class ClearRegions:
    """Clear these regions of `RESYNC`: they are repaired."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """Read the capture's status, and return it as `StatusArrived`; always the last action."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Write a line to the log, and publish the event to subscribers."""

    name: EventName
    facts: Facts


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process with this error."""

    error: BdrError


Action = (
    Send
    | Dispatch
    | Reply
    | Release
    | SaveGeneration
    | SaveAssumption
    | SaveFindings
    | Resume
    | MarkRegions
    | ClearRegions
    | QueryStatus
    | Announce
    | Stop
)
