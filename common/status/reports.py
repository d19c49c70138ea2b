# SPDX-License-Identifier: GPL-2.0-only
"""Reports of each stage to its volume's monitor. No I/O here.

Counters are absolute, so reports may be lost. A report is a msgpack map:

========== =======================================================================
version   1
stage     reader, sender, ...
name      the process's own name, such as db-sender-2
pid       its process id
sent_at   CLOCK_MONOTONIC when it was sent, in seconds: comparable within a host
is_last   true: the process is ending in an orderly way
waits_for what the process lacks, and tries again to get; nil: it works
lost_lines  lines of its log that could not be written
values    the stage's own, below; empty while it waits
========== =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bdr.common.status.codec import FieldType, Form, flat, prefixed, unpack, wrong
from bdr.common.status.states import ConnectionState
from bdr.common.wire.codec import pack
from bdr.common.wire.condition import Condition

REPORT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LinkCounts:
    """Counts of a process's network connections, since its start."""

    connects: int = 0
    disconnects: int = 0
    handshakes_failed: int = 0
    """Connections with a failed handshake."""
    authentications_failed: int = 0

    def __add__(self, other: Self) -> LinkCounts:
        """The counts of both."""
        return LinkCounts(
            connects=self.connects + other.connects,
            disconnects=self.disconnects + other.disconnects,
            handshakes_failed=self.handshakes_failed + other.handshakes_failed,
            authentications_failed=self.authentications_failed + other.authentications_failed,
        )


@dataclass(frozen=True, slots=True)
class VerificationValues:
    """What the source remembers of verifications, in its state file."""

    verified_utc: int
    """When the last one of the whole device ended: seconds since 1970; 0: there was none."""
    verified_bytes: int
    """What it compared."""
    ignored_bytes: int
    """Of these, what was in use, marked or unreadable."""
    differing_bytes: int
    """What it found to differ."""
    unrepaired_bytes: int
    """Size of the ranges that any has found to differ, and that are not repaired."""


@dataclass(frozen=True, slots=True)
class ReaderValues:
    """Values of the reader's report."""

    phase: ConnectionState
    condition: Condition | None
    """None before the first WELCOME."""
    since_utc: int
    """Since when the condition holds: seconds since 1970; 0 if that is not known."""
    as_of_utc: int
    """The source's wall clock up to which the replica lacks nothing, in the same way."""
    stream: str
    missed_since_ns: int
    """Since when the replica lacks what is not in the ring: a clock of the capture's,
    `MISSED_NOTHING` or `MISSED_UNKNOWN`."""
    refused: str | None
    """Why the target refuses this source, or what is in its place, and what to do; None if it does
    not."""
    epoch: int
    tail: int
    cursor: int
    in_flight: int
    """Batches."""
    scanners: int
    scan_compared_bytes: int
    scan_repaired_bytes: int
    scan_unreadable_ranges: int
    verification: VerificationValues
    links: LinkCounts


@dataclass(frozen=True, slots=True)
class SenderValues:
    """Values of a sender's report; repeats are included."""

    is_connected: bool
    trouble: str | None
    """What it found in the target's place; None if that is not known, or all is well."""
    batches: int
    slots: int
    bytes: int
    links: LinkCounts


@dataclass(frozen=True, slots=True)
class ScannerValues:
    """Values of a scanner's report."""

    is_connected: bool
    leases: int
    compared_bytes: int
    repaired_bytes: int
    sent_bytes: int
    abandoned_leases: int
    links: LinkCounts


@dataclass(frozen=True, slots=True)
class ApplierValues:
    """Values of the applier's report."""

    condition: Condition
    has_source: bool
    """A source's session is open."""
    stream: str
    slot: int
    epoch: int
    since_utc: int
    """Since when the condition holds: seconds since 1970; 0 if that is not known."""
    as_of_utc: int
    """The source's wall clock up to which the replica lacks nothing, in the same way."""
    level_at: float | None
    """The replica's age is counted from this instant of the monotonic clock; None: unknown."""
    promoted_utc: int
    """When its device was taken for use, in the same way; 0: it is a replica."""
    rival: str | None
    """What a source says of itself whose history is another than the replica's."""
    wrong_device: str | None
    """Why its device is not opened: it is not the one that has the replica."""
    left_bytes: int
    """Bytes that its source has not compared yet."""
    device_sectors: int
    source_sectors: int
    """Of the source's device; 0 if there was none yet."""
    jobs: int
    """Made durable since its start."""
    bytes: int
    """Payload of these jobs."""
    queued_bytes: int
    """Received and not durable."""
    queued_s: float
    """Age of the oldest of these."""
    checksummed_bytes: int
    journal_bytes: int | None
    """In use; None without a journal."""
    journal_size_bytes: int | None
    held_s: float | None
    """For how long `before_resync` has been due; None: it is not."""
    hook_failures: int
    """How often that has failed since."""
    acked_at: float | None
    """When the last acknowledgement was sent, on the monotonic clock."""
    bad_messages: int
    """Messages that violate the protocol."""
    dropped: Mapping[str, int]
    """Dropped batches, by reason."""
    links: LinkCounts


StageValues = ReaderValues | SenderValues | ScannerValues | ApplierValues


@dataclass(frozen=True, slots=True)
class Report:
    """One report of one process."""

    stage: str
    name: str
    pid: int
    sent_at: float
    is_last: bool
    values: StageValues | None
    """None while it waits."""
    waits_for: str | None = None
    """What it lacks, in words; None: it works."""
    lost_lines: int = 0
    """Lines of its log that could not be written."""


_LINKS = flat(Form(LinkCounts))
_FORMS: Mapping[str, Form[Any]] = {
    "reader": Form(
        ReaderValues,
        types={"verification": flat(Form(VerificationValues)), "links": _LINKS},
    ),
    "sender": Form(SenderValues, types={"links": _LINKS}),
    "scanner": Form(ScannerValues, types={"links": _LINKS}),
    "applier": Form(
        ApplierValues,
        types={"links": _LINKS, "dropped": prefixed("dropped_")},
    ),
}
_FORM_OF = {form.kind: form for form in _FORMS.values()}


def _decode_values(raw: dict[str, Any]) -> StageValues | None:
    stage = raw.get("stage")
    form = _FORMS.get(stage) if isinstance(stage, str) else None
    if form is None:
        raise wrong(stage, f"a stage, one of {', '.join(_FORMS)}")
    values = raw.get("values")
    return form.decode(values) if values != {} else None


def _encode_values(values: StageValues | None) -> dict[str, Any]:
    return {"values": {} if values is None else _FORM_OF[type(values)].encode(values)}


VALUES = FieldType(_decode_values, _encode_values, is_flat=True)
"""The values of the process in the enclosing map, under `values`; `{}` for None."""

_REPORT = Form(Report, types={"values": VALUES})


def encode_report(report: Report) -> bytes:
    """The message on the socket."""
    return pack({"version": REPORT_VERSION, **_REPORT.encode(report)})


def decode_report(data: bytes) -> Report:
    """The inverse of `encode_report`.

    Raises:
        StatusError: not a report of this version.
    """
    raw = unpack(data)
    if not isinstance(raw, dict) or raw.get("version") != REPORT_VERSION:
        raise wrong(raw, f"a report of version {REPORT_VERSION}")
    report = _REPORT.decode(raw)
    if report.values is None and report.waits_for is None:
        raise wrong(raw, "a report with values, or what the process waits for")
    return report
