# SPDX-License-Identifier: GPL-2.0-only
"""The target's clock, as the source knows it from the stamps of its answers.

A stamp was made before it arrived: stamp minus arrival is a lower bound of the difference of both
clocks, best where the way was shortest. The best of the last seconds is used, so that clocks
that drift, or a target's host that was suspended, are followed.
"""

from __future__ import annotations

from bdr.common.wire.statement import STAMP_ORIGIN_NS

KEPT_NS = 5_000_000_000
"""A bound counts for so long, and as long again."""


class TargetClock:
    """See the module's docstring; `clock_ns` is the capture's."""

    def __init__(self) -> None:
        self._latest: int | None = None
        self._older: int | None = None
        self._since_ns = 0
        """When `_latest` began."""

    def forget(self) -> None:
        """One of the clocks has jumped, or the target's is another."""
        self._latest = self._older = None

    def heard(self, stamp_ns: int, clock_ns: int) -> None:
        """An answer with this stamp arrived; 0: it bears none."""
        if not stamp_ns:
            return
        if self._latest is None or clock_ns >= self._since_ns + KEPT_NS:
            self._older, self._latest, self._since_ns = self._latest, None, clock_ns
        bound_ns = stamp_ns - clock_ns
        self._latest = bound_ns if self._latest is None else max(self._latest, bound_ns)

    def stamp_ns(self, clock_ns: int) -> int:
        """What the target's clock showed then, at most; 0: not known."""
        bounds = [each for each in (self._latest, self._older) if each is not None]
        stamp_ns = clock_ns + max(bounds, default=-clock_ns)
        return stamp_ns if 0 < stamp_ns < 2 * STAMP_ORIGIN_NS else 0
