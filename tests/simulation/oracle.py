# SPDX-License-Identifier: GPL-2.0-only
"""The checkers. They see everything, and are asked at every step that matters.

==  =========================================================================
P1  a slot is accepted only when its write has completed at the source
P2  accepted slots are the ring's, byte for byte; what reaches the device is what was
    accepted, in order; a replica called CONSISTENT is the source at a prefix, with no
    missed write in it
P3  whenever slots are released, and at any other moment, a power cut of the target now,
    the worst or any other, leaves a record that tells the truth (`judge`)
P4  where source and replica differ, the ring still has it, a bit says so, or the write is
    in flight: no mark is ever lost
P5  see `World.run`: after the faults both sides become identical
P6  no connection, and no batch, counts as lost by a limit of time while its bytes move
==  =========================================================================
"""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bdr.common.ring.layout import PAYLOAD_BYTES, Op
from bdr.common.source.events import Event, MessageArrived
from bdr.common.source.node import SourceNode
from bdr.common.target.extents import Extents
from bdr.common.target.job import Job
from bdr.common.target.node import TargetNode
from bdr.common.target.record import NO_STREAM, ReplicaRecord
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack
from bdr.common.wire.reasons import RefusedReason
from tests.simulation.history import History, differing
from tests.simulation.source import BrokenRuleError
from tests.simulation.stores import VOLUME

if TYPE_CHECKING:
    from tests.simulation.world import World

SHOWN = 8
PARTITION_S = 6.0
"""An acknowledgement may be so old."""
_TWO = RefusedReason.TWO_HISTORIES


