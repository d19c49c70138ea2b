# SPDX-License-Identifier: GPL-2.0-only
"""The checkers. They see everything, and are asked after each event.

==  =========================================================================
P1  a slot is accepted only when its write has completed at the source
P2  what has reached the device equals the source's slots in order, exactly; a
    replica called CONSISTENT is the source at a prefix, with no missed write in it
P3  at each release, a power cut of the target now, the worst or any other, leaves
    a state from which the rest of the ring gives everything
P5  see `World.run`: after the faults both sides become identical
==  =========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdr.common.source.sequencer import Sequencer
from bdr.common.target.job import Apply
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.replica import Replica
from bdr.common.wire.control import Condition
from tests.simulation.source import STREAM, BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.world import World


class Oracle:
    """One for each run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.gaps: list[int] = []
        """Slots in front of which writes were missed."""
        self.written_slot = 0
        """The position of the last job that has reached the device."""
        self._highest_slot = 0
        """The highest such position ever: what the device may hold."""
        self._expected: bytearray | None = None
        """After a crash: what the device must hold, going on from what was left."""
        self._accepted_slot = 0

    # P1.

    def on_accepted(self, job: Apply) -> None:
        if job.record.stream != STREAM:
            raise BrokenRuleError("another source has taken the replica over")
        published = self._world.gate.published_end()
        if job.record.slot > published:
            raise BrokenRuleError(
                f"P1: slot {job.record.slot} accepted, but only {published} slots are published"
            )
        if job.record.slot < self._accepted_slot:
            raise BrokenRuleError(f"P2: went back from {self._accepted_slot} to {job.record.slot}")
        for slot in range(self._accepted_slot, job.record.slot):
            write, _ = self._world.shadow.writes[slot]
            if not write.has_landed:
                raise BrokenRuleError(f"P1: slot {slot} accepted, but its write has not completed")
        self._accepted_slot = job.record.slot
        self._check_condition(job.record)

    # P2.

    def on_device(self, record: ReplicaRecord) -> None:
        """A job has reached the device."""
        first, end = self.written_slot, record.slot
        shadow, device = self._world.shadow, self._world.store.device.content
        self.written_slot = end
        self._highest_slot = max(self._highest_slot, end)
        if self._expected is not None:
            shadow.replay(self._expected, first=first, end=end)
            if device != self._expected:
                raise BrokenRuleError(f"P2: slots {first} to {end} were not applied as they are")
            if end < self._highest_slot and record.condition is not Condition.CONSISTENT:
                return
            self._expected = None
        if device != shadow.at(end):
            raise BrokenRuleError(
                f"P2: {record.condition.name} at slot {end}, but the device differs from the "
                f"source there in sectors {differing(device, shadow.at(end))}"
            )

    def on_crashed(self, begun_slot: int) -> None:
        """The applier is gone; the device may hold some of what lies below `begun_slot`."""
        self._highest_slot = max(self._highest_slot, begun_slot)

    def on_recovered(self, record: ReplicaRecord) -> None:
        world = self._world
        if record.stream != STREAM:
            return
        self._accepted_slot = self.written_slot = record.slot
        if record.slot < world.gate.tail:
            raise BrokenRuleError(f"P3: recovered slot {record.slot}, released {world.gate.tail}")
        self._check_condition(record)
        if record.condition is Condition.CONSISTENT or world.store.survives_crashes:
            content = world.shadow.at(record.slot)
            if world.store.device.content != content:
                raise BrokenRuleError(
                    f"P2: recovered as {record.condition.name} at slot {record.slot}, but sectors "
                    f"{differing(world.store.device.content, content)} differ"
                )
            self._expected = None
        else:
            self._expected = bytearray(world.store.device.content)

    def _check_condition(self, record: ReplicaRecord) -> None:
        if record.stream != STREAM:
            return
        # In front of the gap itself the replica is still a prefix.
        passed = [gap for gap in self.gaps if gap < record.slot]
        reached = [gap for gap in self.gaps if gap <= record.slot]
        if passed and record.condition is not Condition.INCONSISTENT:
            raise BrokenRuleError(
                f"P2: {record.condition.name} at slot {record.slot}, but writes were missed in "
                f"front of slot {passed[0]}"
            )
        if not self._world.options.assume_clean:
            if record.condition in (Condition.CONSISTENT, Condition.CATCHING_UP):
                raise BrokenRuleError(f"P2: {record.condition.name}, but never scanned")
        elif (
            record.condition not in (Condition.CONSISTENT, Condition.CATCHING_UP)
            and not reached
            and not self._world.gate.failed
        ):
            raise BrokenRuleError(
                f"{record.condition.name} at slot {record.slot} without a missed write"
            )

    # P3.

    def check_release(self, tail: int) -> None:
        """`tail` is about to be released."""
        world = self._world
        published = world.gate.published_end()
        for rng in (None, world.rng):
            if world.rng.random() >= world.options.audits * (1.0 if rng is None else 0.3):
                continue
            left = world.store.after_power_cut(rng)
            record = left.recover().at_start()
            if record.stream != STREAM or not tail <= record.slot <= published:
                raise BrokenRuleError(
                    f"P3: {tail} released, but after a power cut the target is at {record.slot} "
                    f"of {published}"
                )
            content = left.device.content
            if left.survives_crashes and content != world.shadow.at(record.slot):
                raise BrokenRuleError(f"P2: no prefix after a power cut at slot {record.slot}")
            world.shadow.replay(content, first=record.slot, end=published)
            if content != world.shadow.at(published):
                raise BrokenRuleError(
                    f"P3: {tail} released, but a power cut now would lose writes of sectors "
                    f"{differing(content, world.shadow.at(published))}"
                )

    # Bounds.

    def check_sequencer(self, machine: Sequencer) -> None:
        settings = machine.settings
        if (
            machine.in_flight > settings.window_batches
            or machine.cursor - machine.tail > settings.window_slots
        ):
            raise BrokenRuleError(f"window: {machine.in_flight} batches in flight")

    def check_replica(self, machine: Replica) -> None:
        settings = machine.settings
        if (
            len(machine._reorder) > settings.reorder_batches
            or machine._reorder_bytes > settings.reorder_bytes
            or machine._reorder_bytes != sum(batch.size for batch in machine._reorder.values())
        ):
            raise BrokenRuleError(f"reorder buffer: {len(machine._reorder)} batches")


def differing(one: bytearray, other: bytearray) -> list[int]:
    """The first sectors that differ."""
    sectors = range(0, len(one), 512)
    return [at // 512 for at in sectors if one[at : at + 512] != other[at : at + 512]][:8]
