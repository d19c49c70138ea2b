# SPDX-License-Identifier: GPL-2.0-only
"""A comparer's process: connections and threads, as `services/source/comparison.py`.

A thread's work is a task: it reads a chunk at a time, in any order, while the world goes
on; its result comes when it is done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.scan import events
from bdr.common.scan.comparer import Comparer
from bdr.common.scan.digests import BLOCK_SECTORS, block_digests, digest
from bdr.common.scan.plan import Chunk
from bdr.common.wire.control import Digests, decode_message, encode_message
from bdr.common.wire.scan import decode_answer, encode_request
from tests.simulation.clock import Process
from tests.simulation.network import Channel, Duplex, Weather
from tests.simulation.reader import Reader
from tests.simulation.source import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_S = 0.25
WITHIN_HOST = Weather(delay_s=(0.00002, 0.0005))


def place(sector: int, sectors: int) -> slice:
    """Where a chunk stands in a disk's content."""
    return slice(sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES)


@dataclass
class _Task:
    """What a thread is at."""

    order: events.Read | events.HashBlocks
    todo: list[int]
    pace: float
    """So many times slower than others: threads may be slow."""
    bad: dict[int, list[int]] = field(default_factory=dict)


class Comparison(Process):
    """One process, until it is killed.

    Args:
        comparer: decides.
        kind: of its address at the reader.
    """

    reads_before_begin = False
    """A planted bug: what is compared was read before its lease was opened."""

    def __init__(self, world: World, comparer: Comparer, kind: str) -> None:
        super().__init__(world.clock)
        self.world = world
        self.gate = world.gate
        self.comparer = comparer
        self._kind = kind
        self._buffers: dict[int, bytearray] = {}
        self._snapshots: dict[int, bytes] = {}
        self._reader: Reader | None = None
        self._peer = b""
        self._to_reader: Duplex | None = None
        self._to_target: Duplex | None = None
        self._incarnation = 0
        self.after(0.0, self._on_tick)
        self.after(world.rng.uniform(0.0, 0.1), self.connect)

    # Connections.

    def connect(self) -> None:
        world = self.world
        reader, applier = world.reader, world.applier
        if self._to_reader is not None:
            return
        if reader is None or applier is None or world.is_control_cut or world.is_data_cut:
            self.after(world.rng.uniform(0.05, 0.3), self.connect)
            return
        self._peer = peer = f"{self._kind}-{world.next_connection()}".encode()
        self._to_reader = Duplex(
            world.clock,
            world.rng,
            WITHIN_HOST,
            up=lambda data: reader.on_request(peer, data),
            down=self._guarded(self._on_answer),
        )
        self._reader = reader
        reader.peers[peer] = self._to_reader
        self._to_target = applier.accept(self._guarded(self._on_control))
        self._connect_more()
        self._tell(events.LinksUp())

    def _connect_more(self) -> None:
        """Connections besides these two."""

    def _guarded(self, handler: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Only while this very connection lives: what comes later finds another socket."""
        incarnation = self._incarnation

        def deliver(data: bytes) -> None:
            if self.alive and incarnation == self._incarnation:
                handler(data)

        return deliver

    def disconnect(self) -> None:
        """One connection is lost, so all are dropped; the reader learns of it."""
        if self._to_reader is None:
            return
        self._drop()
        self._tell(events.LinkLost())
        self.after(self.world.rng.uniform(0.05, 0.3), self.connect)

    def _drop(self) -> None:
        self._incarnation += 1
        for link in self.links:
            link.cut()
        if self._reader is not None and self._reader.alive:
            self._reader.lose_peer(self._peer)
        self._reader = self._to_reader = self._to_target = None

    @property
    def links(self) -> list[Duplex | Channel[list[bytes]]]:
        """Those to the target: what a partition holds."""
        return [self._to_target] if self._to_target is not None else []

    def kill(self) -> None:
        self._drop()
        super().kill()

    # The loop.

    def _on_tick(self) -> None:
        self.after(TICK_S, self._on_tick)
        if self._reader is not None and not self._reader.alive:
            self.disconnect()
        self._round()

    def _on_answer(self, data: bytes) -> None:
        self._tell(events.Answered(decode_answer(data)))

    def _on_control(self, data: bytes) -> None:
        message = decode_message(data)
        if isinstance(message, Digests):
            self._tell(events.DigestsArrived(message))

    def _tell(self, event: events.Event) -> None:
        self._handle(events.Tick(self.clock.now_at))
        if self.alive:  # a command may end when time passes
            self._handle(event)
        self._round()

    def _round(self) -> None:
        if self.alive:
            self._handle(events.Tick(self.clock.now_at))
            self._handle(events.RoomSeen(self._outgoing_batches()))

    def _outgoing_batches(self) -> int:
        return 0

    def _handle(self, event: events.Event) -> None:
        world = self.world
        for action in self.comparer.handle(event):
            if world.trace is not None and not isinstance(action, events.SendToTarget):
                world.note(f"{self._kind} {type(event).__name__} -> {action}")
            match action:
                case events.SendToReader(request):
                    if self.reads_before_begin:
                        number = getattr(request, "request", 0)
                        self._snapshots[number] = bytes(world.source_disk.content)
                    if self._to_reader is not None:
                        self._to_reader.up.send(encode_request(request))
                case events.SendToTarget(message):
                    if self._to_target is not None:
                        self._to_target.up.send(encode_message(message))
                case events.Read(chunks=chunks) | events.HashBlocks(chunks=chunks):
                    todo = list(range(len(chunks)))
                    world.rng.shuffle(todo)
                    self._work(_Task(action, todo, pace=world.rng.choice((1, 1, 1, 20))))
                case events.Stop(error):
                    if self._reader is None or self._reader.gate is self.gate:
                        raise BrokenRuleError(f"a comparer stopped: {error}")
                    self._restart()
                    return
                case events.LogEvent():
                    pass
                case _:
                    self._perform(action)

    @abstractmethod
    def _perform(self, action: events.Action) -> None:
        """Does what is not the same for all."""

    @abstractmethod
    def _restart(self) -> None:
        """The capture that it knows is gone."""

    # Threads.

    def _work(self, task: _Task) -> None:
        delay_s = self.world.rng.uniform(0.0, self.world.options.read_s) * task.pace
        self.after(delay_s, lambda: self._step(task))

    def _step(self, task: _Task) -> None:
        """One chunk more; hashing is done at once, in `_result`."""
        if not task.todo:
            self._tell(self._result(task))
            return
        index = task.todo.pop()
        if isinstance(task.order, events.Read):
            self._read(task, task.order, index)
        self._work(task)

    def _read(self, task: _Task, order: events.Read, index: int) -> None:
        sector, sectors = order.chunks[index]
        at = sum(before for _, before in order.chunks[:index]) * SECTOR_BYTES
        size = sum(each for _, each in order.chunks) * SECTOR_BYTES
        buffer = self._buffers.setdefault(order.buffer, bytearray())
        if len(buffer) < size:
            buffer.extend(bytes(size - len(buffer)))
        source = self._snapshots.get(order.job, self.world.source_disk.content)
        buffer[at : at + sectors * SECTOR_BYTES] = source[place(sector, sectors)]
        if self.world.may_fail_read():
            block = self.world.rng.randrange(-(-sectors // BLOCK_SECTORS))
            start = at + block * PAYLOAD_BYTES
            end = min(start + PAYLOAD_BYTES, at + sectors * SECTOR_BYTES)
            buffer[start:end] = b"?" * (end - start)
            task.bad[index] = [block]

    def _result(self, task: _Task) -> events.ChunksRead | events.BlocksHashed:
        order = task.order
        buffer = self._buffers[order.buffer]

        def content(at: int, chunk: Chunk) -> bytes:
            return bytes(buffer[at : at + chunk[1] * SECTOR_BYTES])

        if isinstance(order, events.Read):
            digests, at = [], 0
            for chunk in order.chunks:
                digests.append(digest(content(at, chunk)))
                at += chunk[1] * SECTOR_BYTES
            return events.ChunksRead(order.job, b"".join(digests), task.bad)
        pairs = zip(order.offsets, order.chunks, strict=True)
        return events.BlocksHashed(
            order.job, [block_digests(content(at, chunk)) for at, chunk in pairs]
        )

    def buffer(self, number: int) -> memoryview:
        """What a buffer holds now."""
        return memoryview(bytes(self._buffers[number]))
