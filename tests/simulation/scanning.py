# SPDX-License-Identifier: GPL-2.0-only
"""Scans under faults: sequencer, ticket office, comparers, replica, record and journal.

Time is a sequence of small steps, each drawn from one seed: a write begins or ends, a
message or batch arrives, a job is written or synced, a scanner reads one piece, a
process dies, the target's power is cut in the middle of a write, its disk fails. The
parts that take part are the real ones; `scan_parts.py` has what stands around them.

Checkers, whenever the replica is called CONSISTENT, after each recovery, and on what a
power cut at any moment would leave:

- CONSISTENT is the source as it was at the record's slot.
- Nothing that was released is lost.
- Where source and replica differ, the ring still has it, a bit says so, or the write is
  in flight: no mark is ever lost.

In the end nothing is dirty, and both are equal.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from unittest import mock

import numpy as np

from bdr.common.capture.api import Bitmap
from bdr.common.journal import engine as journal_engine
from bdr.common.journal.format import BLOCK_BYTES
from bdr.common.ring.layout import SECTOR_BYTES, Mode, Op
from bdr.common.ring.slots import published_count
from bdr.common.scan import plan
from bdr.common.source import scheduler, sequencer
from bdr.common.source.scheduler import OfficeSettings, TicketOffice
from bdr.common.source.sequencer import Sequencer
from bdr.common.target import replica
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire import control as wire
from bdr.common.wire.control import Condition
from tests.simulation.disk import DiskFailedError, PowerLostError
from tests.simulation.scan_parts import Flying, Scanner, Target, place
from tests.simulation.source import STREAM, BrokenRuleError, Gate, Write
from tests.simulation.stores import VOLUME, DirectStore, JournalStore, Store

SECTORS = 256
REGION_SECTORS = 16
PIECE_SECTORS = 32
PEER = b"reader"
AUDITS = 0.01
"""At which share of the steps the target's disks are judged."""


