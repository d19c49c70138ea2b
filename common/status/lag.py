# SPDX-License-Identifier: GPL-2.0-only
"""Measures the replica's lag from samples of the ring. No I/O, no clock here.

A sample has the end of the source's writes (`head`) and of those durable on the target (`tail`).
The age of the oldest write that is not durable is the time since the first sample that included it:
samples with new writes are kept until these are durable.

The age of writes that were outstanding at the first sample is unknown: the result is then a lower
bound, and marked as such.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SAMPLES_MAX = 4096
WINDOW_S = 10.0
"""Period of the rates."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The replica's lag at one instant."""

    slots: int
    seconds: float
    is_minimum: bool
    """`seconds` is a lower bound."""
    written_per_s: float
    """Slots."""
    acked_per_s: float
    """Slots."""
    catch_up_s: float | None
    """Time to catch up at the present rates; None if it never would."""


class LagMeter:
    """Takes a few samples a second; O(1) each."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque()
        """(end, time): slots below `end`, and not below an earlier one, were first sampled then."""
        self._history: deque[tuple[float, int, int]] = deque()
        self._unknown_below = -1
        self._tail = 0
        self._head = -1
        self._now_at = 0.0

    def sample(self, *, now_at: float, head: int, tail: int) -> None:
        """Slots below `head` are written, those below `tail` durable."""
        if head < self._head or tail < self._tail:
            # Another capture with the same path.
            self._samples.clear()
            self._history.clear()
            self._head = -1
        if self._head < 0:
            self._unknown_below = head if tail < head else -1
        if head > self._head and tail < head:
            self._samples.append((head, now_at))
        while self._samples and self._samples[0][0] <= tail:
            self._samples.popleft()
        if len(self._samples) > SAMPLES_MAX:
            self._thin_out()
        self._head, self._tail, self._now_at = head, tail, now_at
        self._history.append((now_at, head, tail))
        while now_at - self._history[0][0] > WINDOW_S and len(self._history) > 2:
            self._history.popleft()

    @property
    def lag(self) -> Lag:
        """As of the last sample."""
        began_at, head, tail = self._history[0] if self._history else (self._now_at, 0, 0)
        elapsed_s = self._now_at - began_at
        written = (self._head - head) / elapsed_s if elapsed_s > 0 else 0.0
        acked = (self._tail - tail) / elapsed_s if elapsed_s > 0 else 0.0
        slots = max(0, self._head - self._tail)
        catch_up_s: float | None = 0.0
        if slots:
            catch_up_s = slots / (acked - written) if acked > written else None
        return Lag(
            slots=slots,
            seconds=self._now_at - self._samples[0][1] if self._samples else 0.0,
            is_minimum=slots > 0 and self._tail < self._unknown_below,
            written_per_s=written,
            acked_per_s=acked,
            catch_up_s=catch_up_s,
        )

    def _thin_out(self) -> None:
        """Merges adjacent samples; a write may then count as older than it is, never as younger."""
        looks = list(self._samples)
        merged = [
            (later[0], earlier[1]) for earlier, later in zip(looks[::2], looks[1::2], strict=False)
        ]
        if len(looks) % 2:
            merged.append(looks[-1])
        self._samples = deque(merged)
