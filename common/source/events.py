# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a source's node, and what comes out of it.

Events are what happened, in the past tense; actions what is to be done, in the
imperative. Actions are done in their order; a `QueryStatus` is answered by
`StatusArrived` before any other event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdr.common.capture.api import CaptureStatus
from bdr.common.errors import BdrError
from bdr.common.facts import Facts
from bdr.common.wire.batch import BatchHeader
from bdr.common.wire.control import Message
from bdr.common.wire.scan import Answer, Request

Peer = bytes
"""Address of the scanner or command that sent a request."""

EventName = Literal["streaming", "rewind", "pause", "overflow", "condition", "assume-clean"]
"""Names of the events that a source announces."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time is now `now_at`; comes before other events, and at least every 250 ms."""

    now_at: float


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The control connection's handshake succeeded."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The control connection was lost."""


@dataclass(frozen=True, slots=True)
class SenderLost:
    """A sender went away, perhaps with batches that it had not sent."""


@dataclass(frozen=True, slots=True)
class ScannerLost:
    """A scanner went away, perhaps with numbered batches that it had not sent.

    Which one is not known: every lease is revoked.
    """


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message of the target."""

    message: Message


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A message of a scanner or a command."""

    peer: Peer
    request: Request


@dataclass(frozen=True, slots=True)
class StatusArrived:
    """A look at the capture: the answer to `QueryStatus`."""

    status: CaptureStatus


@dataclass(frozen=True, slots=True)
class RingWoken:
    """The capture woke the reader: the slot that it waited for, or another mode."""


@dataclass(frozen=True, slots=True)
class SenderReady:
    """A sender can take one more batch."""


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """Nothing else happened: what may wait until then is done now."""


Event = (
    Tick
    | LinkUp
    | LinkDown
    | SenderLost
    | ScannerLost
    | MessageArrived
    | RequestArrived
    | StatusArrived
    | RingWoken
    | SenderReady
    | RoundEnded
)


@dataclass(frozen=True, slots=True)
class Send:
    """To the target, over the control connection; may be lost."""

    message: Message


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Have a sender send this batch."""

    header: BatchHeader


@dataclass(frozen=True, slots=True)
class Reply:
    """To this peer; may be lost."""

    peer: Peer
    answer: Answer


@dataclass(frozen=True, slots=True)
class Release:
    """Free the slots below `tail`, which are durable on the target; be woken for `cursor`."""

    tail: int
    cursor: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Leave OVERFLOW, and have the capture merge what was missed into `resync`."""


@dataclass(frozen=True, slots=True)
class MarkRegions:
    """Set these regions of `resync`."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class ClearRegions:
    """Clear these regions of `resync`: they are repaired."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """Give the node the capture's status, as `StatusArrived`; the last of its actions."""


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
    | Resume
    | MarkRegions
    | ClearRegions
    | QueryStatus
    | Announce
    | Stop
)
