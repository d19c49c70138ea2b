# SPDX-License-Identifier: GPL-2.0-only
"""One run: a source, a network, a target, faults; everything drawn from one seed.

The nodes, the comparer, record, journal and wire are the shipped ones; ring, network,
disks, threads and clock are exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random
from unittest import mock

from bdr.common.errors import WrongDeviceError
from bdr.common.journal import engine as journal_engine
from bdr.common.journal.layout import BLOCK_BYTES
from bdr.common.ring.layout import SECTOR_BYTES, Mode
from bdr.common.scan import plan, verifier
from bdr.common.source import grants, regions
from bdr.common.source import verification as source_verification
from bdr.common.source.identity import SourceRecord
from bdr.common.target.record import NO_STREAM
from bdr.common.wire.condition import Condition
from bdr.services.target import recognition
from tests.simulation.ages import AgeJudge
from tests.simulation.application import Application
from tests.simulation.applier import Applier
from tests.simulation.clock import Clock
from tests.simulation.disk import Disk, DiskFailedError, PowerLostError
from tests.simulation.exchanges import Exchanges
from tests.simulation.faults import Faults
from tests.simulation.going_back import GoingBack
from tests.simulation.history import History, differing
from tests.simulation.line import Line
from tests.simulation.network import Channel, Weather
from tests.simulation.options import CHUNK_SECTORS, Options, lease_slots
from tests.simulation.oracle import SHOWN, Oracle
from tests.simulation.reader import Reader
from tests.simulation.remembered import Remembered
from tests.simulation.scanner import Scanner
from tests.simulation.sender import Sender
from tests.simulation.source import BrokenRuleError, Gate
from tests.simulation.stores import VOLUME, DirectStore, JournalStore, Store
from tests.simulation.verification import Verification

SOURCE = b"the-source's-id."
HEAL_S = 600.0
"""Simulated seconds in which everything must be well again after the last fault: the patience
with batches in flight doubles six times."""

STORES: dict[str, type[DirectStore] | type[JournalStore]] = {
    "direct": DirectStore,
    "journal": JournalStore,
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
        self.options = options = options or Options.drawn(seed)
        self.trace = trace
        self.rng = Random(f"run-{seed}")
        self.audit_rng = Random(f"audit-{seed}")
        self.clock = Clock()
        line = Line(self.clock, options.rate) if options.rate is not None else None
        self.weather = Weather(options.delay_s, options.duplicates, options.drops, line)
        self.data_weather = Weather(options.delay_s, options.duplicates, line=line)
        """Of batches: a PUSH socket drops nothing while its connection lives."""
        self.is_control_cut = False
        self.is_data_cut = False
        self.is_faulty = True
        self.healed_s = 0.0
        self.is_target_free = True
        """What the target holds before its first source may be overwritten."""
        self.verified = 0
        """Verifications that came to their end."""
        self._connections = 0
        self._is_demotion_due = False
        size = options.device_sectors * SECTOR_BYTES
        self.source_disk = Disk(size)
        """The device below the capture."""
        self.source_record = SourceRecord(
            SOURCE, VOLUME, options.device_sectors, generations=(b"at-first",)
        )
        """What the source's state file has, durably."""
        self.histories: dict[bytes, History] = {}
        self.given_up: set[bytes] = set()
        """Streams of replicas that were demoted: what they had acknowledged is lost."""
        self.reader: Reader | None = None
        self.applier: Applier | None = None
        self.senders: list[Sender | None] = [None] * options.senders
        self.scanners: list[Scanner | None] = [None] * options.scanners
        self.verification: Verification | None = None
        self.oracle = Oracle(self)
        self.remembered = Remembered(self)
        self.oracle.may_be_inconsistent = not options.assume_clean
        self.assume_clean = options.assume_clean
        """Given on the command line of this host's reader; no longer after a crash of it, or a
        target that knows no source yet would believe what is true no more."""
        # A journal in use has room for several entries of the biggest kind.
        entry_slots = max(options.capacity, lease_slots(options))
        self.store: Store = STORES[options.store].blank(
            device_sectors=options.device_sectors,
            log_bytes=options.log_entries * (entry_slots + 1) * BLOCK_BYTES,
            watcher=self.oracle,
        )
        if not options.is_equal:
            for disk in (self.source_disk, self.store.device):
                content = self.rng.choice((bytes(size), self.rng.randbytes(size)))
                disk.content[:] = disk.synced[:] = content
        self._attach_capture()
        self.ages = AgeJudge(self)
        self.application = Application(self)
        self.going_back = GoingBack(self)
        self.exchanges = Exchanges(self)
        self.faults = Faults(self)

    # The run.

    def run(self) -> None:
        """Raises BrokenRuleError, or InternalError out of a state machine."""
        with contextlib.ExitStack() as patches:
            for module in (plan, verifier, grants, regions, source_verification):
                patches.enter_context(mock.patch.object(module, "CHUNK_SECTORS", CHUNK_SECTORS))
            kept_bytes = self.options.kept_bytes
            patches.enter_context(mock.patch.object(journal_engine, "KEPT_BYTES_MAX", kept_bytes))
            patches.enter_context(mock.patch.object(recognition, "log", mock.MagicMock()))
            self._run()

    def _run(self) -> None:
        self.start_applier()
        self._start_reader()
        for name in range(self.options.senders):
            self._start_sender(name)
        for name in range(self.options.scanners):
            self._start_scanner(name)
        self.clock.after(self.options.faults_s, self._heal)
        while self.is_faulty or not self.application.is_done:
            self.clock.step()
            if self.clock.now_at > self.options.faults_s + HEAL_S:
                raise BrokenRuleError(f"the application's writes do not complete: {self._state()}")
        begun_at = self.clock.now_at
        while not self._is_identical():
            self.clock.step()
            if self.clock.now_at > begun_at + HEAL_S:
                raise BrokenRuleError(f"P5: not identical after {HEAL_S} s: {self._state()}")
        self.healed_s = self.clock.now_at - begun_at
        self.ages.judge_rest()
        self._check_end()

    def note(self, text: str) -> None:
        """A line for the trace; callers test `trace` first, to save the formatting."""
        if self.trace is not None:
            self.trace.append(f"{self.clock.now_at:10.5f} {text}")

    def source_disk_delay_s(self) -> float:
        """A small write and a sync there."""
        return self.rng.uniform(0.0, 3 * self.options.source_disk_s)

    def data_channel(self) -> Channel[list[bytes]]:
        """A new connection to the applier's port for batches."""
        applier = self.applier
        assert applier is not None
        return Channel(
            self.clock, self.rng, applier.on_data, self.data_weather, piece=applier.on_bytes
        )

    def next_connection(self) -> int:
        """Another one each time."""
        self._connections += 1
        return self._connections

    def may_fail_read(self) -> bool:
        """Whether the source cannot be read here and now."""
        rate = self.options.failing_reads
        return self.is_faulty and rate > 0 and self.rng.random() < rate

    def flip(self, frames: list[bytes]) -> list[bytes]:
        """What the network makes of a batch."""
        rng, flips = self.rng, self.options.flips
        if not (self.is_faulty and flips and rng.random() < flips):
            return frames
        at = rng.choice([i for i, frame in enumerate(frames) if frame])
        bad = bytearray(frames[at])
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        if self.trace is not None:
            self.note(f"bit flipped in frame {at}")
        self.faults.counts["flip"] += 1
        return [bytes(bad) if i == at else frame for i, frame in enumerate(frames)]

    def _heal(self) -> None:
        self.note("no more faults")
        self.is_faulty = False
        for disk in self.store.disks().values():
            disk.fails_sync = disk.fails_write = disk.fuse = None

    def _is_identical(self) -> bool:
        gate, reader, applier = self.gate, self.reader, self.applier
        return (
            applier is not None
            and reader is not None
            and reader.gate is gate
            and reader.node.order.is_streaming
            and reader.node.session.epoch == applier.node.record.epoch
            and gate.mode is Mode.STREAM
            and gate.tail == gate.head
            and not (gate.active or gate.resync)
            and applier.is_idle
            and not applier.node.jobs.waiting
            and applier.node.record.condition is Condition.CONSISTENT
            and reader.node.order.condition is Condition.CONSISTENT
        )

    def _check_end(self) -> None:
        assert self.applier is not None
        record, device = self.applier.node.record, self.store.device.content
        if device != self.source_disk.content:
            sectors = differing(device, self.source_disk.content)[:SHOWN]
            raise BrokenRuleError(f"P5: nothing is dirty, and sectors {sectors} differ")
        self.oracle.judge(record, device, "in the end")
        self.remembered.check("in the end")
        for worst in (True, False):
            self.oracle.audit(worst=worst)

    def _state(self) -> str:
        reader, applier = self.reader, self.applier
        order = reader.node.order if reader else None
        return (
            f"{self.gate.status()}, reader {reader and reader.node.session.state.name} "
            f"{order and order.condition.name} at {order and order.cursor}"
            f", applier {applier and applier.node.record}"
        )

    # The source's host.

    def _attach_capture(self) -> None:
        """Another ring, another stream."""
        stream = bytes([1 + len(self.histories)]) * 16
        self.gate = Gate(
            stream=stream,
            capacity=self.options.capacity,
            device_sectors=self.options.device_sectors,
            region_sectors=self.options.region_sectors,
            wake=self._wake_reader,
            clock=lambda: self.clock.now_at,
        )
        self.history = self.histories[stream] = History(bytes(self.source_disk.content))

    def _wake_reader(self) -> None:
        if self.reader is not None:
            self.reader.wake()

    def _start_reader(self, volume: str = VOLUME) -> None:
        if self.reader is None:
            self.reader = Reader(self, volume)

    def _start_sender(self, name: int) -> None:
        if self.senders[name] is None:
            self.senders[name] = Sender(self, name)

    def _start_scanner(self, name: int) -> None:
        if self.scanners[name] is None:
            self.scanners[name] = Scanner(self, name)

    def restart_reader(self, volume: str = VOLUME) -> None:
        """Ended, and started again soon."""
        self._end_reader()
        self.clock.after(self._pause_s(), lambda: self._start_reader(volume))

    def restart_sender(self, name: int) -> None:
        """Killed, and started again soon."""
        self._end_sender(name)
        self.clock.after(self._pause_s(), lambda: self._start_sender(name))

    def restart_scanner(self, name: int) -> None:
        """Killed, and started again soon."""
        self._end_scanner(name)
        self.clock.after(self._pause_s(), lambda: self._start_scanner(name))

    def _end_reader(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.kill()

    def _end_sender(self, name: int) -> None:
        sender, self.senders[name] = self.senders[name], None
        if sender is not None:
            sender.kill()

    def _end_scanner(self, name: int) -> None:
        scanner, self.scanners[name] = self.scanners[name], None
        if scanner is not None:
            scanner.kill()

    def verify(self) -> None:
        """A command begins, unless one runs."""
        if self.verification is None:
            self.verification = Verification(self)

    def end_verification(self) -> None:
        """It ends, or is ended."""
        verification, self.verification = self.verification, None
        if verification is not None:
            verification.kill()

    def lose_source_power(self) -> None:
        """Its memory is gone, and what its disk had not synced; all begins anew."""
        self.end_source()
        self._replace_capture()
        self.boot_source_soon()

    def end_source(self) -> None:
        """All its processes are gone."""
        for name in range(self.options.senders):
            self._end_sender(name)
        for name in range(self.options.scanners):
            self._end_scanner(name)
        self._end_reader()
        self.end_verification()

    def boot_source_soon(self) -> None:
        """All of them begin."""

        def boot() -> None:
            self._start_reader()
            for name in range(self.options.senders):
                self._start_sender(name)
            for name in range(self.options.scanners):
                self._start_scanner(name)

        self.clock.after(self._pause_s(), boot)

    def replace_capture(self) -> None:
        """Detached and attached again: senders and scanners see it when they look."""
        gate = self.gate
        self._replace_capture()
        gate.successor = self.gate.stream
        for name in range(self.options.senders):
            self.restart_sender(name)
        for name in range(self.options.scanners):
            self.restart_scanner(name)

    def _replace_capture(self) -> None:
        self.application.crash()
        self.source_disk = self.source_disk.after_power_cut(self.rng)
        self._attach_capture()
        self.oracle.may_be_inconsistent = True
        self.assume_clean = False

    # The target's host.

    def start_applier(self) -> None:
        if self.applier is None:
            with self.target_disks():
                if self._is_demotion_due:
                    self._demote()
                if self.exchanges.is_adoption_due:
                    self.exchanges.adopt()
                try:
                    self.applier = Applier(self)
                except WrongDeviceError as error:
                    self.exchanges.refused(str(error))
                else:
                    self.exchanges.started(self.applier.recovered)

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
            self._lose_target_memory()
            self.clock.after(self._pause_s(), self.start_applier)

    def restart_applier(self) -> None:
        """Killed, and started again soon."""
        self._end_applier()
        self.clock.after(self._pause_s(), self.start_applier)

    def stop_applier(self) -> None:
        """Stopped in an orderly way, and started again soon."""
        assert self.applier is not None
        with self.target_disks():
            self.applier.stop()
            self._end_applier(in_a_job=False)
            self.clock.after(self._pause_s(), self.start_applier)

    def lose_target_power(self) -> None:
        """What its disks had not synced may be gone."""
        self._end_applier()
        self._lose_target_memory()
        self.clock.after(self._pause_s(), self.start_applier)

    def replace_store(self, store: Store) -> None:
        """Its disks are others, and all its processes begin anew."""
        self._end_applier()
        self.exchanges.forget()
        self.store = store
        self.clock.after(self._pause_s(), self.start_applier)

    def change_roles(self) -> None:
        """Its device is used by somebody, and becomes a replica again."""
        if self.applier is None:
            return
        with self.target_disks():
            self.applier.stop()
            self._end_applier(in_a_job=False)
            self._is_demotion_due = True
            self._demote()
            self.clock.after(self._pause_s(), self.start_applier)

    def _demote(self) -> None:
        """A person does so, and again after a power cut in the middle of it."""
        self.oracle.may_be_inconsistent = True
        self.given_up.add(NO_STREAM)
        self.store.demote()
        # What somebody wrote to it before that.
        sector = self.rng.randrange(self.options.device_sectors)
        self.store.device.write(sector * SECTOR_BYTES, self.rng.randbytes(SECTOR_BYTES))
        self._is_demotion_due = False

    def _lose_target_memory(self) -> None:
        self.store = self.store.after_power_cut(self.rng, self.oracle)

    def _end_applier(self, *, in_a_job: bool = True) -> None:
        applier, self.applier = self.applier, None
        if applier is None:
            return  # it had not begun
        applier.kill(in_a_job=in_a_job)
        if self.reader is not None:
            self.reader.disconnect()
        for sender in self.senders:
            if sender is not None:
                sender.disconnect()
        for comparison in (*self.scanners, self.verification):
            if comparison is not None:
                comparison.disconnect()

    def _pause_s(self) -> float:
        return self.rng.choice((0.01, 0.1, 0.5)) * self.rng.uniform(0.5, 1.5)
