# SPDX-License-Identifier: GPL-2.0-only
"""One run: a source, a network, a target, faults; everything drawn from one seed."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

from bdr.common.journal import engine as journal_engine
from bdr.common.journal.format import BLOCK_BYTES
from bdr.common.ring.layout import SECTOR_BYTES, Mode, Op
from bdr.common.source.sequencer import SequencerSettings
from bdr.common.target.replica import ReplicaSettings
from bdr.common.wire.control import PROTOCOL, Condition, Hello, encode_message
from tests.simulation.clock import Clock
from tests.simulation.disk import DiskFailedError, PowerLostError
from tests.simulation.network import Channel
from tests.simulation.oracle import Oracle, differing
from tests.simulation.parts import Applier, Reader, Sender
from tests.simulation.source import STREAM, BrokenRuleError, Gate, Shadow, Write
from tests.simulation.stores import VOLUME, DirectStore, JournalStore, Store

HEAL_S = 120.0
"""Simulated seconds in which everything must be well again after the last fault."""

FAULTS = (
    "kill_reader",
    "kill_sender",
    "kill_applier",
    "stop_applier",
    "power_cut",
    "cut_control",
    "cut_data",
    "partition_control",
    "partition_data",
    "pause_sender",
    "stranger",
    "device_eio",
    "record_full",
    "log_full",
    "sync_failure",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a seed decides. Tests name the fields that matter to them."""

    capacity: int = 32
    device_sectors: int = 128
    region_sectors: int = 8
    senders: int = 2
    writes: int = 100
    in_flight: int = 4
    big_writes: float = 0.05
    flushes: int = 4
    """Against 96 other writes."""
    think_s: float = 0.004
    failing_writes: float = 0.0
    may_overflow: bool = False
    assume_clean: bool = True
    store: str = "direct"
    log_entries: int = 4
    """How many entries of the biggest kind the journal has room for."""
    kept_bytes: int = 32 << 20
    """How much of the journal is kept in memory."""
    audits: float = 1.0
    """At which share of the releases P3 is looked at."""
    delay_s: tuple[float, float] = (0.0001, 0.002)
    wire_s: float = 0.001
    disk_s: float = 0.001
    source_disk_s: float = 0.002
    group_jobs: int = 8
    duplicates: float = 0.0
    flips: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    """Fault -> mean seconds between two of them."""
    faults_s: float = 10.0
    """For so long there are faults."""
    sequencer: SequencerSettings = field(default_factory=SequencerSettings)
    replica: ReplicaSettings = field(default_factory=ReplicaSettings)

    @classmethod
    def drawn(cls, seed: int) -> Options:
        """Swarm testing: each seed has some kinds of faults and not the others."""
        rng = Random(f"options-{seed}")
        faults = {
            name: rng.choice((0.15, 0.5, 2.0))
            for name in FAULTS
            if rng.random() < rng.choice((0.1, 0.3))
        }
        store = rng.choice(("direct", "journal"))
        slow = rng.choice((1.0, 1.0, 4.0, 20.0))
        return cls(
            capacity=rng.choice((8, 12, 16, 32, 64)),
            device_sectors=rng.choice((64, 100, 128, 256)),
            region_sectors=rng.choice((8, 16, 64)),
            senders=rng.randint(1, 3),
            writes=rng.choice((40, 80, 160)),
            in_flight=rng.choice((1, 2, 4, 8)),
            big_writes=rng.choice((0.0, 0.05, 0.3)),
            flushes=rng.choice((4, 4, 100)),
            think_s=rng.choice((0.0005, 0.004, 0.02)),
            failing_writes=rng.choice((0.0, 0.0, 0.0, 0.05)),
            may_overflow=rng.random() < 0.3,
            assume_clean=rng.random() < 0.95,
            store=store,
            audits=1.0 if store == "direct" else rng.choice((0.05, 0.05, 0.4)),
            log_entries=rng.choice((2, 3, 8)),
            kept_bytes=rng.choice((0, 64 << 10, 32 << 20)),
            delay_s=(0.0001, 0.001 * slow),
            wire_s=rng.choice((0.0002, 0.002, 0.01)),
            disk_s=rng.choice((0.0002, 0.002, 0.01)),
            source_disk_s=rng.choice((0.0005, 0.002, 0.02)),
            group_jobs=rng.choice((1, 4, 16)),
            duplicates=rng.choice((0.0, 0.0, 0.02)),
            flips=rng.choice((0.0, 0.0, 0.02)),
            faults=faults,
            faults_s=rng.choice((1.0, 4.0, 15.0)),
            sequencer=SequencerSettings(
                window_slots=rng.choice((256, 256 + 4, 256 + 32, 8192)),
                window_batches=rng.choice((2, 8, 128)),
                batch_slots=256,
                hello_s=0.3,
                ping_s=0.3,
                silence_s=2.0,
                progress_s=rng.choice((0.5, 2.0, 4.0)),
                pause_min_s=0.1,
                pause_max_s=rng.choice((1.0, 4.0)),
                resume_below=rng.choice((0.0, 0.25, 0.5)),
                overflow_min_s=0.02,
                overflow_max_s=0.3,
            ),
            replica=ReplicaSettings(
                reorder_batches=rng.choice((4, 256)),
                reorder_bytes=rng.choice((64 << 10, 64 << 20)),
                source_silence_s=1e6 if "stranger" in faults else 4.0,
            ),
        )


