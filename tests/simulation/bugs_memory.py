# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of what a source remembers of verifications."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bdr.common.source import events, findings
from bdr.common.source.findings import Memory
from bdr.common.source.identity import Findings
from bdr.common.wire.scan import Remembered
from tests.simulation.bugs import Patch, bug, wrapped

_VERIFY: dict[str, Any] = {"user_verify": 0.2}


@bug(faults=_VERIFY | {"kill_reader": 0.15}, source_disk_s=0.02)
def findings_are_answered_before_they_are_durable() -> Patch:
    def make(found: Any) -> Any:
        def broken(self: Memory, peer: Any, message: Any) -> Any:
            answer = events.Reply(peer, Remembered(message.request))
            return [*found(self, peer, message), answer]

        return broken

    return wrapped(Memory, "found", make)


@bug(faults=_VERIFY | {"kill_reader": 0.5})
def findings_are_forgotten_at_a_restart() -> Patch:
    def make(init: Any) -> Any:
        def broken(self: Memory, _: Any, **rest: Any) -> None:
            init(self, Findings(), **rest)

        return broken

    return wrapped(Memory, "__init__", make)


@bug(faults=_VERIFY | {"user_resync": 0.3})
def findings_end_with_any_repair() -> Patch:
    def make(cleared: Any) -> Any:
        def broken(self: Memory, actions: Any) -> Any:
            if not any(isinstance(each, events.ClearRegions) for each in actions):
                return cleared(self, actions)
            everything = events.ClearRegions(0, self._info.regions)
            return cleared(self, [everything])

        return broken

    return wrapped(Memory, "cleared", make)


@bug(faults=_VERIFY | {"user_resync": 0.3}, in_flight=8, think_s=0.0005)
def findings_end_with_blocks_that_were_not_compared() -> Patch:
    def make(after: Any) -> Any:
        def broken(known: Findings, found: Any, **rest: Any) -> Findings:
            made: Findings = after(known, replace(found, ignored=[]), **rest)
            return made

        return broken

    return wrapped(findings, "after", make)
