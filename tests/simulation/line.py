# SPDX-License-Identifier: GPL-2.0-only
"""The line from the source's host to the target's: so many bytes a second, shared in turns."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from tests.simulation.clock import Clock, Thing

PIECE_BYTES = 4096
"""Of one connection in one turn."""


class Flow(Protocol):
    """One direction of a connection that uses the line."""

    is_held: bool

    def piece_arrives(self, size: int) -> None:
        """So many bytes have left the line."""
        ...


class Line:
    """Serves the connections that have something to send, one piece each in turns.

    Args:
        rate: bytes a second.
    """

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._rate = rate
        self._queues: dict[Flow, deque[tuple[int, Thing]]] = {}
        self._is_busy = False

    def put(self, flow: Flow, size: int, sent: Thing) -> None:
        """Queues a message; `sent` is called when the last byte has left the line."""
        self._queues.setdefault(flow, deque()).append((size, sent))
        self.serve()

    def drop(self, flow: Flow) -> None:
        """The connection is over."""
        self._queues.pop(flow, None)

    def serve(self) -> None:
        """Sends the next piece, unless one is being sent."""
        flow = next((flow for flow in self._queues if not flow.is_held), None)
        if self._is_busy or flow is None:
            return
        queue = self._queues.pop(flow)  # it comes last from now on
        size, done = 0, []
        while queue and size < PIECE_BYTES:
            left, sent = queue.popleft()
            taken = min(left, PIECE_BYTES - size)
            size += taken
            if taken < left:
                queue.appendleft((left - taken, sent))
            else:
                done.append(sent)
        if queue:
            self._queues[flow] = queue
        self._is_busy = True

        def arrive() -> None:
            self._is_busy = False
            flow.piece_arrives(size)
            for sent in done:
                sent()
            self.serve()

        self._clock.after(size / self._rate, arrive)