STORES: dict[str, Callable[..., Store]] = {
    "direct": DirectStore.blank,
    "journal": JournalStore.blank,
}


class World:
    """Everything there is.

    Args:
        seed: decides the run, and the options where none are given.
        options: instead of those that the seed draws.
        trace: gets a line for each thing that happens.
    """

    def __init__(
        self, seed: int, options: Options | None = None, trace: list[str] | None = None
    ) -> None:
        self.seed = seed
        self.options = options or Options.drawn(seed)
        self.trace = trace
        self.rng = Random(f"run-{seed}")
        self.clock = Clock()
        self.gate = Gate(
            capacity=self.options.capacity,
            device_sectors=self.options.device_sectors,
            region_sectors=self.options.region_sectors,
        )
        self.disk = bytearray(self.options.device_sectors * SECTOR_BYTES)
        """The source's device below the capture."""
        self.shadow = Shadow(len(self.disk))
        self.oracle = Oracle(self)
        self.store = STORES[self.options.store](
            device_sectors=self.options.device_sectors,
            log_bytes=self.options.log_entries * (self.options.capacity + 1) * BLOCK_BYTES,
            on_device=self.oracle.on_device,
        )
        self.connections = 0
        self.is_control_cut = False
        self.is_data_cut = False
        self.is_faulty = True
        self.faults = 0
        self.healed_s = 0.0
        self._held: list[Channel[Any]] = []
        self._asked = 0
        self._moments = 0
        self._in_flight: dict[int, Write] = {}
        self._parked: deque[Write] = deque()
        self.reader: Reader | None = None
        self.applier: Applier | None = None
        self.senders: list[Sender | None] = [None] * self.options.senders

    # The run.

    def run(self) -> None:
        """Raises BrokenRuleError, or InternalError out of a state machine."""
        with mock.patch.object(journal_engine, "KEPT_BYTES_MAX", self.options.kept_bytes):
            self._run()

    def _run(self) -> None:
        self.start_applier()
        self.start_reader()
        for name in range(self.options.senders):
            self.start_sender(name)
        self._plan_write()
        for name in self.options.faults:
            self._plan_fault(name)
        self.clock.after(self.options.faults_s, self._heal)
        while self.is_faulty or not self._is_written():
            self.clock.step()
            if self.clock.now_s > self.options.faults_s + HEAL_S:
                raise BrokenRuleError(f"the application's writes do not complete: {self._state()}")
        begun_s = self.clock.now_s
        while not self._is_identical():
            self.clock.step()
            if self.clock.now_s > begun_s + HEAL_S:
                raise BrokenRuleError(f"P5: not identical after {HEAL_S} s: {self._state()}")
        self.healed_s = self.clock.now_s - begun_s
        self._check_end()

    def note(self, text: str) -> None:
        """A line for the trace; callers test `trace` first, to save the formatting."""
        if self.trace is not None:
            self.trace.append(f"{self.clock.now_s:10.5f} {text}")

    def _heal(self) -> None:
        self.note("no more faults")
        self.is_faulty = False
        for disk in self.store.disks().values():
            disk.fails_sync = disk.fails_write = disk.fuse = None

    def _is_written(self) -> bool:
        return self._asked == self.options.writes and not self._in_flight and not self._parked

    def _is_identical(self) -> bool:
        gate, applier = self.gate, self.applier
        return (
            applier is not None
            and self.reader is not None
            and gate.mode is Mode.STREAM
            and gate.tail == gate.head
            and self.oracle.written_slot == gate.head
            and applier.machine.is_settled
            and applier.machine.record.condition is not Condition.CATCHING_UP
            and self.reader.machine.condition is applier.machine.record.condition
        )

    def _check_end(self) -> None:
        assert self.applier is not None
        device, gate = self.store.device.content, self.gate
        if device != self.shadow.at(gate.head):
            raise BrokenRuleError("P5: the replica is not what the ring held")
        self._check_last_condition(self.applier.machine.record.condition)
        dirty = gate.active | gate.resync
        lost = [
            sector
            for sector in range(gate.device_sectors)
            if self.disk[sector * 512 : sector * 512 + 512]
            != device[sector * 512 : sector * 512 + 512]
            and sector // gate.region_sectors not in dirty
        ]
        if lost:
            raise BrokenRuleError(f"P4: sectors {lost[:8]} differ, and no bit says so")
        if not dirty and self.disk != device:
            raise BrokenRuleError(f"P5: sectors {differing(self.disk, device)} differ")

    def _check_last_condition(self, found: Condition) -> None:
        if self.oracle.gaps and min(self.oracle.gaps) == self.gate.head:
            return  # nothing was logged behind the gap: any is right
        may_be_consistent = self.options.assume_clean and not self.oracle.gaps
        if (found is Condition.CONSISTENT) != may_be_consistent and not self.gate.failed:
            raise BrokenRuleError(f"P5: ends {found.name}, gaps {self.oracle.gaps[:3]}")

    def _state(self) -> str:
        reader, applier = self.reader, self.applier
        return (
            f"ring {self.gate.tail} to {self.gate.published_end()} of {self.gate.head} "
            f"{self.gate.mode.name}, reader {reader and reader.machine.phase.name} at "
            f"{reader and reader.machine.cursor}, applier {applier and applier.machine.record}"
        )

    # The application.

    def _plan_write(self) -> None:
        if self._asked < self.options.writes:
            pause_s = self.rng.expovariate(1 / self.options.think_s)
            if self.rng.random() < 0.02:
                pause_s += self.rng.uniform(0, 1.0)
            self.clock.after(pause_s, self._write)

    def _write(self) -> None:
        gate = self.gate
        room = gate.capacity - (gate.head - gate.tail)
        room -= sum(-(-parked.sectors // 8) + 1 for parked in self._parked)
        if len(self._in_flight) + len(self._parked) < self.options.in_flight and (
            room > 1 or self.options.may_overflow
        ):
            write = self._new_write()
            if self.options.may_overflow or -(-write.sectors // 8) < room:
                self._asked += 1
                self._submit(write)
        self._plan_write()

    def _new_write(self) -> Write:
        rng, options = self.rng, self.options
        op = rng.choices((Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES, Op.FLUSH), weights=(80, 8, 8, 4))[
            0
        ]
        if op is Op.FLUSH:
            return Write(self._asked + 1, op, 0, 0, False, b"", self._moments)
        most = min(40 if rng.random() < options.big_writes else 10, options.device_sectors)
        if not options.may_overflow:
            most = min(most, (options.capacity - 1) * 8)
        sectors = rng.choice((8, 8, rng.randint(1, most)))
        sector = rng.randint(0, options.device_sectors - sectors)
        if rng.random() < 0.5:
            sector -= sector % 8
        data = b""
        if op is Op.WRITE:
            base = (self._asked + 1) << 16
            data = b"".join((base + i).to_bytes(8, "little") * 64 for i in range(sectors))
        fua = rng.random() < 0.1
        return Write(self._asked + 1, op, sector, sectors, fua, data, self._moments)

    def _submit(self, write: Write) -> None:
        self._moments += 1
        write.asked_at = self._moments
        if any(write.overlaps(other) for other in (*self._in_flight.values(), *self._parked)):
            self._parked.append(write)
        else:
            self._admit(write)

    def _admit(self, write: Write) -> None:
        self._in_flight[write.number] = write
        if self.gate.admit(write) and self.reader is not None:
            self.reader.wake()
        if write.logged:
            self.shadow.reserve(write)
            self._check_order(write)
        elif write.sectors:
            self.oracle.gaps.append(self.gate.head)
        if self.trace is not None:
            where = f"slots {write.first}+{write.slots}" if write.logged else "missed"
            self.note(
                f"write {write.number} {write.op.name} {write.sector}+{write.sectors} {where}"
            )
        delay_s = self.rng.expovariate(1 / self.options.source_disk_s)
        self.clock.after(delay_s, lambda: self._complete(write))

    def _check_order(self, write: Write) -> None:
        for slot in range(write.first - 1, -1, -1):
            other, _ = self.shadow.writes[slot]
            if other.done_at is not None:
                return
            if other.asked_at > write.asked_at and other.done_at is not None:
                raise BrokenRuleError("slot order contradicts completed before submitted")

    def _complete(self, write: Write) -> None:
        failed = self.rng.random() < self.options.failing_writes
        write.has_landed = True
        if failed:
            # What the disk holds of it now is anyone's guess.
            half = write.sectors // 2
            replace(write, sectors=half, data=write.data[: half * SECTOR_BYTES]).apply_to(self.disk)
            self.gate.failed += 1
        else:
            write.apply_to(self.disk)
        if not write.logged:
            self.gate.leave(write)
            self._done(write)
            return
        if failed:
            self.shadow.failed.add(write.number)
        self.gate.publish(write, failed=failed, slots=range(1, write.slots))
        if self.rng.random() < 0.2:
            self.clock.after(0.0002, lambda: self._publish_first(write, failed=failed))
        else:
            self._publish_first(write, failed=failed)

    def _publish_first(self, write: Write, *, failed: bool) -> None:
        self.gate.publish(write, failed=failed, slots=range(0, 1))
        if self.reader is not None:
            self.reader.wake()
        self._done(write)

    def _done(self, write: Write) -> None:
        self._moments += 1
        write.done_at = self._moments
        del self._in_flight[write.number]
        waiting, self._parked = self._parked, deque()
        for parked in waiting:
            if any(parked.overlaps(other) for other in (*self._in_flight.values(), *self._parked)):
                self._parked.append(parked)
            else:
                self._admit(parked)

    # The parts' births and deaths.

    def start_reader(self) -> None:
        self.reader = Reader(self)

    def start_sender(self, name: int) -> None:
        self.senders[name] = Sender(self, name)

    def start_applier(self) -> None:
        with self.target_disks():
            self.applier = Applier(self)

    @contextlib.contextmanager
    def target_disks(self) -> Iterator[None]:
        """What runs in here may find that a disk fails, or the power."""
        try:
            yield
        except DiskFailedError as error:
            self.note(f"applier failed: {error}")
            self._end_applier(in_a_job=False)
            # Someone mends the disk and starts it again.
            self.clock.after(self.rng.uniform(0.1, 2.0), self.start_applier)
        except PowerLostError:
            self.note("power cut in the middle of a step")
            self._end_applier(in_a_job=False)
            self._lose_power()
            self.clock.after(self._pause_s(), self.start_applier)

    def release(self, tail: int) -> None:
        """The reader asks the capture to."""
        self.oracle.check_release(tail)
        self.gate.release(tail)

    def _end_applier(self, *, in_a_job: bool = True) -> None:
        applier, self.applier = self.applier, None
        if applier is None:
            return  # it had not begun
        applier.kill(in_a_job=in_a_job)
        if self.reader is not None and self.reader.link is not None:
            self.reader.disconnect()
        for sender in self.senders:
            if sender is not None:
                sender.disconnect()
        self.oracle.on_crashed(applier.begun_slot)

    # Faults.

    def _plan_fault(self, name: str) -> None:
        delay_s = self.rng.expovariate(1 / self.options.faults[name])
        self.clock.after(delay_s, lambda: self._strike(name))

    def _strike(self, name: str) -> None:
        if not self.is_faulty:
            return
        self.faults += 1
        if self.trace is not None:
            self.note(f"fault: {name}")
        getattr(self, f"_{name}")()
        self._plan_fault(name)

    def _pause_s(self) -> float:
        return self.rng.choice((0.01, 0.1, 0.5)) * self.rng.uniform(0.5, 1.5)

    def _kill_reader(self) -> None:
        if self.reader is not None:
            self.reader.kill()
            self.reader = None
            self.clock.after(self._pause_s(), self.start_reader)

    def _kill_sender(self) -> None:
        name = self.rng.randrange(len(self.senders))
        sender = self.senders[name]
        if sender is not None:
            sender.kill()
            self.senders[name] = None
            self.clock.after(self._pause_s(), lambda: self.start_sender(name))

    def _kill_applier(self) -> None:
        if self.applier is not None:
            self._end_applier()
            self.clock.after(self._pause_s(), self.start_applier)

    def _stop_applier(self) -> None:
        if self.applier is not None and not self._is_disk_failing():
            if self.rng.random() < 0.2:
                self._light_fuse()
            with self.target_disks():
                self.applier.stop()
                self._end_applier(in_a_job=False)
                self.clock.after(self._pause_s(), self.start_applier)

    def _power_cut(self) -> None:
        if self.applier is None:
            return
        if self.rng.random() < 0.5:
            self._light_fuse()
            return
        self._end_applier()
        self._lose_power()
        if self.rng.random() < 0.3:
            self._light_fuse()  # again while it recovers, or soon after
        self.clock.after(self._pause_s(), self.start_applier)

    def _lose_power(self) -> None:
        self.store = self.store.after_power_cut(self.rng)
        self.store.on_device = self.oracle.on_device

    def _light_fuse(self) -> None:
        """The power is cut in the middle of a step, a few writes and syncs from now."""
        self.rng.choice(sorted(self.store.disks().items()))[1].fuse = self.rng.randrange(9)

    def _cut_control(self) -> None:
        if self.reader is not None:
            self.reader.disconnect()

    def _cut_data(self) -> None:
        sender = self.rng.choice(self.senders)
        if sender is not None:
            sender.disconnect()

    def _partition_control(self) -> None:
        if self.is_control_cut:
            return
        self.is_control_cut = True
        link = self.reader.link if self.reader is not None else None
        held = [link.up, link.down] if link is not None else []
        for channel in held:
            channel.hold()
        patience_s = self.rng.uniform(0.2, 3.0)

        def lose_patience() -> None:
            if self.is_control_cut and self.reader is not None and self.reader.link is link:
                self.reader.disconnect()

        def end() -> None:
            self.is_control_cut = False
            for channel in held:
                channel.let_go()

        self.clock.after(patience_s, lose_patience)
        self.clock.after(self.rng.uniform(0.05, 4.0), end)

    def _partition_data(self) -> None:
        if self.is_data_cut:
            return
        self.is_data_cut = True
        cut = [(sender, sender.channel) for sender in self.senders if sender is not None]
        for _, channel in cut:
            if channel is not None:
                channel.hold()
        patience_s = self.rng.uniform(0.2, 3.0)

        def lose_patience() -> None:
            for sender, channel in cut:
                if self.is_data_cut and channel is not None and sender.channel is channel:
                    sender.disconnect()

        def end() -> None:
            self.is_data_cut = False
            for _, channel in cut:
                if channel is not None:
                    channel.let_go()

        self.clock.after(patience_s, lose_patience)
        self.clock.after(self.rng.uniform(0.05, 4.0), end)

    def _pause_sender(self) -> None:
        sender = self.rng.choice(self.senders)
        if sender is not None:
            sender.paused_until_s = self.clock.now_s + self.rng.choice((0.05, 0.5, 3.0))

    def _stranger(self) -> None:
        """Another source greets, of a volume of the same name."""
        if self.applier is not None and self.applier.machine.record.stream == STREAM:
            hello = Hello(PROTOCOL, 1, VOLUME, bytes(16), 8, 0, 9, assume_clean=True)
            self.applier.on_control(b"stranger", encode_message(hello))

    def _is_disk_failing(self) -> bool:
        return any(disk.fails_write or disk.fails_sync for disk in self.store.disks().values())

    def _log_full(self) -> None:
        self.store.disks().get("log", self.store.device).fails_write = "ENOSPC"

    def _device_eio(self) -> None:
        self.store.device.fails_write = "EIO"

    def _record_full(self) -> None:
        self.store.disks()["record"].fails_write = "ENOSPC"

    def _sync_failure(self) -> None:
        self.rng.choice(sorted(self.store.disks().items()))[1].fails_sync = "EIO"
