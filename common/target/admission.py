# SPDX-License-Identifier: GPL-2.0-only
"""Whether a source's HELLO is taken, and where it goes on.

Where a known stream goes on: at `record.slot`, if the source still has it (tail <=
slot <= head). Anything else needs a scan of everything; the replica is then UNKNOWN.
That is remembered, whatever is restarted, until the source declares by a marker that it
has marked every region to be scanned.

The user's word that both devices are equal (`assume_clean`) spares that once, at first
contact: this target has had no source yet, and no target has acknowledged a slot of
this capture. Left in a configuration, it must not make a replica of one that differs:
after the device was attached anew, or the target restored or replaced.
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
    """Why a HELLO is not taken: found, and wanted."""

    reason: RefusedReason
    text: str


class Assumption(Enum):
    """What became of the user's word that both devices are equal."""

    NOT_GIVEN = "not asked for"
    HAD_SOURCE = "not taken: this replica has had a source before, so it may differ"
    HAD_TARGET = "not taken: this source has been replicated before, so the target may lack writes"
    TAKEN = "taken: the devices are held to be equal, unchecked"


@dataclass(frozen=True, slots=True)
class Start:
    """Where an admitted source goes on."""

    slot: int
    condition: Condition
    is_known: bool
    """Whether the replica stands within the source's ring."""
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
    """Why a HELLO cannot be taken, or None if it can.

    Args:
        record: the replica's, as of the last job.
        jobs_waiting: jobs that wait for the target's disk, of which there may be `jobs_max`.
        silent_s: since when the replica's source was not heard.
        silence_s: so long a silent source keeps others out.
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
            f"found {jobs_max} jobs that wait for the target's disk; greet again",
        )
    if hello.stream == record.stream and hello.head < record.slot:
        # A ring's head never goes back. Accepting it would force a full resync.
        return Refusal(
            RefusedReason.BUSY,
            f"found a HELLO of before: its ring ends at slot {hello.head}, wanted "
            f"{record.slot} or more, which the replica has; greet again",
        )
    if record.stream not in (NO_STREAM, hello.stream) and silent_s < silence_s:
        return Refusal(
            RefusedReason.BUSY,
            f"found stream {hello.stream.hex()}, but the replica is fed by stream "
            f"{record.stream.hex()}, now or until {silence_s:g} s ago; stop that source first",
        )
    return None


def start(hello: Hello, record: ReplicaRecord) -> Start:
    """Where a source goes on whose HELLO can be taken."""
    assumption = _assumption(hello, record)
    if hello.stream == record.stream and hello.tail <= record.slot <= hello.head:
        return Start(record.slot, record.condition, True, assumption)
    if assumption is Assumption.TAKEN:
        # Equal by the user's word, once what the ring still holds has been applied.
        return Start(hello.tail, Condition.CATCHING_UP, False, assumption)
    return Start(hello.tail, Condition.UNKNOWN, False, assumption)


def describe(hello: Hello, record: ReplicaRecord, start: Start) -> Facts:
    """Facts of a start at a place that the replica does not know."""
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
