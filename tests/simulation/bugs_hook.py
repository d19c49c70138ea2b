# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the hook that runs before a usable replica is changed to something else."""

from __future__ import annotations

from typing import Any

from bdr.common.target.before_resync import BeforeResync, HookState, Offered
from bdr.common.target.hook import HookSettings
from bdr.common.target.replica import Replica
from bdr.common.target.settings import TargetSettings
from tests.simulation.bugs import Patch, bug, followed, wrapped

_HOOK: dict[str, Any] = {
    "target": TargetSettings(source_silence_s=4.0, before_resync=HookSettings(retry_s=0.5)),
    "hook_s": 0.5,
}
_REPAIRS = {"user_resync": 0.3}


@bug(**_HOOK, faults=_REPAIRS)
def batch_is_accepted_before_the_hook_has_ended() -> Patch:
    def make(passes: Any) -> Any:
        def broken(self: BeforeResync, cause: Any) -> bool:
            passes(self, cause)
            return True

        return broken

    return wrapped(BeforeResync, "lets_pass", make)


@bug(**_HOOK, faults=_REPAIRS, disk_s=0.01, group_jobs=4)
def hook_runs_before_what_was_accepted_is_durable() -> Patch:
    def then(self: BeforeResync, _: Any) -> None:
        if self.state is HookState.WAITING:
            self._begin()

    return followed(BeforeResync, HookState.IDLE, Offered, then)


@bug(**_HOOK, faults=_REPAIRS | {"replace_capture": 1.0})
def hook_that_has_run_once_counts_for_ever() -> Patch:
    def make(passes: Any) -> Any:
        def broken(self: BeforeResync, cause: Any) -> bool:
            if self.state is HookState.DONE:
                return True
            passed: bool = passes(self, cause)
            return passed

        return broken

    return wrapped(BeforeResync, "lets_pass", make)


@bug(**_HOOK, faults={"replace_capture": 1.0})
def compare_begins_without_the_hook() -> Patch:
    def make(departure: Any) -> Any:
        def broken(self: Replica, header: Any) -> Any:
            return None if self._start is not None else departure(self, header)

        return broken

    return wrapped(Replica, "departure", make)
