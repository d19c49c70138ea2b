# SPDX-License-Identifier: GPL-2.0-only
"""The target's disks are exchanged one by one, while no applier runs.

The device goes back to a snapshot, is a blank file or another disk; the state goes back
beside a newer device, or is lost. Each strikes only where the target can tell: some sector
that it keeps a digest of is another, and no journal entry writes it anyway. Where most of
the fixed places are others, the device must be refused, and not be written to, until a
person puts the right one back or adopts this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.target.record import ANY_SOURCE, ReplicaRecord
from bdr.common.target.witness import ZEROS, digest_of
from bdr.common.target.witness_check import Outcome
from bdr.common.wire.condition import Condition
from tests.simulation.disk import Disk
from tests.simulation.source import BrokenRuleError
from tests.simulation.stores import Store

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class _Exchange:
    """What the next applier must find."""

    outcome: Outcome
    before: dict[str, Disk]
    """What was there: the state may be what was exchanged."""
    content: bytes
    """Of the device now."""


class Exchanges:
    """Of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._device: Disk | None = None
        self._state: Store | None = None
        self._pending: _Exchange | None = None
        self.is_adoption_due = False

    @property
    def is_pending(self) -> bool:
        """Whether no applier has seen the disks since they were exchanged."""
        return self._pending is not None

    @property
    def is_wrong(self) -> bool:
        """Whether the target has another disk in the device's place."""
        pending = self._pending
        return pending is not None and pending.outcome is Outcome.OTHER_DISK

    def forget(self) -> None:
        """The whole host is another one."""
        self._device = self._state = self._pending = None
        self.is_adoption_due = False

    # Faults.

    def revert_device(self) -> None:
        """Takes a snapshot of the device, or puts it back."""
        world = self._world
        if self.is_pending:
            return
        if self._device is None:
            self._device = world.store.device.after_power_cut(world.rng)
        elif self._stop():
            then, self._device = self._device, None
            self._exchange(lambda: world.store.put("device", then))

    def revert_state(self) -> None:
        """Takes a copy of the state file and the journal, or puts it back."""
        world = self._world
        if self.is_pending:
            return
        if self._state is None:
            self._state = world.store.after_power_cut(world.rng)
        elif self._stop():
            then, self._state = self._state, None

            def put() -> None:
                for name, disk in then.disks().items():
                    if name != "device":
                        world.store.put(name, disk)

            self._exchange(put)

    def exchange_device(self) -> None:
        """Another disk is in its place: a blank one, or one with other data."""
        world = self._world
        if self._stop():
            size = len(world.store.device.content)
            other = Disk(size)
            other.content[:] = other.synced[:] = world.rng.choice(
                (bytes(size), world.rng.randbytes(size))
            )
            self._exchange(lambda: world.store.put("device", other))

    def lose_state(self) -> None:
        """State file and journal are gone."""
        world = self._world
        if self._stop():
            for name, disk in world.store.disks().items():
                if name != "device":
                    world.store.put(name, Disk(len(disk.content)))
            world.oracle.host_went_back(None)
            # It was true once; a target that knows no source would believe it again.
            world.assume_clean = False
            world.restart_reader()

    def _stop(self) -> bool:
        """Ends the applier; whether it ended, or had, as the fault needs it."""
        world = self._world
        if world.applier is None or self._pending is not None:
            return False
        if world.rng.random() < 0.5:
            world.stop_applier()
        else:
            world.lose_target_power()
        return world.applier is None

    def _exchange(self, put: Callable[[], None]) -> None:
        world = self._world
        before, store = world.store.disks(), world.store
        put()
        content = bytes(store.device.content)
        outcome = _outcome(store, content)
        if outcome is Outcome.SAME:
            for name, disk in before.items():
                store.put(name, disk)
            return
        world.note(f"an exchange: {outcome.name}")
        world.oracle.host_went_back(None)
        self._pending = _Exchange(outcome, before, content)

    # What is made of it.

    def started(self, record: ReplicaRecord) -> None:
        """An applier has begun, on this record."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.outcome is Outcome.OTHER_DISK:
            raise BrokenRuleError(f"another disk was taken for the replica: {record}")
        if record.condition is not Condition.UNKNOWN:
            raise BrokenRuleError(f"a disk of another moment was believed: {record}")

    def refused(self, why: str) -> None:
        """None has begun: the device is another one. A person looks at it soon."""
        world, pending = self._world, self._pending
        if pending is None or pending.outcome is not Outcome.OTHER_DISK:
            raise BrokenRuleError(f"the right disk is refused: {why}")
        if world.store.device.content != pending.content:
            raise BrokenRuleError("another disk was written to")

        def look() -> None:
            if self._pending is not pending:
                return
            self._pending = None
            if world.rng.random() < 0.5:
                world.note("a person puts back what was there")
                for name, disk in pending.before.items():
                    world.store.put(name, disk)
            else:
                world.note("a person adopts the disk")
                self.is_adoption_due = True
            world.start_applier()

        world.clock.after(world.rng.uniform(0.1, 2.0), look)

    def adopt(self) -> None:
        """As `bdr adopt`; again after a power cut in the middle of it."""
        self._world.store.demote(ANY_SOURCE)
        self.is_adoption_due = False


def _outcome(store: Store, content: bytes) -> Outcome:
    """What can be told, by what is neither torn nor written by the journal anyway."""
    found = store.after_power_cut(None).kept()
    if found is None:
        return Outcome.SAME
    witness, written = found

    def digest(sector: int) -> int:
        return digest_of(content[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])

    kept = {**witness.fixed, **witness.recent}
    others = {sector for sector in kept if digest(sector) != kept[sector]} - written
    alike = {
        sector
        for sector in witness.fixed
        if sector in written or (sector not in others and digest(sector) != ZEROS)
    }
    if len(others & witness.fixed.keys()) > len(alike):
        return Outcome.OTHER_DISK
    # What the journal writes may be anything now, and could make it another disk.
    is_sure = len(witness.fixed.keys() & (others | written)) <= len(alike - written)
    return Outcome.OTHER_MOMENT if others and is_sure else Outcome.SAME
