# SPDX-License-Identifier: GPL-2.0-only
"""The hook of an applier, as `services/target/hook.py`, and its checkers.

It sees the replica as its record says, nothing is applied while it runs, and a usable
replica becomes something else only when it has run for this very replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdr.common.target.events import HookEnded, RunHook
from bdr.common.target.hook import HookOutcome
from bdr.common.target.record import ReplicaRecord
from bdr.common.wire.condition import Condition
from tests.simulation.source import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.applier import Applier

_USABLE = (Condition.CONSISTENT, Condition.CATCHING_UP, Condition.UNVERIFIED)
_FAILURES = (HookOutcome.FAILED, HookOutcome.TIMED_OUT)
Place = tuple[bytes, int, int]


class Hook:
    """Of one applier; what it has done is lost with it.

    Args:
        record: the replica's, when the applier begins.
    """

    def __init__(self, applier: Applier, record: ReplicaRecord) -> None:
        self._applier = applier
        self._record = record
        self._ran_for: Place | None = None

    def run(self, action: RunHook) -> None:
        """When all that is durable is on the device."""
        self._wait(action, self._applier.store.durable_position)

    def _wait(self, action: RunHook, position: int) -> None:
        world, store = self._applier.world, self._applier.store
        if store.applied_position < position:
            self._applier.after(world.options.read_s, lambda: self._wait(action, position))
            return
        seen = bytes(store.device.content)
        world.oracle.judge(action.record, bytearray(seen), "as the hook sees it")

        def end() -> None:
            if store.device.content != seen:
                raise BrokenRuleError("the replica was changed while the hook ran")
            outcome = HookOutcome.GOOD
            if world.is_faulty and world.rng.random() < world.options.hook_failures:
                outcome = world.rng.choice(_FAILURES)
            settings = world.options.target.before_resync
            if outcome is HookOutcome.GOOD or not (settings and settings.is_required):
                self._ran_for = _place(action.record)
            self._applier.on_hook_ended(HookEnded(outcome, ""))

        world.faults.counts["hook"] += 1
        self._applier.after(world.rng.uniform(0.0, world.options.hook_s), end)

    def check(self, after: ReplicaRecord) -> None:
        """A job makes the replica this."""
        before, self._record = self._record, after
        if self._applier.world.options.target.before_resync is None:
            return
        if before.condition not in _USABLE or _place(before) == _place(after):
            return
        departs = (
            before.stream != after.stream
            or after.changes > before.changes + 1
            or after.condition is Condition.INCONSISTENT
        )
        if departs and self._ran_for != _place(before):
            raise BrokenRuleError(f"{before} became {after}, and the hook had not run")


def _place(record: ReplicaRecord) -> Place:
    return record.stream, record.slot, record.changes
