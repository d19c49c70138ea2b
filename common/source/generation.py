# SPDX-License-Identifier: GPL-2.0-only
"""The source's generation identifiers: when a new one is made, and which may be sent.

An identifier is random. A new one is made while batches are dispatched, at most once a
second, and is durable before HELLO or PING contains it. The source keeps the last
`GENERATIONS_MAX`, newest first, and sends them all in HELLO; a target remembers the newest
that it has received. If that is not in a HELLO, the source has another history than the one
that the target followed: it was reverted, restored or cloned.

There are enough of them: a target has the newest of each HELLO durably before its WELCOME,
and that of a PING with the next batch that is durable; at most one is made for a batch,
and fewer batches are in flight.
"""

from __future__ import annotations

import math
from collections import deque

from bdr.common.wire.codec import GENERATIONS_MAX

INTERVAL_S = 1.0


class Generation:
    """See the module's text.

    Args:
        known: that are durable, newest first.
    """

    def __init__(self, known: tuple[bytes, ...]) -> None:
        self._known = deque(known, maxlen=GENERATIONS_MAX)
        self._sent_at = math.inf
        """When the first batch was dispatched that the newest does not cover."""
        self._made_at = -math.inf
        self._is_saving = False

    @property
    def newest(self) -> bytes:
        """May be sent."""
        return self._known[0]

    @property
    def known(self) -> tuple[bytes, ...]:
        """All that are kept, newest first."""
        return tuple(self._known)

    def dispatched(self, now_at: float) -> None:
        """A batch went."""
        self._sent_at = min(self._sent_at, now_at)

    def is_due(self, now_at: float) -> bool:
        """Whether a new one is to be made durable now; asked once for each that is made."""
        if self._is_saving or now_at < self._sent_at or now_at - self._made_at < INTERVAL_S:
            return False
        self._sent_at = math.inf
        self._made_at = now_at
        self._is_saving = True
        return True

    def saved(self, generation: bytes) -> None:
        """A new one is durable."""
        self._is_saving = False
        self._known.appendleft(generation)
