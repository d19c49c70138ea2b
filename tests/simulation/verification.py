# SPDX-License-Identifier: GPL-2.0-only
"""`bdr verify` of everything, while the world goes on.

Where source and replica differ a bit says so, or the ring has it (P4): so a command that
leaves those out has nothing to name, ever. What it reports in the end is made up, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdr.common.scan import events
from bdr.common.scan.verifier import Findings, Verifier, VerifySettings
from bdr.common.source.findings import bounded, size_of
from bdr.common.wire.codec import Range
from bdr.common.wire.scan import Remembered, VerifyFound, decode_answer, encode_request
from tests.simulation.comparison import Comparison
from tests.simulation.source import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.world import World


ANSWER_S = 5.0


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
        self._report: VerifyFound | None = None
        """What the source is to remember, which the command waits for."""
        self._sent_at = 0.0
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
                self._send(found)
            case events.Interrupted():
                self.world.end_verification()

    def _send(self, found: Findings) -> None:
        """Reports, and ends when that is answered, or after a while."""
        world = self.world
        self.after(ANSWER_S, world.end_verification)
        if self._to_reader is None:
            return
        differing = [self._made_up() for _ in range(world.rng.choice((0, 1, 3)))]
        self._report = VerifyFound(
            request=1,
            ended_utc=int(self.clock.now_at) + 1,
            covered=world.rng.choice(([], [(0, world.options.device_sectors)])),
            ignored=list(bounded([*found.busy, *found.unreadable])),
            differing=list(bounded(differing)),
            compared_bytes=found.compared_bytes,
            differing_bytes=size_of(bounded(differing)),
        )
        self._sent_at = self.clock.now_at
        world.remembered.reports(self._report)
        self._to_reader.up.send(encode_request(self._report))

    def _made_up(self) -> Range:
        first = self.world.rng.randrange(self.world.options.device_sectors)
        return first, 1

    def _on_answer(self, data: bytes) -> None:
        if isinstance(decode_answer(data), Remembered):
            assert self._report is not None
            self.world.remembered.answered(self._report, sent_at=self._sent_at)
            self.world.end_verification()
        else:
            super()._on_answer(data)
