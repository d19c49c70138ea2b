# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a target's node, and what comes out of it.

Events are what happened, in the past tense; actions what is to be done, in the
imperative, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdr.common.facts import Facts
from bdr.common.target.job import Job
from bdr.common.wire.batch import Batch
from bdr.common.wire.control import Checksums, Digests, Message

Peer = bytes
"""Sender of a control message: the routing id of the ROUTER socket."""

LogName = Literal["unknown-position", "welcome", "refused", "rewind", "condition"]
"""Names of the log events of a target."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time is now `now_at`; comes before other events."""

    now_at: float
    now_utc: int = 0
    """Seconds since 1970, for people to read."""


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message of a source or a scanner."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class OtherProtocolArrived:
    """A HELLO of another protocol version."""

    peer: Peer
    protocol: int
    attempt: int


@dataclass(frozen=True, slots=True)
class BatchArrived:
    """A batch of the right form; nothing else about it is known."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Durable:
    """Every job up to this one is applied and synced, and its record written."""

    job: int


@dataclass(frozen=True, slots=True)
class DigestsMade:
    """A `MakeDigests` is done."""

    peer: Peer
    digests: Digests


@dataclass(frozen=True, slots=True)
class Stopping:
    """The process is about to end in an orderly way."""


Event = (
    Tick | MessageArrived | OtherProtocolArrived | BatchArrived | Durable | DigestsMade | Stopping
)


@dataclass(frozen=True, slots=True)
class Send:
    """To this peer, over the control socket; may be lost."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    """Have the store do this job."""

    job: Job


@dataclass(frozen=True, slots=True)
class MakeDigests:
    """Read these ranges and make their digests, once every durable job is on the device."""

    peer: Peer
    request: Checksums


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a line to the log."""

    name: LogName
    facts: Facts


Action = Send | Apply | MakeDigests | LogEvent
