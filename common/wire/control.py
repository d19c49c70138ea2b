# SPDX-License-Identifier: GPL-2.0-only
"""Control messages, between reader or scanner (DEALER) and applier (ROUTER).

`MESSAGES` defines the protocol: only the names there are on the wire.

While a session is open, the source sends a PING every second, which the target answers with an ACK:
PING has the bytes left to compare and the replica's age, ACK the target's record of the replica. An
ACK is also sent whenever a batch became durable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bdr.common.errors import WireError
from bdr.common.wire.batch import PROTOCOL, RECENT_BATCHES, AcceptedBatch
from bdr.common.wire.codec import (
    BLOB,
    COUNT,
    FLAG,
    GENERATION,
    GENERATIONS,
    ID,
    MESSAGE_BYTES_MAX,
    RANGES,
    STREAM,
    TEXT,
    U64,
    Buffer,
    Codec,
    Form,
    Range,
    is_u64,
    member,
    unpack,
)
from bdr.common.wire.condition import Condition
from bdr.common.wire.reasons import DigestsRefused, RefusedReason, RewindReason
from bdr.common.wire.statement import NO_STATEMENT, STATEMENT, Statement


@dataclass(frozen=True, slots=True)
class Hello:
    """Source to target: identity of the source, and range of its ring."""

    protocol: int
    attempt: int
    """Counts the HELLOs of a reader; the answer bears it, so late answers are known."""
    nonce: int
    """Of the target's last TWO_HISTORIES; 0 without one. It shows that this HELLO is no late
    one of a process that has ended."""
    volume: str
    source: bytes
    """The source's id."""
    generations: tuple[bytes, ...]
    """Its generation identifiers, newest first; see `common.source.generation`."""
    stream: bytes
    device_sectors: int
    tail: int
    head: int
    acknowledged: int
    """Changes of the stream that are durable on the target."""
    counted: int
    """Bound of the changes of the stream that were sent."""
    assume_clean: bool
    """The operator asserts that both devices are equal: no scan at first contact."""

    @property
    def is_assumption(self) -> bool:
        """Whether it asserts that, and no target has acknowledged anything of this capture."""
        return self.assume_clean and not (self.tail or self.acknowledged)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Target to source: continue from `slot`, in this epoch, with batch `number`."""

    attempt: int
    epoch: int
    number: int
    slot: int
    changes: int
    """Markers and resync batches of the stream that the replica has."""
    condition: Condition
    target: bytes
    """The target's id."""
    recent: tuple[AcceptedBatch, ...]
    """Of the stream: to be compared with what the ring holds there."""
    as_of_ns: int = 0
    """The replica has every write that was captured before this clock; 0: not known."""
    sent_ns: int = 0
    """The target's stamp; see `common.wire.statement`."""


@dataclass(frozen=True, slots=True)
class Disown:
    """Source to target: a batch that you named is none of mine."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Target to source: the HELLO or a batch was refused."""

    attempt: int
    reason: RefusedReason
    nonce: int
    """To be brought back by the next HELLO; 0 for none."""
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Source to target: keep-alive; answered by an ACK."""

    epoch: int
    generation: bytes
    """The source's newest."""
    left_bytes: int
    """Bytes of the device left to compare; 0: none."""
    statement: Statement = NO_STATEMENT
    """Of what is durable, as far as the source knows."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Target to source, cumulative; also the answer to a PING."""

    epoch: int
    accepted: int
    """Every batch up to this number has arrived, in order."""
    durable: int
    """Every batch up to this number is durable."""
    condition: Condition
    """Of the replica, in the target's record."""
    since_utc: int
    """Since when the condition holds: seconds since 1970; 0 if that is not known."""
    as_of_utc: int
    """The source's wall clock up to which the replica lacks nothing, in the same unit."""
    idle_s: int
    """Whole seconds since bytes of batches last arrived, over any connection; a part of a frame
    counts."""
    sent_ns: int = 0
    """The target's stamp; see `common.wire.statement`."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Target to source: batches of this epoch are no longer accepted; send HELLO again."""

    epoch: int
    reason: RewindReason
    text: str


@dataclass(frozen=True, slots=True)
class Checksums:
    """Scanner to target: request for digests of these ranges, once everything accepted before is
    applied."""

    request: int
    epoch: int
    block_sectors: int
    """0: one digest per range; else one per this many sectors, the last may be shorter."""
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Digests:
    """Target to scanner: the requested xxh3-128 digests, concatenated, or a refusal."""

    request: int
    digests: bytes
    refused: DigestsRefused
    text: str
    """For log and users: the reason of the refusal, or empty."""


Message = Hello | Welcome | Disown | Refused | Ping | Ack | Rewind | Checksums | Digests

MESSAGES: Codec[Message] = Codec(
    {
        "hello": Form(
            Hello,
            {
                "protocol": U64,
                "attempt": U64,
                "nonce": U64,
                "volume": TEXT,
                "source": ID,
                "generations": GENERATIONS,
                "stream": STREAM,
                "device_sectors": U64,
                "tail": U64,
                "head": U64,
                "acknowledged": COUNT,
                "counted": COUNT,
                "assume_clean": FLAG,
            },
        ),
        "welcome": Form(
            Welcome,
            {
                "attempt": U64,
                "epoch": U64,
                "number": U64,
                "slot": U64,
                "changes": COUNT,
                "condition": member(Condition),
                "target": ID,
                "recent": RECENT_BATCHES,
                "as_of_ns": U64,
                "sent_ns": U64,
            },
        ),
        "disown": Form(Disown, {"epoch": U64}),
        "refused": Form(
            Refused,
            {"attempt": U64, "reason": member(RefusedReason), "nonce": U64, "text": TEXT},
        ),
        "ping": Form(
            Ping,
            {
                "epoch": U64,
                "generation": GENERATION,
                "left_bytes": U64,
                "statement": STATEMENT,
            },
        ),
        "ack": Form(
            Ack,
            {
                "epoch": U64,
                "accepted": U64,
                "durable": U64,
                "condition": member(Condition),
                "since_utc": U64,
                "as_of_utc": U64,
                "idle_s": U64,
                "sent_ns": U64,
            },
        ),
        "rewind": Form(Rewind, {"epoch": U64, "reason": member(RewindReason), "text": TEXT}),
        "checksums": Form(
            Checksums, {"request": U64, "epoch": U64, "block_sectors": U64, "ranges": RANGES}
        ),
        "digests": Form(
            Digests,
            {"request": U64, "digests": BLOB, "refused": member(DigestsRefused), "text": TEXT},
        ),
    }
)


class OtherProtocolError(WireError):
    """A HELLO of another protocol version, which can be answered with REFUSED."""

    def __init__(self, protocol: Any, attempt: Any) -> None:
        super().__init__(f"found protocol version {protocol}, wanted {PROTOCOL}")
        self.protocol = int(protocol)
        self.attempt = int(attempt)


def encode_message(message: Message) -> bytes:
    """One control message."""
    return MESSAGES.encode(message)


def decode_message(data: Buffer) -> Message:
    """The inverse of `encode_message`.

    Raises:
        OtherProtocolError: a HELLO of another protocol version.
        WireError: not a message of this protocol.
    """
    raw = unpack(data, MESSAGE_BYTES_MAX, "message")
    if isinstance(raw, dict) and raw.get("type") == "hello":
        protocol, attempt = raw.get("protocol"), raw.get("attempt", 0)
        if protocol != PROTOCOL and is_u64(protocol) and is_u64(attempt):
            raise OtherProtocolError(protocol, attempt)
    return MESSAGES.build(raw)
