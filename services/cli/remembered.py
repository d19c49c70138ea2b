# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons whose findings the source remembers."""

from __future__ import annotations

import time
from collections.abc import Callable

from bdr.common.scan.plan import Chunk
from bdr.common.scan.verifier import Findings
from bdr.common.source.findings import bounded, size_of
from bdr.common.wire.codec import RANGES_MAX
from bdr.services.cli.reader_client import NoPeerError, ReaderClient
from bdr.services.cli.verifier import Verification


def compared(
    client: ReaderClient,
    verifier: Verification,
    ranges: list[Chunk] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Findings:
    """As `Verification.compare`; what was found is durable at the source when it returns.

    What was found until an interruption is remembered too.

    Raises:
        NoPeerError: the reader or the target does not answer.
    """
    try:
        found = verifier.compare(ranges, progress=progress)
    except BaseException:
        if verifier.findings.differing:
            _remember(client, verifier.findings, covered=[])
        raise
    _remember(client, found, covered=[(0, verifier.sectors)] if ranges is None else ranges)
    return found


def _remember(client: ReaderClient, found: Findings, *, covered: list[Chunk]) -> None:
    try:
        _send(client, found, covered=covered)
    except NoPeerError as error:
        raise NoPeerError(
            f"{error}; found {size_of(found.differing)} bytes that differ, which the source does "
            "not remember: verify again"
        ) from error


def _send(client: ReaderClient, found: Findings, *, covered: list[Chunk]) -> None:
    client.remember(
        ended_utc=int(time.time()),
        covered=covered[:RANGES_MAX],
        ignored=list(bounded([*found.busy, *found.unreadable], RANGES_MAX)),
        differing=list(bounded(found.differing)),
        compared_bytes=found.compared_bytes,
        differing_bytes=size_of(found.differing),
    )
