# SPDX-License-Identifier: GPL-2.0-only
"""Recognises the device that has the replica, before anything is written to it."""

from __future__ import annotations

from bdr.common.errors import WrongDeviceError
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Device, Witness
from bdr.common.target.witness_check import (
    Finding,
    Outcome,
    Versions,
    contents,
    of_another_moment,
)
from bdr.services.runtime import log


def recognised(
    device: Device, record: ReplicaRecord, witness: bytes
) -> tuple[ReplicaRecord, Witness]:
    """The record to go on with where no journal is in use, and the witness to go on with.

    Args:
        record: what the state file has.
        witness: that beside it.

    Raises:
        WrongDeviceError: it is another device.
    """
    kept = Witness.decode(witness) or Witness()
    if not record.clean:
        # Any later version may be on it, which only the source knows.
        return record, Witness()
    if check(device, Versions(kept), record) is Outcome.OTHER_MOMENT:
        return of_another_moment(record), Witness()
    return record, kept


def check(device: Device, versions: Versions, record: ReplicaRecord) -> Outcome:
    """What the device is; the log has a line if it is of another moment.

    Raises:
        WrongDeviceError: it is another device.
    """
    evidence = versions.evidence(contents(device, versions.witness))
    outcome, fixed, recent = evidence.outcome, evidence.fixed, evidence.recent
    if outcome is Outcome.OTHER_DISK:
        raise WrongDeviceError(
            f"target of volume {record.volume}: found a device that holds something else in "
            f"{fixed.count(Finding.DIFFERS)} of {len(fixed)} places, wanted the one that has the "
            "replica; name that as target and start the applier again, or, if this one is to "
            f"become the replica, `bdr adopt {record.volume}` has everything compared and "
            "overwritten"
        )
    if outcome is Outcome.OTHER_MOMENT:
        log.logger().warning(
            "device-of-another-moment",
            slot=record.slot,
            condition=record.condition.name,
            fixed=", ".join(each.name for each in fixed),
            recent=", ".join(each.name for each in recent),
            what="it, or its state file, was put back: everything is compared",
        )
    return outcome
