# SPDX-License-Identifier: GPL-2.0-only
"""Messages within a source host: scanners and commands (DEALER) to the reader (ROUTER).

A scanner acquires a **lease** of some chunks, compares them, and commits; a command that verifies
begins and ends its own lease. `common.source.scheduler` defines their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.wire.codec import BLOB, RANGES, STREAM, TEXT, U64, Buffer, Codec, Form, Range

# Scanner to reader.


@dataclass(frozen=True, slots=True)
class Acquire:
    """Request for a lease; `request` is repeated in the answer. Sent again until answered."""

    request: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A lease's chunks were compared; `batches` resync batches need numbers.

    `again` are ranges that were not compared, to be leased again; `unreadable` are ranges that are
    unreadable on the source.
    """

    lease: int
    batches: int
    blocks: int
    again: list[Range]
    unreadable: list[Range]


@dataclass(frozen=True, slots=True)
class Renew:
    """A scanner or a command is still at work on its lease: it does not expire."""

    lease: int


# Command to reader.


@dataclass(frozen=True, slots=True)
class VerifyBegin:
    """Request for a lease of exactly these ranges, for comparison only."""

    request: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class VerifyEnd:
    """The ranges were compared: request for the sectors to be ignored."""

    lease: int


@dataclass(frozen=True, slots=True)
class VerifyFound:
    """A verification has ended: what it has found is to be remembered.

    `ignored` was in use, marked or unreadable. Where there are too many ranges for a message,
    `covered` may be less than what was compared, `ignored` and `differing` more.
    """

    request: int
    ended_utc: int
    """Seconds since 1970."""
    covered: list[Range]
    """What was compared to the end; empty if it was ended before."""
    ignored: list[Range]
    differing: list[Range]
    compared_bytes: int
    differing_bytes: int


@dataclass(frozen=True, slots=True)
class Resync:
    """Mark these ranges to be repaired; empty: everything."""

    request: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Query:
    """Request for the progress of the scan."""

    request: int


# Reader to scanner or command.


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease of the chunks `ranges`, to be compared in `epoch`."""

    request: int
    lease: int
    stream: bytes
    """Of the capture; a scanner with another one has opened another capture."""
    epoch: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Committed:
    """The batches are `number`, `number` + 1 ..., before slot `first`.

    `excluded` has one bit for each sector of the lease's chunks, concatenated; empty: none.
    """

    lease: int
    epoch: int
    number: int
    first: int
    excluded: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """`busy` has one bit for each sector of the lease's chunks: set for those to be ignored."""

    lease: int
    busy: bytes


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer to `VerifyFound`, once it is durable."""

    request: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """This lease is void; its chunks will be leased again."""

    lease: int


@dataclass(frozen=True, slots=True)
class ResyncStatus:
    """The answer to `Query` and `Resync`."""

    request: int
    phase: str
    condition: str
    mode: str
    epoch: int
    region_bytes: int
    regions: int
    dirty_regions: int
    unreadable_regions: int
    scanners: int
    compared_bytes: int
    repaired_bytes: int
    unreadable: list[Range]


Request = Acquire | Commit | Renew | VerifyBegin | VerifyEnd | VerifyFound | Resync | Query
Answer = Grant | Committed | Verified | Remembered | Revoked | ResyncStatus

REQUESTS: Codec[Request] = Codec(
    {
        "acquire": Form(Acquire, {"request": U64}),
        "commit": Form(
            Commit,
            {"lease": U64, "batches": U64, "blocks": U64, "again": RANGES, "unreadable": RANGES},
        ),
        "renew": Form(Renew, {"lease": U64}),
        "verify-begin": Form(VerifyBegin, {"request": U64, "ranges": RANGES}),
        "verify-end": Form(VerifyEnd, {"lease": U64}),
        "verify-found": Form(
            VerifyFound,
            {
                "request": U64,
                "ended_utc": U64,
                "covered": RANGES,
                "ignored": RANGES,
                "differing": RANGES,
                "compared_bytes": U64,
                "differing_bytes": U64,
            },
        ),
        "resync": Form(Resync, {"request": U64, "ranges": RANGES}),
        "query": Form(Query, {"request": U64}),
    }
)
ANSWERS: Codec[Answer] = Codec(
    {
        "grant": Form(
            Grant,
            {"request": U64, "lease": U64, "stream": STREAM, "epoch": U64, "ranges": RANGES},
        ),
        "committed": Form(
            Committed,
            {"lease": U64, "epoch": U64, "number": U64, "first": U64, "excluded": BLOB},
        ),
        "verified": Form(Verified, {"lease": U64, "busy": BLOB}),
        "remembered": Form(Remembered, {"request": U64}),
        "revoked": Form(Revoked, {"lease": U64}),
        "resync-status": Form(
            ResyncStatus,
            {
                "request": U64,
                "phase": TEXT,
                "condition": TEXT,
                "mode": TEXT,
                "epoch": U64,
                "region_bytes": U64,
                "regions": U64,
                "dirty_regions": U64,
                "unreadable_regions": U64,
                "scanners": U64,
                "compared_bytes": U64,
                "repaired_bytes": U64,
                "unreadable": RANGES,
            },
        ),
    }
)


def encode_request(message: Request) -> bytes:
    """One message to the reader."""
    return REQUESTS.encode(message)


def encode_answer(message: Answer) -> bytes:
    """One message from the reader."""
    return ANSWERS.encode(message)


def decode_request(data: Buffer) -> Request:
    """Raises WireError if it is not one."""
    return REQUESTS.decode(data)


def decode_answer(data: Buffer) -> Answer:
    """Raises WireError if it is not one."""
    return ANSWERS.decode(data)
