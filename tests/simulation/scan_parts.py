# SPDX-License-Identifier: GPL-2.0-only
"""Scanner and applier as in `services/`, around the real state machines, for `scanning.py`.

What a socket would deliver waits in a queue; what a thread would do is a task, and
takes a step a piece.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.scan import comparer
from bdr.common.scan.comparer import Comparer, ComparerSettings
from bdr.common.scan.digests import BLOCK_SECTORS, block_digests, digest
from bdr.common.scan.plan import Piece
from bdr.common.source import scheduler
from bdr.common.target import replica
from bdr.common.target.job import Apply
from bdr.common.target.replica import Replica
from bdr.common.wire import control as wire
from tests.simulation.disk import DiskFailedError, PowerLostError
from tests.simulation.source import STREAM, BrokenRuleError
from tests.simulation.stores import JournalStore

if TYPE_CHECKING:
    from tests.simulation.scanning import ScanWorld

SETTINGS = ComparerSettings(
    buffers=2,
    outgoing_batches=8,
    ask_again_s=1.0,
    job_s=15.0,
    rest_s=0.1,
    batch_blocks=4,
    digests=4,
)


def place(sector: int, sectors: int) -> slice:
    """Where a piece stands in a disk's content."""
    return slice(sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES)


@dataclass
class _Task:
    """What a scanner's thread is at."""

    order: comparer.Read | comparer.HashBlocks
    todo: list[int]
    pace: float
    """At which share of its turns it gets on: threads may be slow."""
    bad: dict[int, list[int]] = field(default_factory=dict)


