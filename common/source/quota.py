# SPDX-License-Identifier: GPL-2.0-only
"""Limits the resync batches in flight, which delay live writes.

Writes captured meanwhile must fit into the ring, or a scan over a slow link would cause an
overflow, and so the next scan.
"""

from __future__ import annotations

from dataclasses import dataclass

RESYNC_SLOTS = 256
"""Typical maximum of slots in a resync batch: 1 MiB."""


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """Fractions are of the ring's capacity."""

    batches: int = 32
    """Most resync batches in flight: a scan's share of the window."""
    share: float = 0.25
    """At most as many as fit into this fraction of the ring, but at least one."""
    below: float = 0.5
    """None is added while more than this fraction of the ring is in use."""


class ResyncQuota:
    """See the module's docstring.

    Args:
        capacity: slots of the ring.
    """

    def __init__(self, *, settings: QuotaSettings, capacity: int) -> None:
        self.settings = settings
        self._capacity = capacity

    @property
    def limit(self) -> int:
        """Target number of resync batches in flight."""
        share = self.settings.share * self._capacity / RESYNC_SLOTS
        return max(1, min(self.settings.batches, int(share)))

    def room(self, *, used_slots: int, resync_in_flight: int, room_batches: int) -> int:
        """Resync batches that may be numbered now.

        Args:
            used_slots: slots in use by writes that are not durable on the target.
            resync_in_flight: resync batches in flight.
            room_batches: batches for which the window has room.
        """
        if used_slots > self.settings.below * self._capacity:
            return 0
        # The batches of one lease are numbered together.
        limit = self.limit if resync_in_flight else self.settings.batches
        return max(0, min(limit - resync_in_flight, room_batches))
