# SPDX-License-Identifier: GPL-2.0-only
"""Events and actions of a target's node.

Events state what happened, in the past tense; actions what to do, in the imperative, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdr.common.facts import Facts
from bdr.common.target.hook import Cause, HookOutcome
from bdr.common.target.job import Job
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.batch import Batch
from bdr.common.wire.control import Checksums, Digests, Message

Peer = bytes
"""Sender of a control message: the routing id of the ROUTER socket."""

LogName = Literal[
    "unknown-position",
    "welcome",
    "refused",
    "rewind",
    "condition",
    "before-resync",
    "before-resync-ended",
]
"""Names of the log events of a target."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time is `now_at`; precedes the other events of a round."""

    now_at: float
    now_utc: int = 0
    """Wall clock: seconds since 1970, for display."""


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message arrived from a source or a scanner."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A message to this peer could not be sent: it is not connected any more."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class OtherProtocolArrived:
    """A HELLO of another protocol version arrived."""

    peer: Peer
    protocol: int
    attempt: int


@dataclass(frozen=True, slots=True)
class BatchArrived:
    """A well-formed batch arrived; its content is not validated yet."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class BytesArrived:
    """Bytes of batches arrived, which may be a part of a frame."""


@dataclass(frozen=True, slots=True)
class Durable:
    """Every job up to this one is applied and synced, and its record written."""

    job: int


@dataclass(frozen=True, slots=True)
class DigestsMade:
    """A `MakeDigests` was completed."""

    peer: Peer
    digests: Digests


@dataclass(frozen=True, slots=True)
class HookEnded:
    """A `RunHook` was completed."""

    outcome: HookOutcome
    text: str
    """For the log: of a failure."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The process is shutting down cleanly."""


Event = (
    Tick
    | MessageArrived
    | PeerLost
    | OtherProtocolArrived
    | BatchArrived
    | BytesArrived
    | Durable
    | DigestsMade
    | HookEnded
    | Stopping
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send to this peer, over the control socket; may be lost."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    """Pass this job to the store."""

    job: Job


@dataclass(frozen=True, slots=True)
class MakeDigests:
    """Compute the digests of these ranges, once every durable job is applied to the device."""

    peer: Peer
    request: Checksums


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run the hook once every durable job is applied to the device, and synced; answered by
    `HookEnded`, within its time limit."""

    cause: Cause
    record: ReplicaRecord
    """The replica as it is."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a line to the log."""

    name: LogName
    facts: Facts
    is_warning: bool = False


Action = Send | Apply | MakeDigests | RunHook | LogEvent
