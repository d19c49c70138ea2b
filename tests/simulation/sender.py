# SPDX-License-Identifier: GPL-2.0-only
"""A sender, as `services/sender.py`; zero copy, so memory is read when bytes go out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from bdr.common.wire.batch import BatchHeader, decode_descriptor, encode_batch
from bdr.common.wire.connection import Life
from tests.simulation.clock import Process
from tests.simulation.network import Channel
from tests.simulation.reader import Reader

if TYPE_CHECKING:
    from tests.simulation.world import World

DESCRIPTORS_MAX = 4
"""Descriptors that wait for a sender: the high-water marks of both ends."""
OUTGOING_MAX = 8
TICK_S = 0.25


class Sender(Process):
    """One process, until it is killed."""

    def __init__(self, world: World, name: int) -> None:
        super().__init__(world.clock)
        self.world = world
        self.name = name
        self.gate = world.gate
        self.channel: Channel[list[bytes]] | None = None
        self.paused_until_s = 0.0
        self._reader: Reader | None = None
        self._descriptors: deque[bytes] = deque()
        self._outgoing: deque[tuple[bytes, BatchHeader]] = deque()
        self._is_busy = False
        self._incarnation = 0
        self._life = Life(world.options.life)
        self.after(world.rng.uniform(0.0, 0.1), self.connect)
        if world.options.rate is not None:
            self._on_tick()

    def _on_tick(self) -> None:
        """As `services/runtime/connections.py`: ends a connection that is dead."""
        self.after(TICK_S, self._on_tick)
        channel = self.channel
        if channel is not None and self._life.is_dead(channel.info(), self.clock.now_at):
            self.world.oracle.check_dead(channel.acked_at)
            self.disconnect()

    @property
    def has_room(self) -> bool:
        """Whether the reader's socket would take another descriptor for this sender."""
        return len(self._descriptors) < DESCRIPTORS_MAX

    def connect(self) -> None:
        world = self.world
        if self.channel is not None:
            return
        if world.is_data_cut or world.applier is None:
            self.after(world.rng.uniform(0.05, 0.3), self.connect)
            return
        self.channel = world.data_channel()
        self._life = Life(world.options.life)
        self._attach()

    def _attach(self) -> None:
        """Connects to the reader of the moment, again and again: readers are restarted."""
        reader, world = self.world.reader, self.world
        if self.channel is None:
            return
        if reader is not None and reader is not self._reader:
            self._reader = reader
            reader.senders.append(self)
            reader.wake()
        self._plan(world.rng.uniform(0.01, 0.1), self._attach, is_paused=False)

    def disconnect(self) -> None:
        """The data connection is lost: drops everything, also what was not asked for."""
        if self.channel is None:
            return
        self.channel.cut()
        self.channel = None
        self._incarnation += 1
        self._descriptors.clear()
        self._outgoing.clear()
        self._is_busy = False
        if self._reader is not None and self._reader.alive:
            self._reader.lose_sender(self)
        self._reader = None
        self.after(self.world.rng.uniform(0.05, 0.3), self.connect)

    def kill(self) -> None:
        self.disconnect()
        super().kill()

    def take(self, descriptor: bytes) -> None:
        """The reader's socket has accepted a descriptor for this sender."""
        if self.alive and self.channel is not None:
            self._descriptors.append(descriptor)
            self._plan(self.world.rng.uniform(0.00002, 0.001), self._pump)

    def _plan(self, delay_s: float, thing: Callable[[], None], *, is_paused: bool = True) -> None:
        incarnation = self._incarnation

        def due() -> None:
            if incarnation == self._incarnation:
                thing()

        pause_s = self.paused_until_s - self.clock.now_at if is_paused else 0.0
        self.after(max(delay_s, pause_s), due)

    def _pump(self) -> None:
        gate = self.gate
        while self._descriptors and len(self._outgoing) < OUTGOING_MAX:
            header = decode_descriptor(self._descriptors.popleft())
            if header.stream != gate.stream:
                # The reader of another capture: this one maps a ring that is gone, or not yet its.
                self.world.restart_sender(self.name)
                return
            top = encode_batch(
                header,
                gate.headers_at(header.first, header.count),
                gate.payload_at(header.first, header.count),
            )
            self._outgoing.append((top, header))
        if self._outgoing and not self._is_busy:
            self._is_busy = True
            self._plan(self._wire_s(), self._read_half)
        if self._reader is not None:
            self._reader.wake()

    def _wire_s(self) -> float:
        return self.world.rng.uniform(0.0, self.world.options.wire_s)

    def _read_half(self) -> None:
        """The first half of the slots goes out now, the second a little later."""
        _, header = self._outgoing[0]
        half = header.count // 2
        headers = self.gate.headers_at(header.first, header.count)
        payload = self.gate.payload_at(header.first, half)
        self._plan(self._wire_s(), lambda: self._read_rest(headers, payload))

    def _read_rest(self, headers: bytes, payload: bytes) -> None:
        top, header = self._outgoing.popleft()
        half = header.count // 2
        payload += self.gate.payload_at(header.first + half, header.count - half)
        assert self.channel is not None
        self.channel.send(self.world.flip([top, headers, payload]))
        self._is_busy = False
        self._pump()
