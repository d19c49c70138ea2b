# SPDX-License-Identifier: GPL-2.0-only
"""A source's node, its capture in memory, and a target and scanners that are the test.

The rig does what a reader does: it performs the node's actions on the capture, and answers
each `QueryStatus` at once. Everything else is up to the test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from bdr.common.capture.api import Bitmap, Capture, CaptureInfo, CaptureStatus
from bdr.common.capture.view import RingView
from bdr.common.ring.layout import PAYLOAD_BYTES, PHASE_SHIFT, WRITE_SLOTS_MAX, Mode, Op
from bdr.common.ring.slots import Headers, encode, phase, stamp
from bdr.common.source import events
from bdr.common.source.events import Action, Event
from bdr.common.source.identity import SourceRecord
from bdr.common.source.node import SourceNode
from bdr.common.source.settings import SourceSettings
from bdr.common.wire.batch import (
    AcceptedBatch,
    BatchHeader,
    Marker,
    decode_batch,
    encode_batch,
)
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Message, Welcome
from bdr.common.wire.scan import Answer, Request

STREAM = b"stream-of-tests!"
EPOCH = 7
INFO = CaptureInfo(
    stream=STREAM,
    device_sectors=1 << 20,
    capacity=4096,
    region_sectors=128,
    regions=1 << 13,
    underlying="",
)
STATUS = CaptureStatus(
    head=100,
    tail=40,
    unpublished=100,
    gap=None,
    last_gap=None,
    mode=Mode.STREAM,
    active_regions=0,
    resync_regions=0,
    unlogged=0,
    overflows=0,
    missed_writes=0,
    failed_writes=0,
    device_sectors=1 << 20,
    stream=STREAM,
    acknowledged=0,
    counted=0,
    clock_ns=1,
    marks=0,
    missed_since_ns=0,
)
SOURCE = b"source-of-tests!"
TARGET = b"target-of-tests!"
GENERATION, OLDER = b"gener-02", b"gener-01"
RECORD = SourceRecord(
    source=SOURCE, volume="v", device_sectors=1 << 20, generations=(GENERATION, OLDER)
)
A = TypeVar("A")


class RigCapture:
    """Headers, bitmaps, and a status that the test sets; as much of a `Capture` as a node needs.

    Args:
        status: its regions are the first ones of each bitmap.
    """

    def __init__(self, info: CaptureInfo, status: CaptureStatus) -> None:
        self.info = info
        self.bits: dict[Bitmap, set[int]] = {}
        self.end = status.tail
        """Next slot to be published."""
        self.released: list[tuple[int, int]] = []
        """What `release` was called with."""
        self.reads = 0
        """How often a bitmap was read."""
        self.resumes = 0
        self.table: list[tuple[int, int]] = []
        """Marks of the clock."""
        lap = phase(status.tail, info.capacity)
        is_of_lap = np.arange(info.capacity) < status.tail % info.capacity
        phases = np.where(is_of_lap, lap, lap ^ 1).astype(np.uint64)
        self.headers: Headers = phases << np.uint64(PHASE_SHIFT)
        self._lengths: dict[int, int] = {}
        self.show(status)

    def show(self, status: CaptureStatus) -> None:
        """What looks find from now on."""
        self._status = status
        self.bits[Bitmap.ACTIVE] = set(range(status.active_regions))
        self.bits[Bitmap.RESYNC] = set(range(status.resync_regions))

    def publish(
        self, slots: int = 1, *, op: Op = Op.WRITE, sector: int = 0, sectors: int = 8
    ) -> None:
        """Completes one write of so many slots; a range is `sectors` long."""
        is_short = op in (Op.WRITE, Op.NOP)
        last = np.arange(slots) == slots - 1
        where = sector + 8 * np.arange(slots, dtype=np.uint64)
        headers = encode(op=op, sector=where, sectors=sectors if is_short else 8, last=last)
        self._lengths[self.end] = sectors
        stamped = stamp(headers, first=self.end, capacity=self.info.capacity)
        for at in range(slots):
            self.headers[(self.end + at) % self.info.capacity] = stamped[at]
        self.end += slots

    # What a reader calls.

    def status(self) -> CaptureStatus:
        return replace(
            self._status,
            head=max(self._status.head, self.end),
            active_regions=len(self.bits[Bitmap.ACTIVE]),
            resync_regions=len(self.bits[Bitmap.RESYNC]),
        )

    def marks(self) -> list[tuple[int, int]]:
        return self.table

    def payload(self, first: int, count: int) -> memoryview:
        lengths = [self._lengths.get(slot, 0) for slot in range(first, first + count)]
        data = b"".join(each.to_bytes(8, "little").ljust(PAYLOAD_BYTES, b"\0") for each in lengths)
        return memoryview(data)

    def release(self, *, tail: int, cursor: int, acknowledged: int, counted: int) -> None:
        assert self._status.tail <= tail <= cursor <= max(self._status.head, self.end)
        assert self._status.acknowledged <= acknowledged <= counted
        assert self._status.counted <= counted
        self.released.append((tail, cursor))
        self._status = replace(self._status, tail=tail, acknowledged=acknowledged, counted=counted)

    def resume(self) -> None:
        self.resumes += 1
        self.bits[Bitmap.RESYNC] |= self.bits[Bitmap.ACTIVE]
        self.bits[Bitmap.ACTIVE].clear()
        self._status = replace(self._status, mode=Mode.STREAM)

    def read_bitmap(self, bitmap: Bitmap, *, first: int, count: int) -> bytes:
        self.reads += 1
        flags = [region in self.bits[bitmap] for region in range(first, first + count)]
        return np.packbits(flags, bitorder="little").tobytes()


class SourceRig:
    """See the module's text. A tick is a look, unless `settings` say otherwise."""

    def __init__(
        self,
        status: CaptureStatus = STATUS,
        *,
        info: CaptureInfo = INFO,
        dirty: Iterable[int] = (),
        record: SourceRecord = RECORD,
        assume_clean: bool = False,
        settings: SourceSettings | None = None,
    ) -> None:
        self.capture = RigCapture(info, status)
        self.capture.bits[Bitmap.RESYNC] |= set(dirty)
        self.node = SourceNode(
            record=record,
            info=info,
            status=self.capture.status(),
            ring=RingView(cast(Capture, self.capture)),
            assume_clean=assume_clean,
            settings=settings or SourceSettings(status_interval_s=0.0),
        )
        self.now_at = 0.0

    @property
    def dirty(self) -> set[int]:
        """Regions that are to be repaired."""
        return self.capture.bits[Bitmap.RESYNC]

    # Events.

    def handle(self, event: Event) -> list[Action]:
        """Has the node take an event, and does what it says; returns all of it, but looks."""
        done: list[Action] = []
        waiting = [event]
        while waiting:
            actions = self.node.handle(waiting.pop())
            assert events.QueryStatus() not in actions[:-1]
            for action in actions:
                if isinstance(action, events.QueryStatus):
                    waiting.append(events.StatusArrived(self.capture.status()))
                else:
                    self._perform(action)
                    done.append(action)
        return done

    def _perform(self, action: Action) -> None:
        capture = self.capture
        match action:
            case events.Release(tail, cursor, acknowledged, counted):
                capture.release(
                    tail=tail, cursor=cursor, acknowledged=acknowledged, counted=counted
                )
            case events.Resume():
                capture.resume()
            case events.MarkRegions(first, count):
                capture.bits[Bitmap.RESYNC] |= set(range(first, first + count))
            case events.ClearRegions(first, count):
                capture.bits[Bitmap.RESYNC] -= set(range(first, first + count))

    def tick(self, now_at: float | None = None) -> list[Action]:
        """Time passes."""
        self.now_at = self.now_at if now_at is None else now_at
        return self.handle(events.Tick(self.now_at))

    def look(self, status: CaptureStatus | None = None, **changes: Any) -> list[Action]:
        """The node looks, and finds this; without, what is so."""
        if status is not None:
            self.capture.show(status)
        self.capture._status = replace(self.capture._status, **changes)
        return self.tick()

    def hear(self, message: Message) -> list[Action]:
        """A message of the target."""
        return self.handle(events.MessageArrived(message))

    def welcome(
        self,
        slot: int,
        condition: Condition = Condition.CONSISTENT,
        *,
        attempt: int | None = None,
        epoch: int = EPOCH,
        number: int = 1,
        changes: int | None = None,
        recent: tuple[AcceptedBatch, ...] = (),
    ) -> list[Action]:
        """The target takes the latest HELLO, or that of `attempt`."""
        attempt = self.node.session.attempt if attempt is None else attempt
        changes = self.node.order.window.acknowledged if changes is None else changes
        return self.hear(Welcome(attempt, epoch, number, slot, changes, condition, TARGET, recent))

    def ack(self, durable: int, accepted: int | None = None, *, idle_s: int = 0) -> list[Action]:
        """The target acknowledges batches of this epoch; no byte has arrived for `idle_s`."""
        order = self.node.order
        accepted = durable if accepted is None else accepted
        return self.hear(Ack(order.epoch, accepted, durable, order.condition, 0, 0, idle_s))

    def request(self, request: Request, peer: bytes = b"scanner") -> list[Answer]:
        """A scanner or a command asks; returns what anyone is answered."""
        return answers(self.handle(events.RequestArrived(peer, request)))

    def next_batch(self) -> BatchHeader | None:
        """A sender can take one."""
        found = headers(self.handle(events.SenderReady()))
        assert len(found) <= 1
        return found[0] if found else None

    def dispatch(self, slots: int) -> BatchHeader:
        """So many slots are published, and then a batch goes out, the marker first."""
        while slots > 0:
            self.capture.publish(min(slots, WRITE_SLOTS_MAX))
            slots -= WRITE_SLOTS_MAX
        header = self.next_batch()
        assert header is not None
        return header

    def marker(self) -> Marker | None:
        """The marker that is due, which goes out; None if none is."""
        header = self.next_batch()
        assert header is None or not header.count
        return header.marker if header else None

    def accepted(self, header: BatchHeader) -> AcceptedBatch:
        """What a target remembers of it."""
        ring, place = RingView(cast(Capture, self.capture)), (header.first, header.count)
        slots, payload = ring.slots(*place).tobytes(), ring.payload(*place)
        digest = decode_batch([encode_batch(header, slots, payload), slots, payload]).digest
        return AcceptedBatch(header.epoch, header.number, *place, digest)

    def end_round(self) -> list[tuple[int, int]]:
        """Nothing else happens; returns what is released, and for what slot it waits."""
        found = of(events.Release, self.handle(events.RoundEnded()))
        return [(each.tail, each.cursor) for each in found]


