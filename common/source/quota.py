# SPDX-License-Identifier: GPL-2.0-only
"""How many resync batches may be in flight: live writes wait behind them.

What the ring gathers meanwhile must fit into it, or a scan over a slow link would make
the overflow that the next scan has to repair.
"""

from __future__ import annotations

from dataclasses import dataclass

RESYNC_SLOTS = 256
"""What a resync batch has at most, as a rule: 1 MiB."""


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """Shares are of the ring."""

    batches: int = 32
    """Most resync batches in flight: a scan's part of the window."""
    share: float = 0.25
    """And no more of them than fit into this share of the ring, but one."""
    below: float = 0.5
    """None is added while more than this share of the ring is in use."""


class ResyncQuota:
    """See the module's text.

    Args:
        capacity: slots of the ring.
    """

    def __init__(self, *, settings: QuotaSettings, capacity: int) -> None:
        self.settings = settings
        self._capacity = capacity

    @property
    def limit(self) -> int:
        """Resync batches in flight that are enough."""
        share = self.settings.share * self._capacity / RESYNC_SLOTS
        return max(1, min(self.settings.batches, int(share)))

    def room(self, *, used_slots: int, resync_in_flight: int, room_batches: int) -> int:
        """Resync batches that may be numbered now.

        Args:
            used_slots: of the ring, by writes that the target does not have yet.
            resync_in_flight: resync batches in flight.
            room_batches: batches for which the window has room.
        """
        if used_slots > self.settings.below * self._capacity:
            return 0
        # Those of one lease go together.
        limit = self.limit if resync_in_flight else self.settings.batches
        return max(0, min(limit - resync_in_flight, room_batches))
