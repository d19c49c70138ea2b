# SPDX-License-Identifier: GPL-2.0-only
"""What a target says of its session and its replica."""

from __future__ import annotations

from bdr.common.target.replica import Replica
from bdr.common.target.session import Session
from bdr.common.target.silence import Silence
from bdr.common.wire.control import Ack, Welcome
from bdr.common.wire.statement import STAMP_ORIGIN_NS


def stamp_ns(now_at: float) -> int:
    """The target's stamp of a message; see `common.wire.statement`."""
    return STAMP_ORIGIN_NS + int(now_at * 1e9)


def acknowledgement(session: Session, replica: Replica, arrivals: Silence) -> Ack:
    """Of what was accepted, and what of it is durable; `arrivals` are those of bytes."""
    record = replica.record
    return Ack(
        record.epoch,
        session.accepted,
        session.durable,
        record.condition,
        record.since_utc,
        replica.age.as_of_utc,
        int(max(0.0, arrivals.seconds)),
        stamp_ns(replica.now_at),
    )


def welcome(session: Session, replica: Replica) -> Welcome:
    """The answer to the HELLO that was admitted last."""
    expected = replica.expected
    return Welcome(
        attempt=session.attempt,
        epoch=expected.epoch,
        number=1,
        slot=expected.slot,
        changes=expected.changes,
        condition=expected.condition,
        target=expected.target,
        recent=expected.recent,
        as_of_ns=expected.as_of_ns,
        sent_ns=stamp_ns(replica.now_at),
    )
