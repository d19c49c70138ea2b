# SPDX-License-Identifier: GPL-2.0-only
"""The application on the source: writes of all kinds, several in flight, none overlapping."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from bdr.common.ring.layout import SECTOR_BYTES, Op
from tests.simulation.source import Write

if TYPE_CHECKING:
    from tests.simulation.world import World


class Application:
    """One for each run; it lives through every crash of its host."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._flying: dict[int, Write] = {}
        self._parked: deque[Write] = deque()
        self._asked = 0
        self._boot = 0
        self._plan()

    @property
    def in_flight(self) -> list[Write]:
        """Submitted and not completed, in no order."""
        return list(self._flying.values())

    @property
    def is_done(self) -> bool:
        """Whether everything was written, and has completed."""
        return self._asked == self._world.options.writes and not (self._flying or self._parked)

    # Submitting.

    def _plan(self) -> None:
        world = self._world
        if self._asked < world.options.writes:
            pause_s = world.rng.expovariate(1 / world.options.think_s)
            if world.rng.random() < 0.02:
                pause_s += world.rng.uniform(0, 1.0)
            world.clock.after(pause_s, self._write)

    def _write(self) -> None:
        options, gate = self._world.options, self._world.gate
        room = gate.capacity - (gate.head - gate.tail)
        room -= sum(-(-parked.sectors // 8) + 1 for parked in self._parked)
        if len(self._flying) + len(self._parked) < options.in_flight and (
            room > 1 or options.may_overflow
        ):
            write = self._new_write()
            if options.may_overflow or -(-write.sectors // 8) < room:
                self._asked += 1
                self._submit(write)
        self._plan()

    def _new_write(self) -> Write:
        rng, options = self._world.rng, self._world.options
        number = self._asked + 1
        ops = (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES, Op.FLUSH)
        op = rng.choices(ops, weights=(80, 8, 8, options.flushes))[0]
        if op is Op.FLUSH:
            return Write(number, op, 0, 0, False, b"")
        most = min(40 if rng.random() < options.big_writes else 10, options.device_sectors)
        if not options.may_overflow:
            most = min(most, (options.capacity - 1) * 8)
        sectors = rng.choice((8, 8, rng.randint(1, most)))
        sector = rng.randint(0, options.device_sectors - sectors)
        if rng.random() < 0.5 or options.few_values:
            sector -= sector % 8
        data = b""
        if op is Op.WRITE and options.few_values:
            data = bytes([rng.randrange(2)]) * (sectors * SECTOR_BYTES)
        elif op is Op.WRITE:
            base = number << 16
            data = b"".join((base + i).to_bytes(8, "little") * 64 for i in range(sectors))
        return Write(number, op, sector, sectors, rng.random() < 0.1, data)

    def _submit(self, write: Write) -> None:
        if any(write.overlaps(other) for other in (*self._flying.values(), *self._parked)):
            self._parked.append(write)
        else:
            self._admit(write)

    def _admit(self, write: Write) -> None:
        world = self._world
        self._flying[write.number] = write
        head = world.gate.head
        world.gate.admit(write)
        world.history.admit(head, write)
        world.ages.captured(write)
        if world.trace is not None:
            where = f"slots {write.first}+{write.slots}" if write.logged else "missed"
            world.note(
                f"write {write.number} {write.op.name} {write.sector}+{write.sectors} {where}"
            )
        self._later(world.rng.expovariate(1 / world.options.source_disk_s), write, self._land)

    def _later(self, delay_s: float, write: Write, thing: object) -> None:
        """Does it then, unless the host crashes before."""
        boot = self._boot

        def due() -> None:
            if boot == self._boot:
                assert callable(thing)
                thing(write)

        self._world.clock.after(delay_s, due)

    # Completing.

    def _land(self, write: Write) -> None:
        """The source's disk has it, or a part of it."""
        world = self._world
        write.has_landed = True
        if world.rng.random() < world.options.failing_writes:
            self._fail(write)
        else:
            world.source_disk.write(write.sector * SECTOR_BYTES, write.content)
            if write.op is Op.FLUSH or write.fua:
                world.source_disk.sync()
        delay_s = world.rng.choice((0.0, 0.0, 0.0001, world.options.source_disk_s))
        self._later(delay_s, write, self._complete)

    def _fail(self, write: Write) -> None:
        """What the disk holds of it now is anyone's guess: here, its first half."""
        world = self._world
        half = write.sectors // 2
        part = replace(write, sectors=half, data=write.data[: half * SECTOR_BYTES])
        world.history.landed[write.number] = part
        world.gate.failed += 1
        world.source_disk.write(part.sector * SECTOR_BYTES, part.content)

    def _complete(self, write: Write) -> None:
        world = self._world
        if not write.logged:
            world.gate.leave(write)
            self._done(write)
            return
        is_failed = write.number in world.history.landed
        world.gate.publish(write, failed=is_failed, slots=range(1, write.slots))
        if world.rng.random() < 0.2:
            self._later(0.0002, write, self._publish_first)
        else:
            self._publish_first(write)

    def _publish_first(self, write: Write) -> None:
        world = self._world
        is_failed = write.number in world.history.landed
        world.gate.publish(write, failed=is_failed, slots=range(0, 1))
        self._done(write)

    def _done(self, write: Write) -> None:
        del self._flying[write.number]
        self._world.ages.completed(write)
        waiting, self._parked = self._parked, deque()
        for parked in waiting:
            if any(parked.overlaps(other) for other in (*self._flying.values(), *self._parked)):
                self._parked.append(parked)
            else:
                self._admit(parked)

    def crash(self) -> None:
        """The source's power is cut: of what was in flight each write lands, or a part of it."""
        world = self._world
        for write in self.in_flight:
            if not write.has_landed and world.rng.random() < 0.5:
                sectors = world.rng.randint(0, write.sectors)
                content = write.content[: sectors * SECTOR_BYTES]
                world.source_disk.write(write.sector * SECTOR_BYTES, content)
        self._boot += 1
        self._flying.clear()
        self._parked.clear()
