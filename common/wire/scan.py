# SPDX-License-Identifier: GPL-2.0-only
"""Messages within a source host: scanners and commands (DEALER) to the reader (ROUTER).

A scanner acquires a **lease** of some chunks, compares them, and commits; a command that
verifies begins and ends a lease of its own. `common.source.scheduler` says what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.wire.codec import BLOB, RANGES, STREAM, TEXT, U64, Buffer, Codec, Form, Range

# Scanner to reader.


@dataclass(frozen=True, slots=True)
class Acquire:
    """A lease, please; `request` comes back in the answer. Repeated until answered."""

    request: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A lease's chunks were compared; `batches` resync batches are to be numbered.

    `again` are ranges that were not judged, to be leased again; `unreadable` are ranges
    that the source cannot read.
    """

    lease: int
    batches: int
    blocks: int
    again: list[Range]
    unreadable: list[Range]


# Command to reader.


@dataclass(frozen=True, slots=True)
class VerifyBegin:
    """A lease for exactly these ranges, to be compared only."""

    request: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class VerifyEnd:
    """They were compared: which sectors may not be judged?"""

    lease: int


@dataclass(frozen=True, slots=True)
class Resync:
    """Have these ranges repaired; none means everything."""

    request: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Query:
    """How far is the scan?"""

    request: int


# Reader to scanner or command.


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease of the chunks `ranges`, to be compared within `epoch`."""

    request: int
    lease: int
    stream: bytes
    """The capture's; a scanner that knows another one reads below another capture."""
    epoch: int
    ranges: list[Range]


@dataclass(frozen=True, slots=True)
class Committed:
    """The batches are `number`, `number` + 1 ..., before slot `first`.

    `excluded` is one bit for each sector of the lease's chunks, one after the other; empty
    for none.
    """

    lease: int
    epoch: int
    number: int
    first: int
    excluded: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """`busy` is one bit for each sector of the lease's chunks: not to be judged."""

    lease: int
    busy: bytes


@dataclass(frozen=True, slots=True)
class Revoked:
    """Forget this lease; its chunks will be leased again."""

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


Request = Acquire | Commit | VerifyBegin | VerifyEnd | Resync | Query
Answer = Grant | Committed | Verified | Revoked | ResyncStatus

REQUESTS: Codec[Request] = Codec(
    {
        "acquire": Form(Acquire, {"request": U64}),
        "commit": Form(
            Commit,
            {"lease": U64, "batches": U64, "blocks": U64, "again": RANGES, "unreadable": RANGES},
        ),
        "verify-begin": Form(VerifyBegin, {"request": U64, "ranges": RANGES}),
        "verify-end": Form(VerifyEnd, {"lease": U64}),
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
    """Raises WireError for what is none."""
    return REQUESTS.decode(data)


def decode_answer(data: Buffer) -> Answer:
    """Raises WireError for what is none."""
    return ANSWERS.decode(data)
