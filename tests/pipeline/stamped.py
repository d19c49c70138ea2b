# SPDX-License-Identifier: GPL-2.0-only
"""A writer whose every write can be told from the replica alone, and the judge of prefixes."""

from __future__ import annotations

import bisect
import random
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np

from tests.nbdkit.client import NbdClient
from tests.pipeline.pair import BLOCK_BYTES

STAMPS_PER_BLOCK = BLOCK_BYTES // 8


class StampedWriter:
    """Writes blocks in a seeded order, each filled with its number: 1, 2, 3 ...

    One write at a time, so each has completed before the next is submitted: any
    state of the disk that holds write N and not the latest earlier write of some
    block is no prefix.
    """

    def __init__(self, nbd: str, *, blocks: int, seed: int, pause_s: float = 0.0005) -> None:
        self.completed = 0
        self._nbd = nbd
        self._blocks = blocks
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._writes_of: dict[int, list[int]] = defaultdict(list)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """Ends the writing; returns how many writes completed."""
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error
        return self.completed

    def prefix_of(self, image: Path) -> int:
        """Which prefix of the writes the image holds.

        Raises:
            AssertionError: it holds none.
        """
        words = np.fromfile(image, "<u8").reshape(-1, STAMPS_PER_BLOCK)
        stamps = words[:, 0]
        assert (words == stamps[:, None]).all(), "a block holds parts of two writes"
        newest = int(stamps.max())
        for block, stamp in enumerate(stamps.tolist()):
            writes = self._writes_of.get(block, [])
            wanted_at = bisect.bisect_right(writes, newest)
            wanted = writes[wanted_at - 1] if wanted_at else 0
            assert stamp == wanted, (
                f"block {block} holds write {stamp}, but {wanted} came before {newest}, which is "
                "there"
            )
        return newest

    def _run(self) -> None:
        try:
            with NbdClient(self._nbd) as client:
                while not self._stop.wait(self._pause_s):
                    number = self.completed + 1
                    block = self._rng.randrange(self._blocks)
                    self._writes_of[block].append(number)
                    client.write(
                        block * BLOCK_BYTES, number.to_bytes(8, "little") * STAMPS_PER_BLOCK
                    )
                    self.completed = number
        except BaseException as error:
            self._error = error
