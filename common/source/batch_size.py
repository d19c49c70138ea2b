# SPDX-License-Identifier: GPL-2.0-only
"""How many slots a batch should have, by the rate at which batches arrive.

A batch is one frame: nothing of it counts before its end, with several senders the next ones are
late too, and a lost connection loses all of it. So a batch of a slow link takes about `BATCH_S`;
that of a fast one is as large as it may be.
"""

from __future__ import annotations

BATCH_S = 1.0
FIRST_SLOTS = 64
"""256 KiB: as many batches of this size as may be in flight are as many slots as may be."""
SLOTS_MIN = 16
SAMPLE_S = 0.1
"""Shortest time over which the rate is measured."""


class BatchSize:
    """See the module's docstring. Time in which nothing is in flight does not count.

    Args:
        slots_max: of a batch.
    """

    def __init__(self, slots_max: int) -> None:
        self._slots_max = slots_max
        self.slots = min(FIRST_SLOTS, slots_max)
        """Of the next batch, unless its first write is larger."""
        self._arrived_slots = 0
        self._since_at = 0.0

    def begin(self, now_at: float) -> None:
        """Something is in flight from now on."""
        self._arrived_slots = 0
        self._since_at = now_at

    def arrived(self, slots: int, now_at: float) -> None:
        """The target has accepted batches of so many slots."""
        self._arrived_slots += slots
        took_s = now_at - self._since_at
        if took_s < SAMPLE_S or not self._arrived_slots:
            return
        wanted = int(self._arrived_slots / took_s * BATCH_S)
        # At most twice or half of what it was: one sample says little.
        self.slots = max(self.slots // 2, min(self.slots * 2, wanted))
        self.slots = max(SLOTS_MIN, min(self.slots, self._slots_max))
        self.begin(now_at)
