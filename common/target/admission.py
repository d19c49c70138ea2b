# SPDX-License-Identifier: GPL-2.0-only
"""Admission of a source's HELLO, and the position from which it continues.

A known stream continues at `record.slot`, if the source still has it (tail <= slot <= head).
Otherwise everything must be scanned, and the replica is UNKNOWN. This is persistent across
restarts, until the source declares by a marker that it has marked every region to be scanned.

The operator's assertion that both devices are equal (`assume_clean`) avoids that scan once, at
first contact: this target has had no source yet, and no target has acknowledged a slot of this
capture. If it stays in the configuration, it must not apply to devices that differ: after the
device was attached again, or the target restored or replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bdr.common.facts import Facts
from bdr.common.target.record import NO_STREAM, ReplicaRecord
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello, RefusedReason


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a HELLO is refused; `text` has what was found and wanted."""

    reason: RefusedReason
    text: str


class Assumption(Enum):
    """Whether `assume_clean` was applied."""

    NOT_GIVEN = "not set"
    HAD_SOURCE = "ignored: this replica has had a source before, so it may differ"
    HAD_TARGET = "ignored: this source has been replicated before, so the target may lack writes"
    TAKEN = "applied: the devices are assumed to be equal, unchecked"


@dataclass(frozen=True, slots=True)
class Start:
    """The position from which an admitted source continues."""

    slot: int
    condition: Condition
    is_known: bool
    """Whether the replica's position is within the source's ring."""
    assumption: Assumption


def refusal(
    hello: Hello,
    record: ReplicaRecord,
    *,
    jobs_waiting: int,
    jobs_max: int,
    silent_s: float,
    silence_s: float,
) -> Refusal | None:
    """Why a HELLO is refused, or None if it is admitted.

    Args:
        record: of the replica, as of the last job.
        jobs_waiting: jobs that are not durable, of at most `jobs_max`.
        silent_s: time since the last message from the replica's source.
        silence_s: a source that is silent for longer no longer excludes others.
    """
    if hello.volume != record.volume:
        return Refusal(
            RefusedReason.VOLUME, f"found volume {hello.volume!r}, wanted {record.volume!r}"
        )
    if hello.device_sectors > record.device_sectors:
        return Refusal(
            RefusedReason.SIZE,
            f"found a source of {hello.device_sectors} sectors, wanted at most "
            f"{record.device_sectors}, the size of the target device; enlarge the target, "
            "then restart its applier and this source's reader",
        )
    if jobs_waiting >= jobs_max:
        return Refusal(
            RefusedReason.BUSY,
            f"found {jobs_max} jobs that wait for the target's disk; send HELLO again",
        )
    if hello.stream == record.stream and hello.head < record.slot:
        # A ring's head never decreases: a delayed HELLO. Accepting it would force a full resync.
        return Refusal(
            RefusedReason.BUSY,
            f"found a delayed HELLO: its ring ends at slot {hello.head}, wanted "
            f"{record.slot} or more, which the replica has; send HELLO again",
        )
    if record.stream not in (NO_STREAM, hello.stream) and silent_s < silence_s:
        return Refusal(
            RefusedReason.BUSY,
            f"found stream {hello.stream.hex()}, but the replica is fed by stream "
            f"{record.stream.hex()}, now or until {silence_s:g} s ago; stop that source first",
        )
    return None


def start(hello: Hello, record: ReplicaRecord) -> Start:
    """The position from which an admitted source continues."""
    assumption = _assumption(hello, record)
    if hello.stream == record.stream and hello.tail <= record.slot <= hello.head:
        return Start(record.slot, record.condition, True, assumption)
    if assumption is Assumption.TAKEN:
        # Equal by assertion, once the rest of the ring has been applied.
        return Start(hello.tail, Condition.CATCHING_UP, False, assumption)
    return Start(hello.tail, Condition.UNKNOWN, False, assumption)


def describe(hello: Hello, record: ReplicaRecord, start: Start) -> Facts:
    """Facts of a start at a position that does not follow from the record."""
    return {
        "stream": hello.stream.hex(),
        "tail": hello.tail,
        "head": hello.head,
        "known_stream": record.stream.hex(),
        "known_slot": record.slot,
        "condition": start.condition.name,
        "assume_clean": start.assumption.value,
    }


def _assumption(hello: Hello, record: ReplicaRecord) -> Assumption:
    if not hello.assume_clean:
        return Assumption.NOT_GIVEN
    if record.stream != NO_STREAM:
        return Assumption.HAD_SOURCE
    return Assumption.HAD_TARGET if hello.tail else Assumption.TAKEN
