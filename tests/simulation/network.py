# SPDX-License-Identifier: GPL-2.0-only
"""One direction of one connection: in order, with a delay, until it is cut.

What was in flight at a cut is lost from some message on; what is not lost may
still arrive long after the connection's end was noticed, as it does when a
kernel retransmits. Between connections there is no order. A queue that is full
drops a message here and there. On a slow line a message takes long, and what TCP
has of the connection shows that its bytes move.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Generic, TypeVar

from bdr.common.wire.connection import TcpInfo
from tests.simulation.clock import Clock
from tests.simulation.line import Line

M = TypeVar("M", bytes, list[bytes])


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to messages. Rates are shares of the messages."""

    delay_s: tuple[float, float]
    duplicates: float = 0.0
    drops: float = 0.0
    line: Line | None = None
    """Of limited rate; None: none of the messages takes time."""


class Channel(Generic[M]):
    """Delivers messages to `deliver`, one after the other.

    Args:
        piece: called when a part of a message has arrived, too.
    """

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        deliver: Callable[[M], None],
        weather: Weather,
        *,
        piece: Callable[[], None] | None = None,
    ) -> None:
        self.is_open = True
        self.is_held = False
        self.sent_bytes = self.acked_bytes = 0
        self.acked_at = 0.0
        """When the other side last acknowledged something."""
        self._piece = piece
        self._clock = clock
        self._rng = rng
        self._deliver: Callable[[M], None] = deliver
        self._weather = weather
        self._waiting: deque[tuple[float, M]] = deque()
        self._is_planned = False

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, message: M) -> None:
        """Takes a message; nothing says whether it arrives."""
        weather, rng = self._weather, self._rng
        if not self.is_open or (weather.drops and rng.random() < weather.drops):
            return
        delay_s = rng.uniform(*weather.delay_s)
        if weather.duplicates and rng.random() < weather.duplicates:
            self._clock.after(rng.expovariate(2.0), lambda: self._deliver(message))

        def sent() -> None:
            self._waiting.append((self._clock.now_at + delay_s, message))
            self._plan()

        if weather.line is None:
            sent()
        else:
            size = len(message) if isinstance(message, bytes) else sum(map(len, message))
            self.sent_bytes += size
            weather.line.put(self, size, sent)

    def piece_arrives(self, size: int) -> None:
        """A part of what was sent has arrived, and is acknowledged."""
        self.acked_bytes += size
        self.acked_at = self._clock.now_at
        if self.is_open and self._piece is not None:
            self._piece()

    def info(self) -> TcpInfo:
        """What TCP has of it."""
        return TcpInfo(
            is_waiting=self.acked_bytes < self.sent_bytes,
            heard_s=self._clock.now_at - self.acked_at,
            acked_bytes=self.acked_bytes,
            received_bytes=0,
        )

    def hold(self) -> None:
        """A partition: nothing arrives until `let_go`."""
        self.is_held = True

    def let_go(self) -> None:
        """The partition is over."""
        self.is_held = False
        if self._weather.line is not None:
            self._weather.line.serve()
        self._plan()

    def cut(self) -> None:
        """The connection ends: a tail of what is in flight is lost."""
        self.is_open = False
        if self._weather.line is not None:
            self._weather.line.drop(self)
        kept = self._rng.randint(0, len(self._waiting))
        while len(self._waiting) > kept:
            self._waiting.pop()

    def _plan(self) -> None:
        if self._waiting and not self._is_planned and not self.is_held:
            self._is_planned = True
            self._clock.after(max(0.0, self._waiting[0][0] - self._clock.now_at), self._arrive)

    def _arrive(self) -> None:
        self._is_planned = False
        if self.is_held or not self._waiting:
            return
        _, message = self._waiting.popleft()
        self._plan()
        self._deliver(message)


class Duplex:
    """A connection: `up` from who connected, `down` to it."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        weather: Weather,
        *,
        up: Callable[[bytes], None],
        down: Callable[[bytes], None],
    ) -> None:
        self.up: Channel[bytes] = Channel(clock, rng, up, weather)
        # Answers are small.
        self.down: Channel[bytes] = Channel(clock, rng, down, replace(weather, line=None))

    @property
    def is_connected(self) -> bool:
        """Whether it was not cut."""
        return self.down.is_open

    def hold(self) -> None:
        """A partition, both ways."""
        self.up.hold()
        self.down.hold()

    def let_go(self) -> None:
        """The partition is over."""
        self.up.let_go()
        self.down.let_go()

    def cut(self) -> None:
        """The connection ends."""
        self.up.cut()
        self.down.cut()
