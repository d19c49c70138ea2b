# SPDX-License-Identifier: GPL-2.0-only
"""Control messages, between reader or scanner (DEALER) and applier (ROUTER).

`MESSAGES` is the protocol: the names there, and nothing else, cross the wire.

Ping and acknowledgement go back and forth once a second while a session is open: PING
says how much is left to be compared, ACK what the target remembers of its replica. An
ACK also comes whenever something became durable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from bdr.common.errors import WireError
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.codec import (
    BLOB,
    FLAG,
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


class RefusedReason(IntEnum):
    """Why a HELLO was refused."""

    PROTOCOL = 1
    VOLUME = 2
    SIZE = 3
    BUSY = 4
    SLOTS = 5

    @property
    def is_permanent(self) -> bool:
        """Whether asking again cannot help."""
        return self is not RefusedReason.BUSY


class RewindReason(IntEnum):
    """Why batches of an epoch are of no use any more."""

    NO_SESSION = 1
    """The target was restarted, or another source took over."""
    MISSING = 2
    """A batch did not come while many later ones did."""
    DAMAGED = 3
    MISPLACED = 4
    """A batch begins at another slot than the one before ended."""


class DigestsRefused(IntEnum):
    """Why there are no digests."""

    NONE = 0
    """There are."""
    NO_SESSION = 1
    """The session of this epoch is not open."""
    BUSY = 2
    """Too many requests wait."""
    BAD_RANGES = 3
    UNREADABLE = 4
    """The target cannot read its device there."""

    @property
    def is_permanent(self) -> bool:
        """Whether asking again cannot help."""
        return self in (DigestsRefused.BAD_RANGES, DigestsRefused.UNREADABLE)


@dataclass(frozen=True, slots=True)
class Hello:
    """Source to target: who I am and what my ring still holds."""

    protocol: int
    attempt: int
    """Counts the HELLOs of a reader; the answer bears it, so late answers are known."""
    volume: str
    stream: bytes
    device_sectors: int
    tail: int
    head: int
    assume_clean: bool
    """The user says that both devices are equal: at first contact no scan is needed."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Target to source: go on from `slot`, in this epoch, with batch `number`."""

    attempt: int
    epoch: int
    number: int
    slot: int
    condition: Condition


@dataclass(frozen=True, slots=True)
class Refused:
    """Target to source: no, and why."""

    attempt: int
    reason: RefusedReason
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Source to target: still here; the answer is an ACK."""

    epoch: int
    left_bytes: int
    """Bytes of the device that are left to be compared; 0 for none."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Target to source, cumulative; also the answer to a PING."""

    epoch: int
    accepted: int
    """Every batch up to this number has arrived, in order."""
    durable: int
    """Every batch up to this number is durable."""
    condition: Condition
    """Of the replica, as the target remembers it."""
    since_utc: int
    """Since when the condition holds: seconds since 1970; 0 if that is not known."""
    accepted_utc: int
    """When the last batch was accepted, in the same way."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Target to source: batches of this epoch are of no use any more, greet again."""

    epoch: int
    reason: RewindReason
    text: str


@dataclass(frozen=True, slots=True)
class Checksums:
    """Scanner to target: what do these ranges hold, once all that came before is applied?"""

    request: int
    epoch: int
    block_sectors: int
    """0: one digest a range; else one for every so many sectors, the last may be shorter."""
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Digests:
    """Target to scanner: one xxh3-128 after the other, as asked, or why not."""

    request: int
    digests: bytes
    refused: DigestsRefused
    text: str
    """For people: empty, or why there are none."""


Message = Hello | Welcome | Refused | Ping | Ack | Rewind | Checksums | Digests

MESSAGES: Codec[Message] = Codec(
    {
        "hello": Form(
            Hello,
            {
                "protocol": U64,
                "attempt": U64,
                "volume": TEXT,
                "stream": STREAM,
                "device_sectors": U64,
                "tail": U64,
                "head": U64,
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
                "condition": member(Condition),
            },
        ),
        "refused": Form(Refused, {"attempt": U64, "reason": member(RefusedReason), "text": TEXT}),
        "ping": Form(Ping, {"epoch": U64, "left_bytes": U64}),
        "ack": Form(
            Ack,
            {
                "epoch": U64,
                "accepted": U64,
                "durable": U64,
                "condition": member(Condition),
                "since_utc": U64,
                "accepted_utc": U64,
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
    """A HELLO of another protocol version, readable enough to be refused politely."""

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
        OtherProtocolError: a HELLO whose protocol version differs.
        WireError: no message of this protocol.
    """
    raw = unpack(data, MESSAGE_BYTES_MAX, "message")
    if isinstance(raw, dict) and raw.get("type") == "hello":
        protocol, attempt = raw.get("protocol"), raw.get("attempt", 0)
        if protocol != PROTOCOL and is_u64(protocol) and is_u64(attempt):
            raise OtherProtocolError(protocol, attempt)
    return MESSAGES.build(raw)
