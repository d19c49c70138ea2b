# SPDX-License-Identifier: GPL-2.0-only
"""Scans under faults: the real sequencer, ticket office and replica around a model disk.

Time is a sequence of small steps, each drawn from one seed: a write begins or ends, a
message or batch arrives, in any order, a job is applied, a scanner reads one piece, a
process dies. Batches are not torn here; `world.py` does that.

Checkers: whenever the target calls itself CONSISTENT, it holds the source as it was at
the record's slot; in the end nothing is dirty and both are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from unittest import mock

import numpy as np

from common import replica, scan, sequencer, tickets, wire
from common.capture import Bitmap
from common.extents import Extents
from common.record import ReplicaRecord
from common.replica import Replica
from common.ring import SECTOR_BYTES, Mode, Op, published_count
from common.scan import Piece
from common.sequencer import Sequencer
from common.tickets import OfficeSettings, TicketOffice
from common.wire import Condition
from tests.simulation.source import BrokenRuleError, Gate, Write

SECTORS = 256
REGION_SECTORS = 16
PIECE_SECTORS = 32
PEER = b"reader"


@dataclass
class Scanner:
    """Mirrors `services/scanner.py`, one piece a step."""

    peer: bytes
    ask: int = 0
    work: tickets.Work | None = None
    pieces: list[Piece] = field(default_factory=list)
    todo: list[tuple[str, int]] = field(default_factory=list)
    own: dict[int, bytes] = field(default_factory=dict)
    theirs: dict[int, bytes] = field(default_factory=dict)
    barrier: int = 0
    is_committed: bool = False
    snapshot: bytes | None = None
    """The source when it first asked."""
    groups: list[list[tuple[int, scan.Flags]]] = field(default_factory=list)

    def forget(self) -> None:
        self.ask += 1
        self.work = None
        self.is_committed = False
        self.snapshot = None
        self.own.clear()
        self.theirs.clear()


class ScanWorld:
    """One run of one seed; `run` raises BrokenRuleError where a rule is broken."""

    reads_before_begin = False
    """A planted bug: what the scanner sends was read before its ticket was opened."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"scan-{seed}")
        self.now_s = 0.0
        rng = self.rng
        self.gate = Gate(
            capacity=rng.choice((16, 32)), device_sectors=SECTORS, region_sectors=REGION_SECTORS
        )
        self.disk = bytearray(rng.randbytes(SECTORS * SECTOR_BYTES))
        self.began = bytes(self.disk)
        self.history: list[tuple[int, Write]] = []
        """Admitted writes in order, with the head in front of each."""
        self.in_flight: list[Write] = []
        self.writes = 0
        self.is_faulty = True
        self.device = bytearray(rng.choice((bytes(len(self.disk)), self.began)))
        self.record = ReplicaRecord("v", SECTORS)
        self.scanners = [Scanner(b"scanner-%d" % n) for n in range(rng.choice((1, 2)))]
        self.kill_rate = rng.choice((0.0, 0.002, 0.01))
        self.write_rate = rng.choice((0.3, 0.6))
        self.start_target()
        self.start_reader()

    # Births.

    def start_target(self) -> None:
        self.target = Replica(record=self.record)
        self.target.handle(replica.Tick(self.now_s))
        self.jobs: list[replica.Apply] = []

    def start_reader(self) -> None:
        settings = sequencer.SequencerSettings(
            batch_slots=256, window_slots=512, overflow_min_s=0.2, overflow_max_s=0.5
        )
        self.machine = Sequencer(
            volume="v", info=self.gate.info(), status=self.gate.status(), settings=settings
        )
        self.office = TicketOffice(
            info=self.gate.info(),
            machine=self.machine,
            read_bits=self.read_bits,
            settings=OfficeSettings(pieces=3, ticket_sectors=96, ticket_s=3.0),
        )
        self.up: list[wire.Message] = []
        self.down: list[wire.Message] = []
        self.data: list[tuple[list[bytes], bool]] = []
        self.is_up = False

    def read_bits(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        bits = self.gate.resync if bitmap is Bitmap.RESYNC else self.gate.active
        return scan.pack_bits(np.array([first + i in bits for i in range(count)]))

    # The loop.

    def run(self, steps: int = 2500) -> None:
        with (
            mock.patch.object(scan, "PIECE_SECTORS", PIECE_SECTORS),
            mock.patch.object(tickets, "PIECE_SECTORS", PIECE_SECTORS),
        ):
            self._run(steps)

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.is_faulty = False
        for _ in range(60_000):
            if self.is_done():
                break
            self.step()
        else:
            raise BrokenRuleError(
                f"does not converge: {self.machine.phase} {self.machine.condition} "
                f"{self.gate.status()} {self.record}"
            )
        if self.device != self.disk:
            raise BrokenRuleError("nothing is dirty, and the replica differs")

    def is_done(self) -> bool:
        gate = self.gate
        return (
            not (self.in_flight or gate.active or gate.resync or self.jobs)
            and gate.mode is Mode.STREAM
            and gate.tail == gate.head
            and self.record.condition is Condition.CONSISTENT
            and self.machine.condition is Condition.CONSISTENT
        )

    def step(self) -> None:
        rng = self.rng
        self.now_s += rng.choice((0.001, 0.01, 0.05))
        if self.is_faulty and rng.random() < self.kill_rate:
            rng.choice((self.kill_reader, self.kill_target, self.lose_data, self.lose_scanner))()
        things: list[Callable[[], None]] = [
            self.look,
            self.pump,
            self.deliver,
            self.deliver,
            self.apply,
            self.apply,
            self.end_write,
            self.scan_once,
            self.scan_once,
            self.scan_once,
        ]
        if self.is_faulty and rng.random() < self.write_rate:
            things.append(self.begin_write)
            things.append(self.begin_write)
        rng.choice(things)()

    # The application.

    def begin_write(self) -> None:
        rng = self.rng
        sectors = rng.randint(1, 24)
        sector = rng.randrange(SECTORS - sectors)
        op = rng.choice((Op.WRITE, Op.WRITE, Op.WRITE, Op.DISCARD))
        # Few values, so that A-B-A happens.
        data = bytes([rng.randrange(3)]) * (sectors * SECTOR_BYTES) if op is Op.WRITE else b""
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
            write.apply_to(self.disk)
            return
        self.in_flight.remove(write)
        if write.logged:
            self.gate.publish(write, failed=False, slots=range(write.slots))
        else:
            self.gate.leave(write)

    # The reader.

    def look(self) -> None:
        self.tell(sequencer.Tick(self.now_s))
        if not self.is_up:
            self.is_up = True
            self.tell(sequencer.LinkUp())
        self.tell(sequencer.CaptureSeen(self.gate.status()))
        self.pump()

    def pump(self) -> None:
        self.tell(sequencer.Tick(self.now_s))
        must_go_on = True
        while must_go_on:
            actions = self.office.step(self.now_s)
            must_go_on = any(isinstance(a, tickets.Tell | tickets.Clear) for a in actions)
            self.perform(actions)
        machine = self.machine
        limit = machine.dispatch_limit
        count = (
            published_count(self.gate.headers, cursor=machine.cursor, limit=limit) if limit else 0
        )
        if count or (not limit and machine.has_mark_due):
            self.tell(sequencer.SendersReady(count))
        self.gate.release(machine.tail)

    def tell(self, event: sequencer.Event) -> None:
        for action in self.machine.handle(event):
            match action:
                case sequencer.Send(message):
                    self.up.append(message)
                case sequencer.Dispatch(header):
                    headers = self.gate.headers_at(header.first, header.count)
                    payload = self.gate.payload_at(header.first, header.count)
                    if self.office.is_noting and header.count:
                        self.office.dispatched(np.frombuffer(headers, "<u8"), payload)
                    top = wire.encode_batch(header, headers, payload)
                    self.data.append(([top, headers, payload], False))
                case sequencer.Resume():
                    self.resume()
                case sequencer.MarkAll():
                    self.gate.resync |= set(range(self.gate.info().regions))
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

    def perform(self, actions: list[tickets.Action]) -> None:
        must_look = False
        for action in actions:
            match action:
                case tickets.Reply(peer, answer):
                    for scanner in self.scanners:
                        if scanner.peer == peer:
                            self.answer(scanner, answer)
                case tickets.Clear(first, count):
                    self.gate.resync -= set(range(first, first + count))
                    must_look = True
                case tickets.Tell(event):
                    self.tell(event)
                case _:
                    pass
        if must_look:
            self.tell(sequencer.CaptureSeen(self.gate.status()))

    # Scanners.

    def answer(self, scanner: Scanner, answer: tickets.Answer) -> None:
        match answer:
            case tickets.Work():
                if answer.ask != scanner.ask or scanner.work is not None:
                    return
                scanner.work = answer
                scanner.pieces = wire.decode_ranges(answer.ranges)
                scanner.todo = [
                    (what, i) for i in range(len(scanner.pieces)) for what in ("own", "theirs")
                ]
                self.rng.shuffle(scanner.todo)
                scanner.barrier = self.target.last_job
            case tickets.Committed():
                if scanner.work is not None and scanner.work.ticket == answer.ticket:
                    self.send(scanner, answer)
            case tickets.Dropped(ticket):
                if scanner.work is not None and scanner.work.ticket == ticket:
                    scanner.forget()
            case _:
                pass

    def scan_once(self) -> None:
        scanner = self.rng.choice(self.scanners)
        work = scanner.work
        if work is None:
            scanner.snapshot = scanner.snapshot or bytes(self.disk)
            self.perform(self.office.request(scanner.peer, tickets.Ask(scanner.ask)))
        elif scanner.todo:
            what, index = scanner.todo[-1]
            sector, sectors = scanner.pieces[index]
            place = slice(sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES)
            if what == "own":
                source = (self.reads_before_begin and scanner.snapshot) or self.disk
                scanner.own[index] = bytes(source[place])
            elif not self.target.serves(work.epoch):
                self.commit(scanner, again=True)
                return
            elif self.target.durable_job < scanner.barrier:
                return
            else:
                scanner.theirs[index] = bytes(self.device[place])
            scanner.todo.pop()
        elif not scanner.is_committed:
            self.commit(scanner)

    def commit(self, scanner: Scanner, *, again: bool = False) -> None:
        work = scanner.work
        assert work is not None
        if again:
            request = tickets.Commit(work.ticket, 0, 0, work.ranges, b"")
            scanner.forget()
        else:
            chosen = []
            for index in range(len(scanner.pieces)):
                pair = (scan.block_digests(side[index]) for side in (scanner.own, scanner.theirs))
                chosen.append((index, scan.differing(*pair)))
            scanner.groups = scan.group_blocks(chosen, limit=4)
            scanner.is_committed = True
            request = tickets.Commit(work.ticket, len(scanner.groups), 0, b"", b"")
        self.perform(self.office.request(scanner.peer, request))

    def send(self, scanner: Scanner, committed: tickets.Committed) -> None:
        sizes = [sectors for _, sectors in scanner.pieces]
        flags = np.zeros(sum(sizes), np.bool_)
        if committed.excluded:
            flags = scan.unpack_bits(committed.excluded, sum(sizes))
        excluded = np.split(flags, np.cumsum(sizes)[:-1])
        for at, group in enumerate(scanner.groups):
            headers, payload = scan.build_batch(
                [
                    scan.Repair(scanner.pieces[i][0], scanner.own[i], blocks, excluded[i])
                    for i, blocks in group
                ]
            )
            header = wire.BatchHeader(
                wire.BatchKind.RESYNC,
                wire.Mark.NONE,
                self.gate.info().stream,
                committed.epoch,
                committed.number + at,
                committed.first,
                len(headers) // 8,
            )
            self.data.append(
                ([wire.encode_batch(header, headers, payload), headers, payload], True)
            )
        scanner.forget()

    # The target.

    def deliver(self) -> None:
        rng = self.rng
        kind = rng.choice(("up", "down", "data", "data"))
        if kind == "up" and self.up:
            self.hear(replica.MessageArrived(PEER, self.up.pop(0)))
        elif kind == "down" and self.down:
            self.tell(sequencer.Tick(self.now_s))
            self.tell(sequencer.MessageArrived(self.down.pop(0)))
            self.pump()
        elif kind == "data" and self.data:
            frames, _ = self.data.pop(rng.randrange(min(3, len(self.data))))
            self.hear(replica.BatchArrived(wire.decode_batch(list(frames))))

    def hear(self, event: replica.Event) -> None:
        self.target.handle(replica.Tick(self.now_s))
        for action in self.target.handle(event):
            match action:
                case replica.Apply():
                    self.jobs.append(action)
                case replica.Send(_, message):
                    self.down.append(message)
                case _:
                    pass

    def apply(self) -> None:
        if not self.jobs:
            return
        job = self.jobs.pop(0)
        self.put(job.extents, bytes(job.payload))
        self.record = job.record
        if self.record.condition is Condition.CONSISTENT:
            self.check_consistent()
        self.hear(replica.Durable(job.job))

    def put(self, extents: Extents, payload: bytes) -> None:
        for op, at, length, source in zip(
            extents.op, extents.offset, extents.length, extents.source, strict=True
        ):
            data = payload[source : source + length] if op == Op.WRITE else bytes(length)
            self.device[at : at + length] = data

    def check_consistent(self) -> None:
        """The source as it was at the record's slot, in front of or behind what missed it there."""
        slot = self.record.slot
        content = bytearray(self.began)
        at_slot: list[Write] = []
        for head, write in self.history:
            if write.logged:
                if write.first + write.slots <= slot:
                    write.apply_to(content)
                elif write.first < slot:
                    raise BrokenRuleError("a write in two halves")
            elif head < slot:
                write.apply_to(content)
            elif head == slot:
                at_slot.append(write)
        while content != self.device:
            if not at_slot:
                raise BrokenRuleError(f"CONSISTENT at slot {slot}, but no state of the source")
            at_slot.pop(0).apply_to(content)

    # Deaths.

    def kill_target(self) -> None:
        if self.jobs and self.rng.random() < 0.5:
            # Applied, and not yet remembered.
            self.put(self.jobs[0].extents, bytes(self.jobs[0].payload))
        self.start_target()
        self.disconnect()

    def kill_reader(self) -> None:
        self.start_reader()
        for scanner in self.scanners:
            scanner.forget()

    def disconnect(self) -> None:
        self.up.clear()
        self.down.clear()
        self.data.clear()
        self.is_up = False
        self.tell(sequencer.LinkDown())
        self.lose_scanner()

    def lose_data(self) -> None:
        """A sender's connection breaks."""
        self.data = [entry for entry in self.data if entry[1]]
        self.tell(sequencer.SenderLost())

    def lose_scanner(self) -> None:
        """A scanner dies, with what it had not sent."""
        scanner = self.rng.choice(self.scanners)
        self.data = [entry for entry in self.data if not entry[1]]
        scanner.forget()
        self.office.scanner_lost()
        self.pump()