class Oracle:
    """One for each run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._expected = bytearray()
        """What the device must hold after the jobs that have reached it."""
        self._accepted: tuple[bytes, int] = (NO_STREAM, 0)
        self._abandoned: dict[bytes, list[History]] = {}
        """Of a stream, what was written to it before its source went back."""
        self._epochs: set[int] = set()
        self._old_epochs: set[int] = set()
        self._place: tuple[bytes, int, int] | None = None
        self._is_split = False
        """A host went back, and no batch of a later session has been accepted."""
        self._split_place: tuple[bytes, int, int] | None = None
        """Where the replica was until then."""
        self._went_back = False
        self._is_cloned = False
        self._arrivals: deque[float] = deque(maxlen=10_000)
        """When bytes of batches arrived at the target."""
        self.may_be_inconsistent = False
        """Whether anything has happened that explains a replica which is not consistent."""

    def bytes_arrived(self) -> None:
        """Bytes of a batch arrived at the target."""
        self._arrivals.append(self._world.clock.now_at)

    def check_dead(self, acked_at: float) -> None:
        """A connection is taken for dead."""
        silent_s = self._world.clock.now_at - acked_at
        if silent_s < self._world.options.life.silent_s / 2:
            raise BrokenRuleError(f"P6: a connection was ended {silent_s:.1f} s after its last ACK")

    def check_lost(self, event: Event, *, idle_max_s: float) -> None:
        """A source takes its batches in flight for lost; by an acknowledgement: late ones."""
        if not isinstance(event, MessageArrived) or not isinstance(event.message, Ack):
            return
        now_at = self._world.clock.now_at
        since_at = now_at - idle_max_s - PARTITION_S
        moves = [since_at, *(at for at in self._arrivals if at > since_at), now_at]
        longest_s = max(after - before for before, after in pairwise(moves))
        if longest_s < idle_max_s / 2:
            raise BrokenRuleError(
                f"P6: late, though bytes arrived at least every {longest_s:.1f} s"
            )

    def host_went_back(self, stream: bytes | None) -> None:
        """A host goes back; the source to a `stream`, whose history up to now is given up."""
        if stream is not None:
            self._abandoned.setdefault(stream, []).append(self._world.histories[stream])
        self._is_split = self._went_back = True
        self._old_epochs = set(self._epochs)
        self.may_be_inconsistent = True

    def clone_greets(self) -> None:
        """The target may see two histories now; the source has only the replica's."""
        self._is_cloned = True

    def _lines(self, stream: bytes) -> list[History]:
        """What a stream may stand for: the last is what its source has now."""
        if stream not in self._world.histories:
            raise BrokenRuleError(f"stream {stream.hex()} is none that any source had")
        return [*self._abandoned.get(stream, []), self._world.histories[stream]]

    def _see_place(self, record: ReplicaRecord) -> None:
        place = record.stream, record.slot, record.changes
        before, self._place = self._place, place
        is_moved = place != before
        if self._is_split and is_moved and record.epoch not in self._old_epochs:
            self._is_split, self._split_place = False, before
        self._epochs.add(record.epoch)

    # P1 and P2: what is accepted.

    def on_accepted(self, job: Job) -> None:
        """The applier has made this job of a message or a batch."""
        world, record = self._world, job.record
        if record.stream not in (self._accepted[0], *world.histories):
            raise BrokenRuleError(f"another source has taken the replica over: {record}")
        stream, slot = self._accepted
        self._see_place(record)
        if stream == record.stream and record.slot < slot and not self._went_back:
            raise BrokenRuleError(f"P2: went back from {slot} to {record.slot}")
        is_begin = record.condition is Condition.UNVERIFIED and not len(job.headers)
        if stream == record.stream and record.slot > slot and not is_begin:
            self._check_slots(stream, job, first=slot)
        self._accepted = record.stream, record.slot
        self._check_reason(record)

    def _check_slots(self, stream: bytes, job: Job, *, first: int) -> None:
        """Slots from `first` on are the ring's: header and payload."""
        *abandoned, history = self._lines(stream)
        for line in abandoned:
            with contextlib.suppress(BrokenRuleError, IndexError):
                self._check_slots_of(line, job, first=first)
                return
        self._check_slots_of(history, job, first=first)

    def _check_slots_of(self, history: History, job: Job, *, first: int) -> None:
        count = job.record.slot - first
        words = np.frombuffer(job.headers, "<u8").tolist()
        if len(words) != count:
            raise BrokenRuleError(f"P2: {len(words)} headers for {count} slots")
        for at, word in enumerate(words):
            slot = first + at
            published = history.word(slot)
            if published is None:
                raise BrokenRuleError(f"P1: slot {slot} accepted, but its write has not completed")
            wanted = history.payload(slot)
            found = bytes(job.payload[at * PAYLOAD_BYTES : at * PAYLOAD_BYTES + len(wanted)])
            if word != published or found != wanted:
                raise BrokenRuleError(f"P2: slot {slot} was accepted as what it never was")

    def _check_reason(self, record: ReplicaRecord) -> None:
        is_prefix = record.condition in (Condition.CONSISTENT, Condition.CATCHING_UP)
        history = self._world.histories.get(record.stream)
        if is_prefix or self.may_be_inconsistent or history is None:
            return
        if not history.landed and not any(gap <= record.slot for gap in history.gaps):
            raise BrokenRuleError(
                f"{record.condition.name} at slot {record.slot}, and nothing explains it"
            )

    # P2: what reaches the device.

    def on_begun(self) -> None:
        """The applier has recovered: the device holds what it holds."""
        self._expected = bytearray(self._world.store.device.content)

    def on_device(self, extents: Extents, payload: bytes | memoryview) -> None:
        """A job is about to reach the device: what is to be there then."""
        for op, offset, length, at in zip(
            extents.op, extents.offset, extents.length, extents.source, strict=True
        ):
            content = payload[at : at + length] if op == Op.WRITE else bytes(length)
            self._expected[offset : offset + length] = content

    def on_applied(self, record: ReplicaRecord) -> None:
        """It has."""
        device = self._world.store.device.content
        if device != self._expected:
            sectors = differing(device, self._expected)[:SHOWN]
            raise BrokenRuleError(f"P2: slot {record.slot} was not applied as it is: {sectors}")
        if record.condition is Condition.CONSISTENT:
            self._check_consistent(record, device, "applied")

    def on_record_written(self) -> None:
        """It is not synced: a power cut may tear it."""
        if self._world.audit_rng.random() < self._world.options.audits:
            self.audit(worst=False)

    # P3 and P4: what a crash leaves.

    def on_recovered(self, record: ReplicaRecord) -> None:
        """An applier has begun, with this record."""
        self._accepted = record.stream, record.slot
        self._place = record.stream, record.slot, record.changes
        self.judge(record, self._world.store.device.content, "recovered")
        self._check_reason(record)
        self.on_begun()

    def check_release(self, tail: int) -> None:
        """`tail` is about to be released."""
        world = self._world
        if tail > world.gate.tail:
            for rng in (None, world.rng):
                if world.rng.random() < world.options.audits * (1.0 if rng is None else 0.3):
                    self.audit(worst=rng is None, tail=tail)

    def audit(self, *, worst: bool, tail: int | None = None) -> None:
        """A power cut of the target now, the worst or any other: what would be left?"""
        world = self._world
        if world.exchanges.is_wrong:
            return  # no applier begins on it
        left = world.store.after_power_cut(None if worst else world.audit_rng)
        for disk in left.disks().values():
            disk.fails_sync = disk.fails_write = disk.fuse = None
        record = left.recover().at_start()
        self.judge(record, left.device.content, "after a power cut", tail=tail)

    def judge(
        self, record: ReplicaRecord, content: bytearray, when: str, *, tail: int | None = None
    ) -> None:
        """Whether a record tells the truth about this content of the device."""
        world = self._world
        tail = world.gate.tail if tail is None else tail
        if record.condition is Condition.CONSISTENT:
            self._check_consistent(record, content, when)
        if self._is_split or (record.stream, record.slot, record.changes) == self._split_place:
            return  # whose history this is will be found out
        if record.stream != world.gate.stream:
            if tail and record.stream not in world.given_up:
                raise BrokenRuleError(
                    f"P3: {when}: slots below {tail} were released, and the target knows none"
                )
            return
        if record.slot < tail:
            raise BrokenRuleError(f"P3: {when}: {tail} released, found {record.slot}")
        if record.condition is Condition.UNKNOWN:
            return  # every region will be marked before anything else is declared
        excused = self._excused(record.slot)
        source = world.source_disk.content
        lost = [sector for sector in differing(content, source) if sector not in excused]
        if lost:
            raise BrokenRuleError(
                f"P4: {when}: {record.condition.name} at slot {record.slot}, but sectors "
                f"{lost[:SHOWN]} differ, and neither ring nor bitmap has them"
            )

    def _excused(self, slot: int) -> set[int]:
        """Sectors that may differ: marked, or of writes in the ring or in flight."""
        world = self._world
        gate, size = world.gate, world.gate.region_sectors
        found = {region * size + at for region in gate.active | gate.resync for at in range(size)}
        for write in world.application.in_flight:
            found.update(range(write.sector, write.sector + write.sectors))
        for write, _ in world.history.slots[slot:]:
            found.update(range(write.sector, write.sector + write.sectors))
        return found

    def _check_consistent(self, record: ReplicaRecord, found: bytearray, when: str) -> None:
        """The source as it was at this slot, before or after what was missed right there."""
        *abandoned, history = self._lines(record.stream)
        for line in abandoned:
            with contextlib.suppress(BrokenRuleError):
                self._check_consistent_of(line, record, found, when)
                return
        self._check_consistent_of(history, record, found, when)

    def _check_consistent_of(
        self, history: History, record: ReplicaRecord, found: bytearray, when: str
    ) -> None:
        moment = history.at(record.slot)
        wrong = moment.differs_from(found)
        if wrong:
            moment = moment.copy()
            for write in history.missed_at(record.slot):
                moment.replay(write, history.landed.get(write.number))
                if not moment.differs_from(found):
                    return
            raise BrokenRuleError(
                f"P2: {when}: CONSISTENT at slot {record.slot}, but sectors {wrong[:SHOWN]} are "
                "not the source's"
            )

    # Bounds.

    def check_source(self, node: SourceNode, volume: str, *, was_lied_to: bool) -> None:
        if volume != VOLUME and node.order.is_streaming:
            raise BrokenRuleError(f"the source of volume {volume!r} was let in")
        refused = node.session.refused
        is_two = refused is not None and refused.reason is _TWO
        if is_two and not (self._went_back or was_lied_to):
            raise BrokenRuleError(f"the only source is refused: {refused}")
        settings, window = self._world.options.source.window, node.order.window
        if window.in_flight > settings.batches or window.cursor - window.tail > settings.slots:
            raise BrokenRuleError(f"window: {window.in_flight} batches in flight")

    def check_target(self, node: TargetNode) -> None:
        if node.rival is not None and not (self._went_back or self._is_cloned):
            raise BrokenRuleError(f"two histories without a cause: {node.rival}, {node.record}")
        settings, waiting = node.settings.intake, node._intake.reorder._waiting
        size = sum(batch.size for batch in waiting.values())
        if (
            len(waiting) > settings.reorder_batches
            or size > settings.reorder_bytes
            or size != node._intake.reorder._size
        ):
            raise BrokenRuleError(f"reorder buffer: {len(waiting)} batches of {size} bytes")