class ScanWorld:
    """One run of one seed; `run` raises BrokenRuleError where a rule is broken."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = Random(f"scan-{seed}")
        self.now_s = 0.0
        capacity = rng.choice((16, 32))
        self.gate = Gate(capacity=capacity, device_sectors=SECTORS, region_sectors=REGION_SECTORS)
        self.disk = bytearray(rng.randbytes(SECTORS * SECTOR_BYTES))
        self.began = bytes(self.disk)
        self.history: list[tuple[int, Write]] = []
        """Admitted writes in order, with the head in front of each."""
        self.failed: dict[int, Write] = {}
        """Writes that failed, by number, to what of them has landed."""
        self.in_flight: list[Write] = []
        self.writes = 0
        self.is_faulty = True
        kind = rng.choice((DirectStore, JournalStore))
        self.store: Store = kind.blank(
            device_sectors=SECTORS,
            log_bytes=rng.choice((3, 8)) * (capacity + 1) * BLOCK_BYTES,
            on_device=_nothing,
        )
        self.device_pace = rng.choice((1.0, 0.05))
        """How fast the device follows the journal."""
        self.kept_bytes = rng.choice((0, 32 << 20))
        blank = bytes(len(self.disk))
        self.store.device.content[:] = self.store.device.synced[:] = rng.choice((blank, self.began))
        self.kill_rate = rng.choice((0.0, 0.002, 0.01))
        self.write_rate = rng.choice((0.3, 0.6))
        self.failing_writes = rng.choice((0.0, 0.0, 0.05))
        self.failing_reads = rng.choice((0.0, 0.0, 0.2))
        self.deaths: list[Callable[[], None]] = [
            thing
            for thing in (
                self.kill_reader,
                self.kill_target,
                self.stop_target,
                self.cut_power,
                self.fail_disk,
                self.lose_links,
                self.lose_data,
                self.lose_scanner_links,
                self.kill_scanner,
            )
            if rng.random() < 0.6
        ] or [self.kill_scanner]
        # A stream of its own: it came later than the seeds that are named in tests.
        self.senders = Random(f"senders-{seed}")
        self.sender_pace = self.senders.choice((1.0, 0.1))
        """How often a sender takes a batch that is there."""
        self.data_pace = self.senders.choice((1.0, 0.1))
        """How fast batches arrive beside everything else."""
        self.user = Random(f"user-{seed}")
        self.asking_rate = self.user.choice((0.0, 0.003))
        """How often a user asks for a resync of a part."""
        self.is_coarse = self.senders.random() < 0.5
        """Writes of whole blocks and of two values, so that what was comes again."""
        self.up: list[wire.Message] = []
        self.down: list[wire.Message] = []
        self.data: list[Flying] = []
        self.target: Target | None = None
        self.scanners = [Scanner(self, b"scanner-%d" % n) for n in range(rng.choice((1, 2)))]

    # The loop.

    def run(self, steps: int = 2500) -> None:
        with (
            mock.patch.object(plan, "PIECE_SECTORS", PIECE_SECTORS),
            mock.patch.object(scheduler, "PIECE_SECTORS", PIECE_SECTORS),
            mock.patch.object(journal_engine, "KEPT_BYTES_MAX", self.kept_bytes),
        ):
            self._run(steps)

    def _run(self, steps: int) -> None:
        self.start_reader()
        for _ in range(steps):
            self.step()
        self.is_faulty = False
        for disk in self.store.disks().values():
            disk.fails_sync = disk.fails_write = disk.fuse = None
        for _ in range(60_000):
            if self.is_done():
                break
            self.step()
        else:
            raise BrokenRuleError(
                f"does not converge: {self.machine.phase} {self.machine.condition} "
                f"{self.gate.status()} {self.target and self.target.machine.record}"
            )
        if self.store.device.content != self.disk:
            raise BrokenRuleError("nothing is dirty, and the replica differs")
        self.audit()

    def is_done(self) -> bool:
        gate, target = self.gate, self.target
        return (
            target is not None
            and not (self.in_flight or gate.active or gate.resync or target.jobs or target.written)
            and gate.mode is Mode.STREAM
            and gate.tail == gate.head
            and target.machine.record.condition is Condition.CONSISTENT
            and self.machine.condition is Condition.CONSISTENT
            and not target.store.step()
        )

    def step(self) -> None:
        rng = self.rng
        self.now_s += rng.choice((0.001, 0.01, 0.05))
        if self.is_faulty and rng.random() < self.kill_rate:
            rng.choice(self.deaths)()
        if self.target is None and rng.random() < 0.1:
            self.start_target()
        things: list[Callable[[], None]] = [
            self.look,
            self.pump,
            self.deliver,
            self.deliver,
            self.deliver,
            self.work,
            self.work,
            self.answer,
            self.answer,
            self.end_write,
            *[rng.choice(self.scanners).step] * 4,
        ]
        if self.is_faulty and self.user.random() < self.asking_rate:
            self.ask_for_resync()
        if self.is_faulty and rng.random() < self.write_rate:
            things += [self.begin_write] * 2
        rng.choice(things)()
        if rng.random() < AUDITS:
            self.audit()

    # The application.

    def begin_write(self) -> None:
        rng = self.rng
        sectors = rng.randint(1, 24)
        sector = rng.randrange(SECTORS - sectors)
        op = rng.choice((Op.WRITE, Op.WRITE, Op.WRITE, Op.DISCARD))
        # Few values, so that A-B-A happens.
        value = rng.randrange(3) if op is Op.WRITE else 0
        if self.is_coarse:
            sector, sectors, value = sector & ~7, (sectors + 7) & ~7, value & 1
        data = bytes([value]) * (sectors * SECTOR_BYTES) if op is Op.WRITE else b""
        self.writes += 1
        write = Write(self.writes, op, sector, sectors, False, data, 0)
        if len(self.in_flight) > 4 or any(write.overlaps(other) for other in self.in_flight):
            return
        head = self.gate.head
        self.gate.admit(write)
        self.history.append((head, write))
        self.in_flight.append(write)

    def end_write(self) -> None:
        if not self.in_flight:
            return
        write = self.rng.choice(self.in_flight)
        if not write.has_landed:
            write.has_landed = True
            if self.rng.random() < self.failing_writes:
                half = write.sectors // 2
                part = replace(write, sectors=half, data=write.data[: half * SECTOR_BYTES])
                self.failed[write.number] = part
                self.gate.failed += 1
                part.apply_to(self.disk)
            else:
                write.apply_to(self.disk)
            return
        self.in_flight.remove(write)
        if write.logged:
            is_failed = write.number in self.failed
            self.gate.publish(write, failed=is_failed, slots=range(write.slots))
        else:
            self.gate.leave(write)

    def may_fail_read(self) -> bool:
        """Whether the source cannot be read here and now."""
        return self.is_faulty and self.rng.random() < self.failing_reads

    # The reader.

    def start_reader(self) -> None:
        settings = sequencer.SequencerSettings(
            batch_slots=256, window_slots=512, overflow_min_s=0.2, overflow_max_s=0.5
        )
        self.machine = Sequencer(
            volume=VOLUME, info=self.gate.info(), status=self.gate.status(), settings=settings
        )
        self.office = TicketOffice(
            info=self.gate.info(),
            machine=self.machine,
            read_bits=self.read_bits,
            settings=OfficeSettings(pieces=3, ticket_sectors=96, ticket_s=20.0, unreadable_s=1.0),
        )
        self.up.clear()
        self.down.clear()
        self.is_up = False

    def read_bits(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        bits = self.gate.resync if bitmap is Bitmap.RESYNC else self.gate.active
        return plan.pack_bits(np.array([first + i in bits for i in range(count)]))

    def look(self) -> None:
        self.tell(sequencer.Tick(self.now_s))
        if not self.is_up and self.target is not None:
            self.is_up = True
            self.tell(sequencer.LinkUp())
        self.tell(sequencer.CaptureSeen(self.gate.status()))
        self.pump()

    def pump(self) -> None:
        self.tell(sequencer.Tick(self.now_s))
        must_go_on = True
        while must_go_on:
            actions = self.office.step(self.now_s)
            must_go_on = any(isinstance(a, scheduler.Tell | scheduler.Clear) for a in actions)
            self.perform(actions)
        machine = self.machine
        limit = machine.dispatch_limit
        count = (
            published_count(self.gate.headers, cursor=machine.cursor, limit=limit) if limit else 0
        )
        has_batch = count or (not limit and machine.has_mark_due)
        if has_batch and self.senders.random() < self.sender_pace:
            self.tell(sequencer.SendersReady(count))
        self.gate.release(machine.tail)

    def tell(self, event: sequencer.Event) -> None:
        for action in self.machine.handle(event):
            match action:
                case sequencer.Send(message):
                    if self.is_up:
                        self.up.append(message)
                case sequencer.Dispatch(header):
                    headers = self.gate.headers_at(header.first, header.count)
                    payload = self.gate.payload_at(header.first, header.count)
                    if self.office.is_noting and header.count:
                        self.office.dispatched(np.frombuffer(headers, "<u8"), payload)
                    top = wire.encode_batch(header, headers, payload)
                    self.data.append(Flying(header, top, None, None))
                case sequencer.Resume():
                    self.resume()
                case sequencer.MarkAll():
                    self.gate.mark_all()
                    self.tell(sequencer.CaptureSeen(self.gate.status()))
                case sequencer.Stop(error):
                    raise BrokenRuleError(str(error))
                case _:
                    pass

    def resume(self) -> None:
        """The request waits for unlogged writes; others may begin and end meanwhile."""
        self.gate.begin_resume()
        while not self.gate.is_drained():
            self.begin_write()
            self.end_write()
        self.gate.merge()
        self.tell(sequencer.CaptureSeen(self.gate.status()))

    def ask_for_resync(self) -> None:
        first = self.user.randrange(SECTORS)
        ranges = wire.encode_ranges([(first, self.user.randint(1, SECTORS - first))])
        self.perform(self.office.request(b"user", scheduler.MarkDirty(1, ranges)))

    def perform(self, actions: list[scheduler.Action]) -> None:
        must_look = False
        for action in actions:
            match action:
                case scheduler.Reply(peer, answer):
                    for scanner in self.scanners:
                        if scanner.peer == peer:
                            scanner.from_office.append(answer)
                case scheduler.Clear(first, count):
                    self.gate.resync -= set(range(first, first + count))
                    must_look = True
                case scheduler.MarkRegions(first, count):
                    self.gate.resync |= set(range(first, first + count))
                    must_look = True
                case scheduler.Tell(event):
                    self.tell(event)
                case _:
                    pass
        if must_look:
            self.tell(sequencer.CaptureSeen(self.gate.status()))

    # The network.

    def deliver(self) -> None:
        rng, target = self.rng, self.target
        scanner = rng.choice(self.scanners)
        ways: list[list[object] | deque[object]] = [scanner.to_office, self.down]
        if target is not None:
            ways += [self.up, self.data, self.data, scanner.to_target]
        busy = [way for way in ways if way]
        way = rng.choice(busy) if busy else None
        if way is scanner.to_office:
            self.perform(self.office.request(scanner.peer, scanner.to_office.popleft()))
        elif way is self.down:
            self.tell(sequencer.Tick(self.now_s))
            self.tell(sequencer.MessageArrived(self.down.pop(0)))
            self.pump()
        elif target is None:
            return
        elif way is self.up:
            target.hear(replica.MessageArrived(PEER, self.up.pop(0)))
        elif way is scanner.to_target:
            target.ask(scanner, scanner.to_target.popleft())
        elif way is self.data and self.senders.random() < self.data_pace:
            flying = self.data.pop(rng.randrange(min(3, len(self.data))))
            first, count = flying.header.first, flying.header.count
            # Of slots that were reused meanwhile: torn.
            frames = flying.frames or [
                self.gate.headers_at(first, count),
                self.gate.payload_at(first, count),
            ]
            target.hear(replica.BatchArrived(wire.decode_batch([flying.top, *frames])))

    # The target.

    def start_target(self) -> None:
        with self.target_disks():
            target = Target(self)
            self.judge(target.machine.record, bytes(self.store.device.content), "recovered")
            self.target = target

    def work(self) -> None:
        if self.target is not None:
            with self.target_disks():
                self.target.work()

    def answer(self) -> None:
        if self.target is not None:
            self.target.answer()

    @contextlib.contextmanager
    def target_disks(self) -> Iterator[None]:
        """What runs in here may find that a disk fails, or the power."""
        try:
            yield
        except DiskFailedError:
            self.target_gone()
        except PowerLostError:
            self.target_gone()
            self.lose_power()

    def target_gone(self) -> None:
        """Its end, as others learn of it."""
        self.target = None
        self.disconnect()
        self.data.clear()
        for scanner in self.scanners:
            self.drop(scanner)

    def lose_power(self) -> None:
        self.store = self.store.after_power_cut(self.rng)

    def on_synced(self, record: ReplicaRecord) -> None:
        """The store has made it durable, and everything before."""
        if record.condition is Condition.CONSISTENT:
            if isinstance(self.store, DirectStore):
                self.judge(record, bytes(self.store.device.content), "synced")
            elif self.rng.random() < 0.1:
                self.audit()

    # Checkers.

    def audit(self) -> None:
        """A power cut of the target now, the worst or any other: what would be left?"""
        left = self.store.after_power_cut(self.rng.choice((None, self.rng)))
        for disk in left.disks().values():
            disk.fails_sync = disk.fails_write = disk.fuse = None
        record = left.recover().at_start()
        self.judge(record, bytes(left.device.content), "after a power cut")

    def judge(self, record: ReplicaRecord, content: bytes, when: str) -> None:
        """Whether the record tells the truth about this content of the device."""
        if record.stream != STREAM:
            if self.gate.tail:
                raise BrokenRuleError(f"{when}: slots were released, and the target knows none")
            return
        if record.slot < self.gate.tail:
            raise BrokenRuleError(f"{when}: {self.gate.tail} released, found {record.slot}")
        if record.condition is Condition.CONSISTENT:
            self.check_consistent(record.slot, content, when)
        if record.condition is Condition.UNKNOWN:
            return  # every region will be marked before anything else is said
        excused = self._excused(record.slot)
        lost = [sector for sector in differing(content, self.disk) if sector not in excused]
        if lost:
            raise BrokenRuleError(
                f"{when}: {record.condition.name} at slot {record.slot}, but sectors {lost[:8]} "
                "differ, and neither ring nor bitmap has them"
            )

    def _excused(self, slot: int) -> set[int]:
        """Sectors that may differ: marked, or of writes in the ring or in flight."""
        found = {
            region * REGION_SECTORS + at
            for region in self.gate.active | self.gate.resync
            for at in range(REGION_SECTORS)
        }
        for write in self.in_flight:
            found.update(range(write.sector, write.sector + write.sectors))
        for _, write in reversed(self.history):
            if write.logged and write.first + write.slots <= slot:
                break
            if write.logged:
                found.update(range(write.sector, write.sector + write.sectors))
        return found

    def check_consistent(self, slot: int, found: bytes, when: str) -> None:
        """The source as it was at this slot, in front of or behind what missed it there.

        Of a write that failed each sector may have come by a scan, or not at all.
        """
        content = bytearray(self.began)
        may_be: dict[int, list[bytes]] = {}
        at_slot: list[Write] = []
        for head, write in self.history:
            if write.logged and write.first < slot < write.first + write.slots:
                raise BrokenRuleError(f"{when}: a write in two halves")
            is_in = write.first + write.slots <= slot if write.logged else head < slot
            if is_in:
                self._replay(write, content, may_be)
            elif not write.logged and head == slot:
                at_slot.append(write)
        while not _is_one_of(found, content, may_be):
            if not at_slot:
                sectors = differing(found, content)[:8]
                raise BrokenRuleError(
                    f"{when}: CONSISTENT at slot {slot}, but no state of the source: {sectors}"
                )
            self._replay(at_slot.pop(0), content, may_be)

    def _replay(self, write: Write, content: bytearray, may_be: dict[int, list[bytes]]) -> None:
        landed = self.failed.get(write.number)
        if landed is None:
            for sector in range(write.sector, write.sector + write.sectors):
                may_be.pop(sector, None)
            write.apply_to(content)
            return
        after = bytearray(content)
        landed.apply_to(after)
        for sector in range(landed.sector, landed.sector + landed.sectors):
            before = may_be.setdefault(sector, [bytes(content[place(sector, 1)])])
            before.append(bytes(after[place(sector, 1)]))

    # Deaths.

    def kill_target(self) -> None:
        if self.target is not None:
            self.target.kill()
            self.target_gone()

    def stop_target(self) -> None:
        if self.target is not None:
            with self.target_disks():
                self.target.stop()
                self.target_gone()

    def cut_power(self) -> None:
        if self.rng.random() < 0.5:
            disks = sorted(self.store.disks().items())
            self.rng.choice(disks)[1].fuse = self.rng.randrange(9)
            return
        if self.target is not None:
            self.target_gone()
        self.lose_power()

    def fail_disk(self) -> None:
        disk = self.rng.choice(sorted(self.store.disks().items()))[1]
        if self.rng.random() < 0.5:
            disk.fails_write = "EIO"
        else:
            disk.fails_sync = "EIO"

    def kill_reader(self) -> None:
        self.start_reader()
        for scanner in self.scanners:
            scanner.lose_links()
            self._lose_some(scanner)
            if self.target is not None:
                self.target.forget(scanner)

    def disconnect(self) -> None:
        """Reader and target lose each other."""
        self.up.clear()
        self.down.clear()
        if self.is_up:
            self.is_up = False
            self.tell(sequencer.Tick(self.now_s))
            self.tell(sequencer.LinkDown())

    def lose_links(self) -> None:
        self.disconnect()

    def lose_data(self) -> None:
        """A sender's connection breaks; some of what was on its way may come late."""
        self._lose_some(None)
        self.tell(sequencer.SenderLost())

    def lose_scanner_links(self) -> None:
        self.drop(self.rng.choice(self.scanners))

    def drop(self, scanner: Scanner) -> None:
        """A scanner loses a connection, and drops the others."""
        scanner.lose_links()
        self._on_scanner_lost(scanner)

    def kill_scanner(self) -> None:
        scanner = self.rng.choice(self.scanners)
        scanner.start()
        self._on_scanner_lost(scanner)

    def _on_scanner_lost(self, scanner: Scanner) -> None:
        self._lose_some(scanner)
        if self.target is not None:
            self.target.forget(scanner)
        self.office.scanner_lost()
        self.pump()

    def _lose_some(self, sender: Scanner | None) -> None:
        keeps = self.rng.choice((0.0, 0.5))
        self.data = [
            flying
            for flying in self.data
            if flying.sender is not sender or self.rng.random() < keeps
        ]


def differing(one: bytes, other: bytes | bytearray) -> list[int]:
    """Sectors that differ."""
    rows = (np.frombuffer(side, np.uint64).reshape(-1, SECTOR_BYTES // 8) for side in (one, other))
    mine, theirs = rows
    return np.flatnonzero((mine != theirs).any(axis=1)).tolist()  # type: ignore[no-any-return]


def _is_one_of(found: bytes, content: bytearray, may_be: dict[int, list[bytes]]) -> bool:
    return all(
        found[place(sector, 1)] in may_be.get(sector, ()) for sector in differing(found, content)
    )


def _nothing(_: ReplicaRecord) -> None:
    return
