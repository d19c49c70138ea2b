# SPDX-License-Identifier: GPL-2.0-only
"""What a target says of its session and its replica."""

from __future__ import annotations

from bdr.common.target.record import ReplicaRecord
from bdr.common.target.session import Session
from bdr.common.target.silence import Silence
from bdr.common.wire.control import Ack, Welcome


def acknowledgement(session: Session, record: ReplicaRecord, arrivals: Silence) -> Ack:
    """Of what was accepted, and what of it is durable; `arrivals` are those of bytes."""
    return Ack(
        record.epoch,
        session.accepted,
        session.durable,
        record.condition,
        record.since_utc,
        record.accepted_utc,
        int(max(0.0, arrivals.seconds)),
    )


def welcome(session: Session, expected: ReplicaRecord) -> Welcome:
    """The answer to the HELLO that was admitted last; `expected` is before the first batch."""
    return Welcome(
        attempt=session.attempt,
        epoch=expected.epoch,
        number=1,
        slot=expected.slot,
        changes=expected.changes,
        condition=expected.condition,
        target=expected.target,
        recent=expected.recent,
    )
