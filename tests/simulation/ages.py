# SPDX-License-Identifier: GPL-2.0-only
"""The judge of lag: what both sides say of the replica's age, against the truth.

It looks as a monitor does, ten times a second, and sees besides when each write was captured and
what is durable on the target. Said minus true:

======  =====================================================================
source  never below 0; above it at most the interval of the marks
target  never below -1 s, the interval at which a source that lacks nothing says so
both    0 once nothing is lacking, and known then
======  =====================================================================

What is not known, or only a lower bound, says nothing that could be wrong. "As of" is never
later than the capture of the oldest write that the replica lacks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from bdr.common.capture.times import Behind, behind, earlier
from bdr.common.ring.layout import MARKS_INTERVAL_NS, MISSED_NOTHING, MISSED_UNKNOWN
from bdr.common.target.record import ReplicaRecord
from tests.simulation.source import BrokenRuleError, Write

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOK_S = 0.1
UTC_S = 1_000_000_000
"""The wall clock's begin, on both hosts."""
TARGET_S = 1.0
RESTS = 10
"""So many looks in a row say at rest what is so."""
REST_WITHIN_S = 30.0
"""A partition may last a while, and be found by the silence."""
REST_SLACK_S = 0.2
SLACK_S = 1e-3
_OTHER_HISTORIES = {
    "source_power_cut",
    "replace_capture",
    "revert_source",
    "revert_target",
    "clone_source",
    "change_roles",
}
"""Of runs with these the truth is not followed here: only what is said in the end."""


class AgeJudge:
    """One for each run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._captured_at: dict[int, float] = {}
        """By the number of the write."""
        self._logged: deque[Write] = deque()
        """Not durable on the target, in the order of their slots."""
        self._missed: list[Write] = []
        """Not brought by a scan that has ended durably."""
        self._cleared_at: dict[int, float] = {}
        """When a region was last marked no more."""
        self._flying: set[int] = set()
        self._reader_missed_ns = MISSED_UNKNOWN
        """As a monitor knows it: what a reader has said last."""
        self._durable_as_of_utc = 0
        self._is_followed = not _OTHER_HISTORIES & world.options.faults.keys()
        world.clock.after(LOOK_S, self._look)

    # What happens.

    def captured(self, write: Write) -> None:
        """The capture has taken or missed a write, which is in flight now."""
        self._captured_at[write.number] = self._world.clock.now_at
        self._flying.add(write.number)
        if write.logged:
            self._logged.append(write)
        elif write.sectors:
            self._missed.append(write)

    def completed(self, write: Write) -> None:
        """The application has learnt that a write has completed."""
        self._flying.discard(write.number)

    def cleared(self, regions: range) -> None:
        """The reader has cleared marks, whose writes a scan has brought."""
        left = self._world.gate.active | self._world.gate.resync
        self._cleared_at |= dict.fromkeys(set(regions) - left, self._world.clock.now_at)

    def durable(self, record: ReplicaRecord) -> None:
        """The target has this durably."""
        self._durable_as_of_utc = record.as_of_utc
        while self._logged and self._logged[0].first + self._logged[0].slots <= record.slot:
            self._logged.popleft()
        if not record.condition.needs_scan:
            # Of a target that was cut off CONSISTENT, CATCHING_UP may be the first that is seen.
            self._missed = [each for each in self._missed if self._is_marked(each)]

    def _is_marked(self, write: Write) -> bool:
        gate, size = self._world.gate, self._world.gate.region_sectors
        regions = range(write.sector // size, (write.sector + write.sectors - 1) // size + 1)
        marked = gate.active | gate.resync
        captured_at = self._captured_at[write.number]
        return write.number in self._flying or any(
            region in marked and self._cleared_at.get(region, -1.0) < captured_at
            for region in regions
        )

    # What is said.

    def _look(self) -> None:
        self._world.clock.after(LOOK_S, self._look)
        said = self._source()
        if not self._is_followed:
            return
        lacking_at = self._lacking_at()
        self._judge_source(said, lacking_at)
        applier = self._world.applier
        if applier is None:
            return
        age, now_at = applier.node.age, self._world.clock.now_at
        said_s = age.seconds(now_at)
        true_s = 0.0 if lacking_at is None else now_at - lacking_at
        if said_s is not None and said_s < true_s - TARGET_S - SLACK_S:
            raise BrokenRuleError(f"age: the target says {said_s:.3f} s, true are {true_s:.3f}")
        for as_of_utc in (age.as_of_utc, self._durable_as_of_utc):
            if lacking_at is not None and as_of_utc > UTC_S + lacking_at:
                raise BrokenRuleError(
                    f"age: as of {as_of_utc - UTC_S} s, but a write of {lacking_at:.3f} s lacks"
                )

    def _source(self) -> Behind:
        """As a monitor of the source says it."""
        world = self._world
        if world.reader is not None and world.reader.gate is world.gate:
            self._reader_missed_ns = world.reader.node.order.times.missed_since_ns
        status = world.gate.status()
        missed_ns = earlier(status.missed_since_ns, self._reader_missed_ns)
        return behind(status, world.gate.marks(), missed_ns)

    def _judge_source(self, said: Behind, lacking_at: float | None) -> None:
        if said.ns is None or said.is_minimum:
            return
        world, said_s = self._world, said.ns / 1e9
        true_s = 0.0 if lacking_at is None else world.clock.now_at - lacking_at
        if said_s < true_s - SLACK_S:
            raise BrokenRuleError(f"age: the source says {said_s:.3f} s, true are {true_s:.3f}")
        gate = world.gate
        if earlier(gate.missed_since_ns, self._reader_missed_ns) != MISSED_NOTHING:
            return
        most_s = 0.0
        if gate.head > gate.tail:
            oldest, _ = world.history.slots[gate.tail]
            most_s = world.clock.now_at - self._captured_at[oldest.number]
            most_s += MARKS_INTERVAL_NS / 1e9
        if said_s > most_s + SLACK_S:
            raise BrokenRuleError(f"age: the source says {said_s:.3f} s, at most {most_s:.3f}")

    def _lacking_at(self) -> float | None:
        """When the oldest completed write was captured that the replica lacks."""
        landed = self._world.history.landed
        found = [
            self._captured_at[each.number]
            for each in (*self._logged, *self._missed)
            if each.sectors and each.number not in self._flying and each.number not in landed
        ]
        return min(found, default=None)

    def judge_rest(self) -> None:
        """Nothing is lacking: soon both sides know it, and go on saying so."""
        clock, rests = self._world.clock, 0
        ends_at = clock.now_at + REST_WITHIN_S
        while rests < RESTS:
            look_at = clock.now_at + LOOK_S
            while clock.now_at < look_at:
                clock.step()
            wrong = self._wrong_at_rest()
            rests = 0 if wrong else rests + 1
            if wrong and clock.now_at > ends_at:
                raise BrokenRuleError(f"age: nothing is lacking, and {wrong}")

    def _wrong_at_rest(self) -> str | None:
        said, applier = self._source(), self._world.applier
        if said != Behind(0, False):
            return f"the source says {said}"
        if applier is None:
            return "there is no target"
        age, now_at = applier.node.age, self._world.clock.now_at
        said_s, as_of_s = age.seconds(now_at), age.as_of_utc - UTC_S
        if said_s is None or said_s > REST_SLACK_S or not now_at - 3 < as_of_s <= now_at:
            return f"the target says {said_s} s, as of {as_of_s} at {now_at}"
        return None
