# SPDX-License-Identifier: GPL-2.0-only
"""Compares a source with its replica, while both are in use."""

from __future__ import annotations

import time
from collections.abc import Callable

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from bdr.common.scan import events
from bdr.common.scan.plan import Chunk
from bdr.common.scan.verifier import Findings, Verifier
from bdr.common.storage.source_device import SourceDevice
from bdr.services.cli.reader_client import NoPeerError, SourceLocation
from bdr.services.runtime import log, options, sockets
from bdr.services.source.comparison import TICK_MS, Comparison


class Verification:
    """The source's device, for one or more comparisons.

    Args:
        location: of the source side.
    """

    def __init__(self, location: SourceLocation) -> None:
        self._place = location
        self._log = log.logger()
        capture = open_capture(location.chardev, Role.OBSERVER)
        self.sectors = capture.info.device_sectors
        self._stream = capture.info.stream
        self._source = SourceDevice(location.underdev, chardev=location.chardev, info=capture.info)
        capture.close()
        self._is_interrupted = False
        self._progress: Callable[[int], None] = _ignore
        self.findings = Findings()
        """Of the last comparison, also if it was interrupted."""

    def close(self) -> None:
        """Closes the device."""
        self._source.close()

    def compare(
        self,
        ranges: list[Chunk] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Findings:
        """Compares ranges of sectors, by default everything.

        Args:
            progress: called with the number of bytes compared since the last call.

        Raises:
            NoPeerError: the reader or the target does not answer.
        """
        self._progress = progress or _ignore
        self._is_interrupted = False
        location = self._place
        verifier = Verifier(
            stream=self._stream, ranges=[(0, self.sectors)] if ranges is None else ranges
        )
        self.findings = verifier.findings
        self._comparison = Comparison(
            comparer=verifier,
            source=self._source,
            control=options.tcp(location.address, location.port + 1),
            reader=sockets.endpoint(location.run_dir, "requests"),
            more={},
            perform=self._perform,
        )
        loop = self._comparison.loop
        try:
            loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._end_round)
        finally:
            self._comparison.close()
        if self._is_interrupted:
            raise NoPeerError(
                f"volume {location.volume}: nothing could be compared for a while: the reader or "
                "the target does not answer; see `bdr status`"
            )
        return verifier.findings

    def _on_tick(self, now_at: float) -> None:
        self._comparison.handle(events.Tick(now_at))

    def _end_round(self) -> None:
        self._comparison.handle(events.RoomSeen(0))
        # No event follows the round that completes the last job.
        self._comparison.handle(events.Tick(time.monotonic()))

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Progress(size):
                self._progress(size)
            case events.Finished():
                self._comparison.loop.stop()
            case events.Interrupted():
                self._is_interrupted = True
                self._comparison.loop.stop()
            case events.LogEvent(name, facts):
                self._log.debug(name, **facts)
            case _:
                pass  # nothing is sent


def _ignore(_: int) -> None:
    """Progress is not shown."""
