# SPDX-License-Identifier: GPL-2.0-only
"""A target's node whose source, scanners and disk are the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from bdr.common.ring.layout import Op
from bdr.common.ring.slots import encode
from bdr.common.target import events
from bdr.common.target.events import Action, Apply, Event, Send
from bdr.common.target.job import Job
from bdr.common.target.node import TargetNode
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.batch import (
    PROTOCOL,
    AcceptedBatch,
    Batch,
    BatchHeader,
    BatchKind,
    Marker,
    decode_batch,
    encode_batch,
)
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Hello, Message, Refused, Welcome
from bdr.common.wire.statement import NO_STATEMENT, Statement

STREAM = b"stream-of-tests!"
OTHER_STREAM = b"another-stream.."
SOURCE = b"source-of-tests!"
OTHER_SOURCE = b"another-source.."
TARGET = b"target-of-tests!"
DEVICE_SECTORS = 1024
PEER = b"peer"
OLDER, GENERATION, NEWER = b"gener-01", b"gener-02", b"gener-03"
"""GENERATION is the newest that the target has seen."""
NONCE = 1
"""Of the target's first refusal for two histories."""
EPOCH = 4
"""Of the first session after `RECORD`."""
RECORD = ReplicaRecord(
    volume="v",
    device_sectors=DEVICE_SECTORS,
    target=TARGET,
    source=SOURCE,
    generation=GENERATION,
    changes=2,
    stream=STREAM,
    slot=50,
    epoch=EPOCH - 1,
    condition=Condition.CONSISTENT,
    clean=True,
    source_sectors=DEVICE_SECTORS,
)
BLANK = ReplicaRecord("v", DEVICE_SECTORS, target=TARGET)
HELLO = Hello(
    protocol=PROTOCOL,
    attempt=1,
    nonce=0,
    volume="v",
    source=SOURCE,
    generations=(GENERATION, OLDER),
    stream=STREAM,
    device_sectors=DEVICE_SECTORS,
    tail=40,
    head=100,
    acknowledged=2,
    counted=1026,
    assume_clean=False,
)
A = TypeVar("A")


def make_batch(number: int, first: int, count: int = 1, **fields: Any) -> Batch:
    """A batch as it comes off the wire, of writes of 4 KiB to sectors 8 x slot."""
    defaults: dict[str, Any] = {
        "kind": BatchKind.LIVE,
        "marker": Marker.NONE,
        "stream": STREAM,
        "epoch": EPOCH,
    }
    header = BatchHeader(number=number, first=first, count=count, **(defaults | fields))
    slots = np.arange(first, first + count, dtype=np.uint64)
    headers = encode(op=Op.WRITE, sector=slots * 8 % DEVICE_SECTORS).tobytes()
    payload = b"".join(bytes([slot % 251 + 1]) * 4096 for slot in slots.tolist())
    return decode_batch([encode_batch(header, headers, payload), headers, payload])


def make_marker(
    number: int,
    first: int,
    marker: Marker,
    epoch: int = EPOCH,
    stream: bytes = STREAM,
    statement: Statement = NO_STATEMENT,
) -> Batch:
    """A batch that only declares a condition."""
    kind = BatchKind.MARKER
    header = BatchHeader(kind, marker, stream, epoch, number, first, 0, statement=statement)
    return decode_batch([encode_batch(header, b"", b""), b"", b""])


def accepted_of(batch: Batch) -> AcceptedBatch:
    """What a target remembers of it."""
    header = batch.header
    return AcceptedBatch(header.epoch, header.number, header.first, header.count, batch.digest)


def damaged(batch: Batch) -> Batch:
    """One of which something was overwritten on the way."""
    return replace(batch, payload=bytes(len(batch.payload)))


class TargetRig:
    """A node, and short names for what may happen to it; its device is blank."""

    def __init__(
        self,
        record: ReplicaRecord = RECORD,
        settings: TargetSettings | None = None,
        *,
        is_blank: bool = True,
        nonce: int = 1,
        stride: int = 0,
        wrong_device: str | None = None,
    ) -> None:
        self.node = TargetNode(
            record=record,
            is_blank=is_blank,
            nonce=nonce,
            stride=stride,
            settings=settings,
            wrong_device=wrong_device,
        )

    @property
    def record(self) -> ReplicaRecord:
        return self.node.record

    def handle(self, event: Event) -> list[Action]:
        return self.node.handle(event)

    def tick(self, now_at: float, now_utc: int = 0) -> None:
        """Time passes, of which nothing follows."""
        assert self.handle(events.Tick(now_at, now_utc)) == []

    def pass_time(self, from_s: int, to_s: int) -> None:
        """Ticks, as often as a loop that is alive."""
        for quarter in range(4 * from_s, 4 * to_s + 1):
            self.tick(quarter / 4)

    def say(self, message: Message, peer: bytes = PEER) -> list[Action]:
        """A source or a scanner says this."""
        return self.handle(events.MessageArrived(peer, message))

    def lose(self, peer: bytes = PEER) -> None:
        """A message to this peer could not be sent."""
        assert self.handle(events.PeerLost(peer)) == []

    def bring(self, batch: Batch) -> list[Action]:
        """A sender or a scanner brings this."""
        return self.handle(events.BatchArrived(batch))

    def durable(self, job: int | None = None) -> list[Action]:
        """Jobs up to this one, or all, are durable."""
        return self.handle(events.Durable(self.node.jobs.last if job is None else job))


def open_session(
    record: ReplicaRecord = RECORD,
    hello: Hello = HELLO,
    settings: TargetSettings | None = None,
) -> TargetRig:
    """A rig whose source was welcomed, at 100 s."""
    rig = TargetRig(record, settings)
    rig.tick(100.0)
    assert len(jobs(rig.say(hello))) == 1
    (welcome,) = messages(rig.durable())
    assert isinstance(welcome, Welcome)
    return rig


def of(kind: type[A], actions: list[Action]) -> list[A]:
    """Those of this type."""
    return [action for action in actions if isinstance(action, kind)]


def messages(actions: list[Action]) -> list[Message]:
    """That are sent, without the time at which they are."""
    found = [action.message for action in of(Send, actions)]
    return [replace(each, sent_ns=0) if isinstance(each, Welcome | Ack) else each for each in found]


def jobs(actions: list[Action]) -> list[Job]:
    """For the disk."""
    return [action.job for action in of(Apply, actions)]


def refusal_of(actions: list[Action]) -> Refused:
    """The answer to a HELLO; nothing follows for the disk.

    Another session's source gets an ACK, which shows whether it is still connected.
    """
    *others, message = messages(actions)
    assert isinstance(message, Refused)
    assert len(others) <= 1
    assert all(isinstance(each, Ack) for each in others)
    assert jobs(actions) == []
    return message


def welcome_of(actions: list[Action]) -> Welcome:
    """The only message."""
    (message,) = messages(actions)
    assert isinstance(message, Welcome)
    return message


def welcome(rig: TargetRig, hello: Hello = HELLO, peer: bytes = PEER) -> Welcome:
    """A HELLO that is taken."""
    assert len(jobs(rig.say(hello, peer))) == 1
    return welcome_of(rig.durable())


def acked(actions: list[Action]) -> list[tuple[int, int, int]]:
    """Epoch, accepted and durable of each acknowledgement; there is nothing else."""
    found = messages(actions)
    assert all(isinstance(message, Ack) for message in found)
    return [(each.epoch, each.accepted, each.durable) for each in found]  # type: ignore[union-attr]
