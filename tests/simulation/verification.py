# SPDX-License-Identifier: GPL-2.0-only
"""`bdr verify` of everything, while the world goes on.

Where source and replica differ a bit says so, or the ring has it (P4): so a command that
leaves those out has nothing to name, ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdr.common.scan import events
from bdr.common.scan.verifier import Verifier, VerifySettings
from tests.simulation.comparison import Comparison
from tests.simulation.source import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.world import World


class Verification(Comparison):
    """One command, until it ends or is killed."""

    def __init__(self, world: World) -> None:
        verifier = Verifier(
            stream=world.gate.stream,
            ranges=[(0, world.options.device_sectors)],
            settings=world.options.comparer,
            verify=VerifySettings(lease_chunks=2, tries=2, no_progress_s=5.0, waiting_s=10.0),
        )
        self._verifier = verifier
        super().__init__(world, verifier, "verify")

    def _restart(self) -> None:
        self.world.end_verification()

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Finished():
                found = self._verifier.findings
                if found.differing:
                    raise BrokenRuleError(f"verify: sectors {found.differing} differ, it says")
                self.world.verified += 1
                self.world.end_verification()
            case events.Interrupted():
                self.world.end_verification()
