# SPDX-License-Identifier: GPL-2.0-only
"""What goes wrong: each fault is a method, struck at random while the world is faulty."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from bdr.common.wire.batch import (
    PROTOCOL,
    AcceptedBatch,
    BatchHeader,
    BatchKind,
    Marker,
    encode_batch,
)
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import (
    Ack,
    Hello,
    Refused,
    Welcome,
    decode_message,
    encode_message,
)
from bdr.common.wire.reasons import RefusedReason
from bdr.common.wire.scan import Resync, encode_request
from tests.simulation.network import Channel, Duplex
from tests.simulation.stores import VOLUME

if TYPE_CHECKING:
    from tests.simulation.world import World

Link = Duplex | Channel[list[bytes]]


class Faults:
    """Those that a seed has.

    Attributes:
        counts: how often each struck.
    """

    def __init__(self, world: World) -> None:
        self.counts: Counter[str] = Counter()
        self._world = world
        for name in world.options.faults:
            self._plan(name)

    def _plan(self, name: str) -> None:
        world = self._world
        delay_s = world.rng.expovariate(1 / world.options.faults[name])
        world.clock.after(delay_s, lambda: self._strike(name))

    def _strike(self, name: str) -> None:
        world = self._world
        if not world.is_faulty:
            return
        self.counts[name] += 1
        if world.trace is not None:
            world.note(f"fault: {name}")
        getattr(self, name)()
        self._plan(name)

    # Ends of processes.

    def kill_reader(self) -> None:
        self._world.restart_reader()

    def kill_sender(self) -> None:
        self._world.restart_sender(self._world.rng.randrange(self._world.options.senders))

    def kill_scanner(self) -> None:
        self._world.restart_scanner(self._world.rng.randrange(self._world.options.scanners))

    def kill_applier(self) -> None:
        self._world.restart_applier()

    def stop_applier(self) -> None:
        world = self._world
        if world.applier is not None and not self._is_disk_failing():
            if world.rng.random() < 0.2:
                self._light_fuse()
            world.stop_applier()

    def pause_sender(self) -> None:
        world = self._world
        sender = world.rng.choice(world.senders)
        if sender is not None:
            sender.paused_until_s = world.clock.now_at + world.rng.choice((0.05, 0.5, 3.0))

    # Power and roles.

    def power_cut(self) -> None:
        """Of the target."""
        world = self._world
        if world.applier is None:
            return
        if world.rng.random() < 0.5:
            self._light_fuse()
            return
        world.lose_target_power()
        if world.rng.random() < 0.3:
            self._light_fuse()  # again while it recovers, or soon after

    def source_power_cut(self) -> None:
        """The ring is gone with the memory, and what the disk had not synced."""
        self._world.lose_source_power()

    def replace_capture(self) -> None:
        """The capture is made anew, with another ring, while its processes run."""
        self._world.replace_capture()

    def revert_source(self) -> None:
        """The source's host goes back to a snapshot, with its memory."""
        self._world.going_back.source()

    def clone_source(self) -> None:
        """A clone of the source's host, as it was, greets."""
        self._world.going_back.clone()

    def revert_target(self) -> None:
        """The target's disks go back to what they were, all of them."""
        self._world.going_back.target()

    def revert_device(self) -> None:
        """The target's device goes back to a snapshot, and nothing else."""
        self._world.exchanges.revert_device()

    def revert_state(self) -> None:
        """The target's state file and journal go back to a copy, and nothing else."""
        self._world.exchanges.revert_state()

    def exchange_device(self) -> None:
        """Another disk is in the place of the target's device."""
        self._world.exchanges.exchange_device()

    def lose_state(self) -> None:
        """The target's state file and journal are gone."""
        self._world.exchanges.lose_state()

    def misconfigure(self) -> None:
        """The reader is started for another volume, until someone sees it."""
        self._world.restart_reader(volume="another")

    def change_roles(self) -> None:
        """The replica is promoted, written to, and demoted."""
        self._world.change_roles()

    def _light_fuse(self) -> None:
        """The power is cut in the middle of a step, a few writes and syncs from now."""
        world = self._world
        disks = sorted(world.store.disks().items())
        world.rng.choice(disks)[1].fuse = world.rng.randrange(9)

    # The network.

    def cut_control(self) -> None:
        if self._world.reader is not None:
            self._world.reader.disconnect()

    def cut_data(self) -> None:
        sender = self._world.rng.choice(self._world.senders)
        if sender is not None:
            sender.disconnect()

    def cut_scanner(self) -> None:
        scanner = self._world.rng.choice(self._world.scanners)
        if scanner is not None:
            scanner.disconnect()

    def partition_control(self) -> None:
        world = self._world
        if world.is_control_cut:
            return
        world.is_control_cut = True
        reader = world.reader
        link = reader.link if reader is not None else None
        held = [link] if link is not None else []

        def lose_patience() -> None:
            if world.is_control_cut and reader is not None and reader.link is link:
                reader.disconnect()

        def end() -> None:
            world.is_control_cut = False

        self._partition(held, lose_patience, end)

    def partition_data(self) -> None:
        world = self._world
        if world.is_data_cut:
            return
        world.is_data_cut = True
        senders = [(sender, sender.channel) for sender in world.senders if sender is not None]
        scanners = [scanner for scanner in world.scanners if scanner is not None]
        held: list[Link] = [channel for _, channel in senders if channel is not None]
        for scanner in scanners:
            held += scanner.links

        def lose_patience() -> None:
            if not world.is_data_cut:
                return
            for sender, channel in senders:
                if channel is not None and sender.channel is channel:
                    sender.disconnect()
            for scanner in scanners:
                if any(link in held for link in scanner.links):
                    scanner.disconnect()

        def end() -> None:
            world.is_data_cut = False

        self._partition(held, lose_patience, end)

    def _partition(
        self,
        held: list[Duplex | Channel[list[bytes]]] | list[Duplex],
        impatient: object,
        end: object,
    ) -> None:
        clock, rng = self._world.clock, self._world.rng
        for link in held:
            link.hold()

        def over() -> None:
            assert callable(end)
            end()
            for link in held:
                link.let_go()

        assert callable(impatient)
        clock.after(rng.uniform(0.2, 6.0), impatient)
        clock.after(rng.uniform(0.05, 6.0), over)

    def stranger(self) -> None:
        """Another source of a volume of the same name greets, and sends what it has if let in.

        It may be a clone of this one's host that has a new id.
        """
        world = self._world
        applier = world.applier
        if applier is None or applier.node.record.stream not in world.histories:
            return
        hello = Hello(
            protocol=PROTOCOL,
            attempt=1,
            nonce=0,
            volume=VOLUME,
            source=b"another-source..",
            generations=world.rng.choice(((b"whatever",), world.source_record.generations)),
            stream=bytes(16),
            device_sectors=8,
            tail=0,
            head=9,
            acknowledged=0,
            counted=0,
            assume_clean=True,
        )

        def answered(data: bytes) -> None:
            match decode_message(data):
                case Welcome(epoch=epoch, slot=slot):
                    kind, marker = BatchKind.MARKER, Marker.UNVERIFIED
                    header = BatchHeader(kind, marker, hello.stream, epoch, 1, slot, 0)
                    applier.on_data([encode_batch(header, b"", b""), b"", b""])

        link = applier.accept(answered)
        link.up.send(encode_message(hello))

    def liar(self) -> None:
        """Something answers in the target's place, with what the target would not say."""
        reader = self._world.reader
        if reader is None or reader.link is None:
            return
        session, order = reader.node.session, reader.node.order
        welcome = Welcome(
            attempt=session.attempt,
            epoch=session.epoch + 1,
            number=1,
            slot=order.head,
            changes=order.window.acknowledged,
            condition=Condition.CONSISTENT,
            target=bytes(16),
            recent=(),
        )
        lie = self._world.rng.choice(
            (
                replace(welcome, slot=order.head + 1),
                replace(welcome, number=2),
                replace(welcome, recent=(AcceptedBatch(1, 1, order.tail, 1, bytes(16)),)),
                Refused(session.attempt, RefusedReason.SLOTS, 0, "a lie"),
                Refused(session.attempt, RefusedReason.PROMOTED, 0, "a lie"),
                Ack(session.epoch, 1 << 40, 1 << 40, Condition.CONSISTENT, 0, 0, 0),
            )
        )
        reader.was_lied_to = True
        reader.link.down.send(encode_message(lie))
        if self._world.rng.random() < 0.3:
            reader.disconnect()  # the lie may arrive after that

    # Disks and users.

    def device_eio(self) -> None:
        self._world.store.device.fails_write = "EIO"

    def record_full(self) -> None:
        self._world.store.disks()["record"].fails_write = "ENOSPC"

    def log_full(self) -> None:
        store = self._world.store
        store.disks().get("log", store.device).fails_write = "ENOSPC"

    def sync_failure(self) -> None:
        world = self._world
        world.rng.choice(sorted(world.store.disks().items()))[1].fails_sync = "EIO"

    def _is_disk_failing(self) -> bool:
        disks = self._world.store.disks().values()
        return any(disk.fails_write or disk.fails_sync for disk in disks)

    def user_verify(self) -> None:
        """A user has both sides compared."""
        self._world.verify()

    def user_resync(self) -> None:
        """A user has a part compared again."""
        world = self._world
        if world.reader is not None:
            first = world.rng.randrange(world.options.device_sectors)
            count = world.rng.randint(1, world.options.device_sectors - first)
            world.oracle.may_be_inconsistent = True
            world.reader.on_request(b"user", encode_request(Resync(1, [(first, count)])))
