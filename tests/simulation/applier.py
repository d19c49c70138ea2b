# SPDX-License-Identifier: GPL-2.0-only
"""The applier: the shipped node, and around it what `services/applier.py` does.

That is also the worker of `services/target/store.py`, what a journal does behind it, and
the threads of `services/target/checksummer.py`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bdr.common.errors import WireError
from bdr.common.scan.digests import block_digests, digest
from bdr.common.target import events
from bdr.common.target.job import Job
from bdr.common.target.node import TargetNode
from bdr.common.wire.batch import decode_batch
from bdr.common.wire.control import Digests, decode_message, encode_message
from bdr.common.wire.reasons import DigestsRefused
from tests.simulation.ages import UTC_S
from tests.simulation.clock import Process
from tests.simulation.comparison import place
from tests.simulation.disk import DiskFailedError, PowerLostError
from tests.simulation.hook import Hook
from tests.simulation.network import Duplex

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_S = 0.25


@dataclass
class _Digesting:
    """Checksums that are being made."""

    action: events.MakeDigests
    position: int
    """What was durable when its time came: must be on the device first."""
    digests: list[bytes] = field(default_factory=list)


class Applier(Process):
    """One process, until it is killed.

    Raises:
        DiskFailedError: when it begins; or later, within `World.target_disks`.
        PowerLostError: the same.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.world = world
        self.store = world.store
        record = self.recovered = self.store.recover()
        self.node = TargetNode(
            record=record,
            is_blank=world.is_target_free,
            nonce=1 + world.rng.getrandbits(40),
            stride=world.rng.getrandbits(40),
            settings=world.options.target,
        )
        self.links: dict[bytes, Duplex] = {}
        self.bad_messages = 0
        self._jobs: deque[Job] = deque()
        self._hook = Hook(self, self.node.record)
        self._group = 0
        self._last: Job | None = None
        self._is_working = False
        self._is_step_planned = False
        self._unread: deque[list[bytes]] = deque()
        """Batches that wait in the socket, while the node takes none."""
        world.oracle.on_recovered(self.node.record)
        world.ages.durable(self.node.record)
        self._on_tick()

    def accept(self, down: object) -> Duplex:
        """A connection to the control socket; `down` takes what is sent back."""
        world = self.world
        peer = b"peer-%d" % world.next_connection()
        assert callable(down)
        link = Duplex(
            world.clock,
            world.rng,
            world.weather,
            up=lambda data: self.on_control(peer, data),
            down=down,
        )
        self.links[peer] = link
        return link

    # The loop.

    def on_control(self, peer: bytes, data: bytes) -> None:
        """A message of a source or a scanner."""
        if self.alive:
            self._handle(events.MessageArrived(peer, decode_message(data)))

    def on_data(self, frames: list[bytes]) -> None:
        """A batch, or what is left of one."""
        if self.alive:
            self.on_bytes()
            self._unread.append(frames)
            self._read_batches()

    def on_bytes(self) -> None:
        """Something of a batch has arrived."""
        if self.alive:
            self.world.oracle.bytes_arrived()
            self._handle(events.BytesArrived())

    def _read_batches(self) -> None:
        while self.alive and self._unread and self.node.accepts_batches:
            try:
                batch = decode_batch(list(self._unread.popleft()))
            except WireError:
                self.bad_messages += 1
            else:
                self._handle(events.BatchArrived(batch))

    def _on_tick(self) -> None:
        self.after(TICK_S, self._on_tick)
        self._tick()

    def _tick(self) -> None:
        now_at = self.clock.now_at
        self._perform(self.node.handle(events.Tick(now_at, UTC_S + int(now_at))))

    def _handle(self, event: events.Event) -> None:
        self._tick()
        actions = self.node.handle(event)
        if self.world.trace is not None:
            self.world.note(f"applier {_shown(event)} -> {[_shown(each) for each in actions]}")
        self._perform(actions)
        self.world.oracle.check_target(self.node)

    def _perform(self, actions: list[events.Action]) -> None:
        for action in actions:
            match action:
                case events.Apply(job):
                    self._hook.check(job.record)
                    self.world.oracle.on_accepted(job)
                    self._jobs.append(job)
                    self._work()
                case events.Send(peer, message):
                    link = self.links.get(peer)
                    if link is not None and link.is_connected:
                        link.down.send(encode_message(message))
                    else:
                        self.after(0.0, partial(self._handle, events.PeerLost(peer)))
                case events.MakeDigests():
                    self._digest(_Digesting(action, self.store.durable_position))
                case events.RunHook():
                    self._hook.run(action)
                case events.LogEvent():
                    pass

    def on_hook_ended(self, ended: events.HookEnded) -> None:
        """The hook has ended; batches that it held back are read."""
        self._handle(ended)
        self._read_batches()

    # The store's worker, and what a journal does behind it.

    def _disk_s(self) -> float:
        return self.world.rng.uniform(0.0, self.world.options.disk_s)

    def _work(self) -> None:
        if not self._is_working and self._jobs:
            self._is_working = True
            self._group = 0
            self.after(self._disk_s(), self._write_one)

    def _write_one(self) -> None:
        job = self._jobs[0]
        with self.world.target_disks():
            if not self.store.fits(job):
                self._plan_step()
                self.after(self._disk_s(), self._write_one)
                return
            self.store.write(job)
            self._jobs.popleft()
            self._last = job
            self._group += 1
            if self._jobs and self._group < self.world.options.group_jobs:
                self.after(self._disk_s(), self._write_one)
            else:
                self.after(self._disk_s() * 3, self._sync)

    def _sync(self) -> None:
        assert self._last is not None
        with self.world.target_disks():
            self.store.sync(self._last.record)
            self.world.ages.durable(self._last.record)
            self._is_working = False
            self._plan_step()
            self._handle(events.Durable(self._last.number))
            self._read_batches()
            self._work()

    def _plan_step(self) -> None:
        if not self._is_step_planned:
            self._is_step_planned = True
            self.after(self._disk_s(), self._step)

    def _step(self) -> None:
        self._is_step_planned = False
        with self.world.target_disks():
            if self.store.step():
                self._plan_step()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the disk."""
        return not (self._jobs or self._is_working or self._is_step_planned)

    # Checksums.

    def _digest(self, digesting: _Digesting) -> None:
        self.after(
            self.world.rng.uniform(0.0, self.world.options.read_s),
            lambda: self._digest_one(digesting),
        )

    def _digest_one(self, digesting: _Digesting) -> None:
        request = digesting.action.request
        if self._is_applied(digesting):
            sector, sectors = request.ranges[len(digesting.digests)]
            content = bytes(self.store.device.content[place(sector, sectors)])
            size = request.block_sectors * 512
            made = block_digests(content, size) if size else digest(content)
            digesting.digests.append(made)
        if len(digesting.digests) < len(request.ranges):
            self._digest(digesting)
            return
        answer = Digests(request.request, b"".join(digesting.digests), DigestsRefused.NONE, "")
        self._handle(events.DigestsMade(digesting.action.peer, answer))

    def _is_applied(self, digesting: _Digesting) -> bool:
        """Whether what was durable then is on the device."""
        return self.store.applied_position >= digesting.position

    # Ends.

    def stop(self) -> None:
        """As SIGTERM does: finishes what was accepted, then closes."""
        self._handle(events.Stopping())
        while self._jobs:
            while not self.store.fits(self._jobs[0]):
                self.store.step()
            self._last = self._jobs.popleft()
            self.store.write(self._last)
        assert self._last is not None
        self.store.sync(self._last.record)
        self.world.ages.durable(self._last.record)
        self._handle(events.Durable(self._last.number))
        self.store.close()

    def kill(self, *, in_a_job: bool = True) -> None:
        """The worker may be in the middle of a job."""
        super().kill()
        for link in self.links.values():
            link.cut()
        if in_a_job and self.world.rng.random() < 0.5:
            self.store.device.fails_write = "killed"
            with contextlib.suppress(DiskFailedError, PowerLostError):
                is_idle = not self.store.step() and self._is_working and self._jobs
                if is_idle and self.store.fits(self._jobs[0]):
                    self.store.write(self._jobs[0])
            self.store.device.fails_write = None


def _shown(thing: object) -> str:
    """Without payload."""
    match thing:
        case events.BatchArrived(batch):
            return f"BatchArrived({batch.header})"
        case events.Apply(job):
            return f"Apply(job {job.number}, at {job.extents.offset}, {job.record})"
        case _:
            return str(thing)
