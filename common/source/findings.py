# SPDX-License-Identifier: GPL-2.0-only
"""What verifications have found, which a source remembers until it is repaired. No I/O here.

A difference that was found counts until a scan has repaired its regions, or a later
verification has compared it and found it equal. A verification that did not come to its end
adds what it has found, and takes nothing back.

The source's file has room for `FINDINGS_RANGES_MAX` ranges: more of them are joined over the
smallest gaps, so what is remembered is never less than what was found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from bdr.common.capture.api import CaptureInfo
from bdr.common.facts import Facts
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.plan import joined
from bdr.common.source.events import Action, Announce, ClearRegions, Peer, Reply, SaveFindings
from bdr.common.source.identity import FINDINGS_RANGES_MAX, Findings
from bdr.common.wire.codec import Range
from bdr.common.wire.scan import Remembered, VerifyFound


def bounded(ranges: Sequence[Range], limit: int = FINDINGS_RANGES_MAX) -> tuple[Range, ...]:
    """These ranges, ascending and merged, as at most `limit` that cover them."""
    found = joined(ranges)
    if len(found) > limit:
        gaps = [(found[at + 1][0] - sum(found[at]), at) for at in range(len(found) - 1)]
        joints = {at for _, at in sorted(gaps)[: len(found) - limit]}
        fewer: list[Range] = []
        for at, each in enumerate(found):
            if at - 1 in joints:
                fewer[-1] = fewer[-1][0], sum(each) - fewer[-1][0]
            else:
                fewer.append(each)
        found = fewer
    return tuple(found)


def without(ranges: Sequence[Range], gone: Sequence[Range]) -> list[Range]:
    """What is left of the ranges without these."""
    left: list[Range] = []
    holes = joined(gone)
    for sector, sectors in joined(ranges):
        at, end = sector, sector + sectors
        for hole, size in holes:
            if hole >= end:
                break
            if hole > at:
                left.append((at, hole - at))
            at = max(at, hole + size)
        if at < end:
            left.append((at, end - at))
    return left


def size_of(ranges: Sequence[Range]) -> int:
    """In bytes."""
    return sum(sectors for _, sectors in ranges) * SECTOR_BYTES


def after(findings: Findings, found: VerifyFound, *, device_sectors: int) -> Findings:
    """What is known when a verification has ended."""
    compared = without(found.covered, found.ignored)
    left = without(findings.unrepaired, compared)
    unrepaired = bounded([*left, *found.differing])
    if joined(found.covered) != [(0, device_sectors)]:
        return replace(findings, unrepaired=unrepaired)
    return Findings(
        found.ended_utc,
        found.compared_bytes,
        size_of(joined(found.ignored)),
        found.differing_bytes,
        unrepaired,
    )


class Memory:
    """What is remembered, and what waits until it is durable.

    Args:
        findings: as they are on disk.
    """

    def __init__(self, findings: Findings, *, info: CaptureInfo) -> None:
        self.findings = findings
        self._info = info
        self._saves: deque[list[Action]] = deque()
        """What follows from each that is under way, in their order."""

    def found(self, peer: Peer, found: VerifyFound) -> list[Action]:
        """A verification has ended; it is answered when this is durable."""
        self.findings = after(self.findings, found, device_sectors=self._info.device_sectors)
        self._saves.append([Reply(peer, Remembered(found.request))])
        facts: Facts = {
            "compared_bytes": found.compared_bytes,
            "differing_bytes": found.differing_bytes,
            "unrepaired_bytes": size_of(self.findings.unrepaired),
        }
        return [SaveFindings(self.findings), Announce("verified", facts)]

    def cleared(self, actions: Sequence[Action]) -> list[Action]:
        """These clear regions: they were compared and repaired, durably on the target.

        A region that was marked while a verification compared it is ignored by that; so what
        was found was compared again since.
        """
        size = self._info.region_sectors
        gone = [
            (each.first * size, each.count * size)
            for each in actions
            if isinstance(each, ClearRegions)
        ]
        left = tuple(without(self.findings.unrepaired, gone))
        if left == self.findings.unrepaired:
            return []
        self.findings = replace(self.findings, unrepaired=bounded(left))
        self._saves.append([])
        return [SaveFindings(self.findings)]

    def saved(self) -> list[Action]:
        """The oldest save that was under way is durable."""
        return self._saves.popleft()
