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
    Batch,
    BatchHeader,
    BatchKind,
    Marker,
    decode_batch,
    encode_batch,
)
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Hello, Message, Welcome

STREAM = b"stream-of-tests!"
OTHER_STREAM = b"another-stream.."
DEVICE_SECTORS = 1024
PEER = b"peer"
EPOCH = 4
"""Of the first session after `RECORD`."""
RECORD = ReplicaRecord(
    volume="v",
    device_sectors=DEVICE_SECTORS,
    stream=STREAM,
    slot=50,
    epoch=EPOCH - 1,
    condition=Condition.CONSISTENT,
    clean=True,
)
BLANK = ReplicaRecord("v", DEVICE_SECTORS)
HELLO = Hello(
    protocol=PROTOCOL,
    attempt=1,
    volume="v",
    stream=STREAM,
    device_sectors=DEVICE_SECTORS,
    tail=40,
    head=100,
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


def make_marker(number: int, first: int, marker: Marker, epoch: int = EPOCH) -> Batch:
    """A batch that only declares a condition."""
    header = BatchHeader(BatchKind.MARKER, marker, STREAM, epoch, number, first, 0)
    return decode_batch([encode_batch(header, b"", b""), b"", b""])


def damaged(batch: Batch) -> Batch:
    """One of which something was overwritten on the way."""
    return replace(batch, payload=bytes(len(batch.payload)))


class TargetRig:
    """A node, and short names for what may happen to it."""

    def __init__(
        self, record: ReplicaRecord = RECORD, settings: TargetSettings | None = None
    ) -> None:
        self.node = TargetNode(record=record, settings=settings)

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
    """That are sent."""
    return [action.message for action in of(Send, actions)]


def jobs(actions: list[Action]) -> list[Job]:
    """For the disk."""
    return [action.job for action in of(Apply, actions)]


def acked(actions: list[Action]) -> list[tuple[int, int, int]]:
    """Epoch, accepted and durable of each acknowledgement; there is nothing else."""
    found = messages(actions)
    assert all(isinstance(message, Ack) for message in found)
    return [(each.epoch, each.accepted, each.durable) for each in found]  # type: ignore[union-attr]
