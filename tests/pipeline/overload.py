# SPDX-License-Identifier: GPL-2.0-only
"""A pair over a link of a known rate, and writes above or below that rate."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.pipeline.pair import BLOCK_BYTES
from tests.pipeline.proxy import BadLink
from tests.pipeline.scanned import ScannedPair


class Load:
    """Random writes of 64 KiB at a rate, in the background.

    Attributes:
        rate: bytes a second; may be changed at any time.
        written_bytes: so far.
        slowest_s: the longest that one write has taken.
    """

    WRITE_BYTES = 16 * BLOCK_BYTES

    def __init__(self, pair: ScannedPair, *, rate: float) -> None:
        self.rate = rate
        self.written_bytes = 0
        self.slowest_s = 0.0
        self._pair = pair
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Ends the writes; a second time it does nothing."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(1)
        due_s = time.monotonic()
        while not self._done.wait(max(0.0, due_s - time.monotonic())):
            place = rng.randrange((self._pair.size - self.WRITE_BYTES) // BLOCK_BYTES)
            data = rng.randbytes(self.WRITE_BYTES)
            began_at = time.monotonic()
            self._pair.client.write(place * BLOCK_BYTES, data)
            ended_s = time.monotonic()
            self.slowest_s = max(self.slowest_s, ended_s - began_at)
            self.written_bytes += self.WRITE_BYTES
            # A pause that was missed is not made up for.
            due_s = max(due_s + self.WRITE_BYTES / self.rate, ended_s - 0.1)


@contextlib.contextmanager
def over_a_link(
    directory: Path, *, size: int, writes: int, link_rate: float
) -> Iterator[tuple[ScannedPair, BadLink]]:
    """A consistent pair over a link of this rate, in bytes a second."""
    pair = ScannedPair(directory, size=size, writes=writes, senders=1)
    with BadLink(pair.port, pair.port + 1) as link, pair:
        pair.address = link.address
        pair.start()
        pair.wait_consistent()
        link.rate = link_rate
        yield pair, link
