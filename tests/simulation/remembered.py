# SPDX-License-Identifier: GPL-2.0-only
"""The checker of what verifications have found: nothing that was answered is forgotten.

Source and replica do not differ unmarked in this world, so commands report sectors that do
not differ; the source cannot know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bdr.common.wire.codec import Range
from bdr.common.wire.scan import VerifyFound
from tests.simulation.source import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.world import World


def sectors_of(ranges: Iterable[Range]) -> set[int]:
    """Each of them."""
    return {at for sector, sectors in ranges for at in range(sector, sector + sectors)}


class Remembered:
    """One for each run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._must: set[int] = set()
        """Found, answered, and neither repaired nor found equal since."""
        self._reported: set[int] = set()
        self._cleared_at: dict[int, float] = {}

    def reports(self, found: VerifyFound) -> None:
        """A command sends this: from now on it may count."""
        self._must -= sectors_of(found.covered) - sectors_of(found.ignored)
        self._reported |= sectors_of(found.differing)

    def answered(self, found: VerifyFound, *, sent_at: float) -> None:
        """The source has it durably, says the answer."""
        self._must |= {
            sector
            for sector in sectors_of(found.differing)
            if self._cleared_at.get(sector, -1.0) < sent_at
        }
        self.check("when a command is answered")

    def cleared(self, first: int, count: int) -> None:
        """These regions were compared and repaired."""
        size, now_at = self._world.options.region_sectors, self._world.clock.now_at
        cleared = range(first * size, (first + count) * size)
        self._must.difference_update(cleared)
        self._cleared_at.update(dict.fromkeys(cleared, now_at))

    def went_back(self) -> None:
        """The source's disk went back: it can only remember what it knew then."""
        self._must &= self._kept

    def check(self, when: str) -> None:
        """Asked whenever the source's file has changed."""
        if lost := self._must - self._kept:
            raise BrokenRuleError(f"{when}: sectors {sorted(lost)[:8]} were found, and forgotten")
        if invented := self._kept - self._reported:
            raise BrokenRuleError(f"{when}: sectors {sorted(invented)[:8]} were never found")

    @property
    def _kept(self) -> set[int]:
        return sectors_of(self._world.source_record.findings.unrepaired)
