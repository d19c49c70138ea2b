# SPDX-License-Identifier: GPL-2.0-only
"""Watches a capture, to know what is durable on the target: there it must survive."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from bdr.common.ring.layout import Mode

INTERVAL_S = 0.02


class Durable:
    """Samples the ring in a thread of its own, until `stop`.

    A sample's writes are those of before its instant: its head is behind them. They are durable
    on the target once the tail, which follows acknowledgements, has reached that head. While
    writes are in a bitmap only, or what they left is not repaired, no sample counts.

    Attributes:
        until_at: what was written by this instant is durable on the target; 0 for nothing.
    """

    def __init__(self, ring: str) -> None:
        self.until_at = 0.0
        self._ring = ring
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Ends the sampling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        samples: deque[tuple[float, int]] = deque()
        capture = open_capture(self._ring, Role.OBSERVER)
        try:
            while not self._stop.wait(INTERVAL_S):
                at = time.monotonic()
                status = capture.status()
                while samples and samples[0][1] <= status.tail:
                    self.until_at = samples.popleft()[0]
                if status.mode is Mode.STREAM and status.gap is None and not status.dirty_regions:
                    samples.append((at, status.head))
        finally:
            capture.close()


@contextlib.contextmanager
def watching(ring: str) -> Iterator[Durable]:
    """A watch that has ended when the block ends."""
    durable = Durable(ring)
    try:
        yield durable
    finally:
        durable.stop()