def streaming(
    status: CaptureStatus = STATUS,
    *,
    slot: int | None = None,
    condition: Condition = Condition.CONSISTENT,
    info: CaptureInfo = INFO,
    dirty: Iterable[int] = (),
    settings: SourceSettings | None = None,
) -> SourceRig:
    """A rig whose HELLO was answered by this condition."""
    rig = SourceRig(status, info=info, dirty=dirty, settings=settings)
    slot = status.tail if slot is None else slot
    rig.capture.end = slot
    rig.handle(events.LinkUp())
    rig.welcome(slot, condition)
    return rig


def of(kind: type[A], actions: Iterable[object]) -> list[A]:
    """Those of this type."""
    return [action for action in actions if isinstance(action, kind)]


def headers(actions: list[Action]) -> list[BatchHeader]:
    """Of batches that senders shall send."""
    return [action.header for action in of(events.Dispatch, actions)]


def messages(actions: list[Action]) -> list[Message]:
    """To the target."""
    return [action.message for action in of(events.Send, actions)]


def answers(actions: list[Action]) -> list[Answer]:
    """To scanners and commands."""
    return [action.answer for action in of(events.Reply, actions)]


def topics(actions: list[Action]) -> list[str]:
    """Of what is announced."""
    return [action.name for action in of(events.Announce, actions)]