class Scanner:
    """Mirrors `services/scanner.py`."""

    reads_before_begin = False
    """A planted bug: what it sends was read before its ticket was opened."""

    def __init__(self, world: ScanWorld, peer: bytes) -> None:
        self.world = world
        self.peer = peer
        self.start()

    def start(self) -> None:
        """A new process, with its links."""
        self.machine = Comparer(stream=STREAM, settings=SETTINGS)
        self.tasks: list[_Task] = []
        self.buffers: dict[int, bytearray] = {}
        self.snapshots: dict[int, bytes] = {}
        self.forget_messages()
        self.tell(comparer.LinksUp())

    def forget_messages(self) -> None:
        self.to_office: deque[scheduler.Request] = deque()
        self.from_office: deque[scheduler.Answer] = deque()
        self.to_target: deque[wire.Checksums] = deque()
        self.from_target: deque[wire.Digests] = deque()

    def lose_links(self) -> None:
        """One is lost, so all are."""
        self.forget_messages()
        self.tell(comparer.LinkLost())
        self.tell(comparer.LinksUp())

    def step(self) -> None:
        """Does one of the things that it can do."""
        rng = self.world.rng
        self.tell(comparer.Tick(self.world.now_s))
        waiting = [queue for queue in (self.from_office, self.from_target, self.tasks) if queue]
        chosen = rng.choice(waiting) if waiting else None
        if chosen is self.from_office:
            self.tell(comparer.Answered(self.from_office.popleft()))
        elif chosen is self.from_target:
            self.tell(comparer.DigestsArrived(self.from_target.popleft()))
        elif chosen is self.tasks:
            task = rng.choice(self.tasks)
            if rng.random() >= task.pace:
                pass
            elif task.todo:
                self.work(task)
            else:
                self.tasks.remove(task)
                self.tell(self.result(task))
        outgoing = sum(entry.sender is self for entry in self.world.data)
        self.tell(comparer.RoomSeen(outgoing))

    def tell(self, event: comparer.Event) -> None:
        rng = self.world.rng
        for action in self.machine.handle(event):
            match action:
                case comparer.TellOffice(request):
                    if isinstance(request, scheduler.Ask) and self.reads_before_begin:
                        self.snapshots[request.ask] = bytes(self.world.disk)
                    self.to_office.append(request)
                case comparer.AskTarget(message):
                    self.to_target.append(message)
                case comparer.Read(pieces=pieces) | comparer.HashBlocks(pieces=pieces):
                    todo = list(range(len(pieces)))
                    rng.shuffle(todo)
                    self.tasks.append(_Task(action, todo, pace=rng.choice((1.0, 1.0, 0.05))))
                case comparer.SendBatch():
                    self.send(action)
                case comparer.Note():
                    pass
                case comparer.Stop(error):
                    raise BrokenRuleError(f"the scanner stopped: {error}")

    # Threads.

    def work(self, task: _Task) -> None:
        """One piece more; hashing is done at once, in `result`."""
        index = task.todo.pop()
        if not isinstance(task.order, comparer.Read):
            return
        pieces = task.order.pieces
        sector, sectors = pieces[index]
        at = sum(before for _, before in pieces[:index]) * SECTOR_BYTES
        size = sum(each for _, each in pieces) * SECTOR_BYTES
        buffer = self.buffers.setdefault(task.order.buffer, bytearray())
        if len(buffer) < size:
            buffer.extend(bytes(size - len(buffer)))
        source = self.snapshots.get(task.order.job, self.world.disk)
        buffer[at : at + sectors * SECTOR_BYTES] = source[place(sector, sectors)]
        if self.world.may_fail_read():
            block = self.world.rng.randrange(-(-sectors // BLOCK_SECTORS))
            start = at + block * PAYLOAD_BYTES
            end = min(start + PAYLOAD_BYTES, at + sectors * SECTOR_BYTES)
            buffer[start:end] = b"?" * (end - start)
            task.bad[index] = [block]

    def result(self, task: _Task) -> comparer.PiecesRead | comparer.BlocksHashed:
        order = task.order
        buffer = self.buffers[order.buffer]
        if isinstance(order, comparer.Read):
            digests, at = [], 0
            for _, sectors in order.pieces:
                digests.append(digest(bytes(buffer[at : at + sectors * SECTOR_BYTES])))
                at += sectors * SECTOR_BYTES
            return comparer.PiecesRead(order.job, b"".join(digests), task.bad)
        return comparer.BlocksHashed(
            order.job,
            [
                block_digests(bytes(buffer[at : at + sectors * SECTOR_BYTES]))
                for at, (_, sectors) in zip(order.offsets, order.pieces, strict=True)
            ],
        )

    def send(self, batch: comparer.SendBatch) -> None:
        buffer = memoryview(self.buffers[batch.buffer])
        header, headers, payload = batch.build(buffer, STREAM)
        top = wire.encode_batch(header, headers, payload)
        self.world.data.append(Flying(header, top, [headers, payload], self))


@dataclass
class Flying:
    """A batch on its way."""

    header: wire.BatchHeader
    top: bytes
    frames: list[bytes] | None
    """None for live batches: they are read from the ring when the bytes go out."""
    sender: Scanner | None


@dataclass
class _Asked:
    """Checksums that a scanner has asked for."""

    scanner: Scanner
    message: wire.Checksums
    job: int
    pieces: list[Piece]
    position: int | None = None
    """In the journal: must be on the device first."""
    digests: list[bytes] = field(default_factory=list)


class Target:
    """Mirrors `services/applier.py`, the worker of its store and its checksummer.

    Raises:
        DiskFailedError: when it starts, or does something.
        PowerLostError: the same.
    """

    def __init__(self, world: ScanWorld) -> None:
        self.world = world
        self.store = world.store
        self.machine = Replica(record=self.store.recover())
        self.machine.handle(replica.Tick(world.now_s, 1 + int(world.now_s)))
        self.jobs: deque[Apply] = deque()
        self.written: Apply | None = None
        """The last job that the store was given since it has synced."""
        self.asked: list[_Asked] = []

    def hear(self, event: replica.Event) -> None:
        self.machine.handle(replica.Tick(self.world.now_s, 1 + int(self.world.now_s)))
        for action in self.machine.handle(event):
            match action:
                case Apply():
                    self.jobs.append(action)
                case replica.Send(_, message):
                    self.world.down.append(message)
                case _:
                    pass

    def work(self) -> None:
        """One job, or the sync behind some of them."""
        if self.jobs and (self.written is None or self.world.rng.random() < 0.6):
            if self.store.fits(self.jobs[0]):
                self.store.write(self.jobs[0])
                self.written = self.jobs.popleft()
            else:
                self.store.step()
        elif self.written is not None:
            self.store.sync(self.written.record)
            job, self.written = self.written, None
            self.world.on_synced(job.record)
            self.hear(replica.Durable(job.job))
        elif self.world.rng.random() < self.world.device_pace:
            self.store.step()

    # Checksums.

    def ask(self, scanner: Scanner, message: wire.Checksums) -> None:
        if not self.machine.serves(message.epoch):
            refused = wire.Digests(message.request, b"", "the session is not open")
            scanner.from_target.append(refused)
            return
        pieces = wire.decode_ranges(message.ranges)
        self.asked.append(_Asked(scanner, message, self.machine.last_job, pieces))

    def answer(self) -> None:
        """One piece more of a request that may be answered."""
        if not self.asked:
            return
        asked = self.world.rng.choice(self.asked)
        if self.machine.durable_job < asked.job or not self._is_settled(asked):
            return
        sector, sectors = asked.pieces[len(asked.digests)]
        content = bytes(self.store.device.content[place(sector, sectors)])
        size = asked.message.block_sectors * SECTOR_BYTES
        asked.digests.append(block_digests(content, size) if size else digest(content))
        if len(asked.digests) == len(asked.pieces):
            self.asked.remove(asked)
            digests = wire.Digests(asked.message.request, b"".join(asked.digests), "")
            asked.scanner.from_target.append(digests)

    def _is_settled(self, asked: _Asked) -> bool:
        """Whether what is durable by now is on the device too."""
        if not isinstance(self.store, JournalStore):
            return True
        engine = self.store._engine
        if asked.position is None:
            asked.position = engine.durable_position
        return engine.applied_position >= asked.position

    def forget(self, scanner: Scanner) -> None:
        """Its connection is gone."""
        self.asked = [asked for asked in self.asked if asked.scanner is not scanner]

    # Ends.

    def stop(self) -> None:
        """As SIGTERM does: finishes what was accepted, then closes."""
        self.jobs.append(self.machine.closing_job())
        while self.jobs:
            while not self.store.fits(self.jobs[0]):
                self.store.step()
            self.written = self.jobs.popleft()
            self.store.write(self.written)
        assert self.written is not None
        self.store.sync(self.written.record)
        self.store.close()

    def kill(self) -> None:
        """The worker may be in the middle of a job."""
        if self.world.rng.random() < 0.5:
            self.store.device.fails_write = "killed"
            try:
                if not self.store.step() and self.jobs:
                    self.store.write(self.jobs[0])
            except (DiskFailedError, PowerLostError):
                pass
            self.store.device.fails_write = None
