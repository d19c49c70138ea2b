# SPDX-License-Identifier: GPL-2.0-only
"""Admission of a source's HELLO, and the position from which it continues.

In this order, without effect before the last: protocol, volume, size; whether the device
was promoted, or is not the replica's; what the source and the replica are to each other
(`verdict`); whether the disk keeps up, and whether another source's session lives.

The user's word that both devices are equal (`assume_clean`) spares the scan once, at first
contact: this target has had no source yet, and no target has acknowledged a slot of
this capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bdr.common.facts import Facts
from bdr.common.target.record import NO_SOURCE, ReplicaRecord
from bdr.common.target.verdict import Verdict
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello
from bdr.common.wire.reasons import RefusedReason


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a HELLO is not taken: found, wanted, and what to do."""

    reason: RefusedReason
    text: str
    nonce: int = 0
    """To be brought back; 0 for none."""
    is_declared: bool = True
    """Worth a line in the log."""


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
    verdict: Verdict,
    *,
    jobs_waiting: int,
    jobs_max: int,
    wrong_device: str | None = None,
) -> Refusal | None:
    """Why a HELLO is refused, or None if it is admitted.

    Args:
        record: the replica's, as of the last job.
        jobs_waiting: jobs that wait for the target's disk, of which there may be `jobs_max`.
        wrong_device: why the target's device is not opened, if so.
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
    if record.promoted_utc:
        return Refusal(
            RefusedReason.PROMOTED,
            "found the target's device promoted, wanted a replica: `bdr demote` on the target's "
            "host makes it one again, and gives up what was written to it",
        )
    if wrong_device is not None:
        return Refusal(RefusedReason.WRONG_DEVICE, wrong_device)
    if verdict is Verdict.UNRELATED:
        return Refusal(RefusedReason.UNRELATED, _unrelated(hello, record))
    if verdict is Verdict.TWO_HISTORIES:
        return Refusal(RefusedReason.TWO_HISTORIES, _two_histories(hello, record))
    if jobs_waiting >= jobs_max:
        return Refusal(
            RefusedReason.BUSY,
            f"found {jobs_max} jobs that wait for the target's disk; send HELLO again",
        )
    return None


def start(hello: Hello, record: ReplicaRecord, verdict: Verdict) -> Start:
    """Where a source goes on whose HELLO can be taken."""
    assumption = _assumption(hello, record)
    if verdict is Verdict.RESUME:
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
        "acknowledged": hello.acknowledged,
        "known_stream": record.stream.hex(),
        "known_slot": record.slot,
        "known_changes": record.changes,
        "condition": start.condition.name,
        "assume_clean": start.assumption.value,
    }


def _assumption(hello: Hello, record: ReplicaRecord) -> Assumption:
    if not hello.assume_clean:
        return Assumption.NOT_GIVEN
    if record.source != NO_SOURCE or record.is_given_up:
        return Assumption.HAD_SOURCE
    return Assumption.TAKEN if hello.is_assumption else Assumption.HAD_TARGET


def _unrelated(hello: Hello, record: ReplicaRecord) -> str:
    found = f"found source {hello.source.hex()}"
    allows = f"`bdr adopt {record.volume} --source {hello.source.hex()}` on the target's host"
    if record.source == NO_SOURCE:
        wanted = "wanted a blank target, but its device holds data, of no source that is known"
        allows += ", or `bdr server --adopt`,"
    else:
        wanted = f"wanted {record.source.hex()}, whose replica this is"
    return f"{found}, {wanted}; if what the target holds may be overwritten, {allows} allows it"


def _two_histories(hello: Hello, record: ReplicaRecord) -> str:
    return (
        f"found this source at generation {hello.generations[0].hex()}, slots {hello.tail} to "
        f"{hello.head}, changes {hello.acknowledged} to {hello.counted}, wanted generation "
        f"{record.generation.hex()} in its past, and slot {record.slot}, change {record.changes} "
        "among them: the source was reverted, restored or cloned, or the replica was written by "
        "another that has its id; each side has what the other lacks. `bdr demote --give-up` on "
        "the target's host gives up what only the target has"
    )
