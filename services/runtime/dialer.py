# SPDX-License-Identifier: GPL-2.0-only
"""Connects a socket to a host, which may have several addresses, and connects it again.

libzmq alone would take the first address of a name, an IPv6 one if there is any, and never another;
and after a handshake that fails it does not connect again. So names are resolved here, in a thread,
and libzmq gets numbers:

- Each address is tried until it refuses, or `ATTEMPT_S` have passed; then the next. Before the
  first is tried again the name is resolved again.
- After a handshake that failed, or a connection that was lost at once, there is a pause, which
  doubles. Between attempts at one address libzmq has its own.
"""

from __future__ import annotations

import contextlib
import socket as system
import threading
import time

import zmq

from bdr.services.runtime import log
from bdr.services.runtime.loop import Handler, Loop, Socket

ATTEMPT_S = 5.0
"""For one of several addresses; doubles with each round, up to `ATTEMPT_MAX_S`."""
ATTEMPT_MAX_S = 40.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 10.0
BRIEF_S = 2.0
"""A connection that is lost sooner has failed."""
FAILURES_MIN = 2
"""One handshake fails if the other side ends in the middle of it."""
SAY_EVERY_S = 60.0
SAY_AFTER_S = 5.0
"""The other side may be about to start."""
_DOUBLINGS_MAX = 16


class Dialer:
    """See the module's docstring.

    Args:
        endpoint: ZeroMQ address, with a name, an IPv4 or an IPv6 address.
    """

    def __init__(self, loop: Loop, endpoint: str) -> None:
        self.trouble: str | None = None
        """For users: what was found instead of the other side; None while there is no more to say
        than that there is no connection."""
        host, _, self._port = endpoint.removeprefix("tcp://").rpartition(":")
        self._host = host.removeprefix("[").removesuffix("]")
        self._loop = loop
        self._log = log.logger()
        self._socket: Socket | None = None
        self._on_up: Handler
        self._on_down: Handler
        self._addresses: list[str] = []
        """Those that are still to be tried in this round."""
        self._is_name = not _is_number(self._host)
        self._resolving: list[list[str] | OSError] | None = None
        """Gets the answer; None: nothing was asked."""
        self._connected_to: str | None = None
        """Endpoint that libzmq connects to."""
        self._is_up = False
        self._up_at = 0.0
        self._attempt_at = 0.0
        self._down_since_at = time.monotonic()
        self._rounds = 0
        self._failures = 0
        self._next_at: float | None = None
        """When the pause is over; None: there is none."""
        self._said_at: float | None = None
        loop.in_every_round(self._tick)

    def dial(self, socket: Socket, *, up: Handler, down: Handler) -> None:
        """Connects this socket, instead of the last; `down` is called for what was up only."""
        self._socket, self._on_up, self._on_down = socket, up, down
        self._connected_to, self._is_up = None, False
        self._loop.watch_link(
            socket, up=self._link_up, down=self._link_down, retried=self._link_retried
        )
        if self._failures:
            self._pause()
        else:
            self._connect_next()

    # Events.

    def _link_up(self) -> None:
        self._is_up, self._up_at = True, time.monotonic()
        self.trouble, self._rounds, self._next_at = None, 0, None
        self._on_up()

    def _link_down(self) -> None:
        now_at = time.monotonic()
        was_up, self._is_up = self._is_up, False
        if was_up:
            is_brief = now_at - self._up_at < BRIEF_S
            self._failures = self._failures + 1 if is_brief else 0
            self._attempt_at = self._down_since_at = now_at
            self._on_down()
        elif self._next_at is None:
            # Another kind of socket, or another program.
            self._failures += 1
            if self._failures >= FAILURES_MIN:
                self.trouble = (
                    f"{self._connected_to} answers, but not as BDR's port {self._port} should: are "
                    "the two ports swapped, or is it another program?"
                )
                self._say(self.trouble)
            self._hang_up()
            self._pause()

    def _link_retried(self) -> None:
        """An attempt failed; libzmq would try the same address again."""
        if time.monotonic() - self._down_since_at >= SAY_AFTER_S:
            self._say(f"no connection to {self._connected_to}")
        if self._is_name and not self._is_up and self._next_at is None:
            self._connect_next()

    def _tick(self, now_at: float) -> None:
        if self._socket is None or self._is_up:
            return
        if self._resolving:
            self._resolved(self._resolving.pop())
        elif self._next_at is not None:
            if now_at >= self._next_at:
                self._next_at = None
                self._connect_next()
        elif self._connected_to is not None:
            # A number too: after some errors libzmq does not connect again.
            doublings = min(self._rounds, _DOUBLINGS_MAX) if self._is_name else _DOUBLINGS_MAX
            if now_at - self._attempt_at > min(ATTEMPT_S * 2.0**doublings, ATTEMPT_MAX_S):
                self._connect_next()

    # Steps.

    def _pause(self) -> None:
        pause_s = min(PAUSE_MIN_S * 2.0 ** min(self._failures, _DOUBLINGS_MAX), PAUSE_MAX_S)
        self._next_at = time.monotonic() + pause_s

    def _connect_next(self) -> None:
        self._hang_up()
        if not self._is_name:
            self._connect(self._host)
        elif self._addresses:
            self._connect(self._addresses.pop(0))
        elif self._resolving is None:
            self._rounds += 1
            self._resolving = []
            threading.Thread(target=self._resolve, args=(self._resolving,), daemon=True).start()

    def _connect(self, address: str) -> None:
        assert self._socket is not None
        host = f"[{address}]" if ":" in address else address
        self._connected_to = f"tcp://{host}:{self._port}"
        self._attempt_at = time.monotonic()
        self._socket.connect(self._connected_to)

    def _hang_up(self) -> None:
        if self._connected_to is not None and self._socket is not None:
            # It is gone already after some errors.
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(self._connected_to)
        self._connected_to = None

    def _resolve(self, answer: list[list[str] | OSError]) -> None:
        """In a thread of its own: a name server may take long."""
        try:
            found = system.getaddrinfo(self._host, self._port, type=system.SOCK_STREAM)
            answer.append(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except OSError as error:
            answer.append(error)
        self._loop.wake()

    def _resolved(self, answer: list[str] | OSError) -> None:
        self._resolving = None
        if isinstance(answer, OSError):
            self._failures += 1
            self.trouble = f"{self._host}: {answer.strerror}"
            self._say(self.trouble)
            self._pause()
        else:
            self._addresses = answer
            self._connect_next()

    def _say(self, reason: str) -> None:
        now_at = time.monotonic()
        if self._said_at is None or now_at - self._said_at >= SAY_EVERY_S:
            self._said_at = now_at
            self._log.warning("not-connected", reason=reason)


def _is_number(host: str) -> bool:
    """Whether it is an address, not a name."""
    try:
        system.getaddrinfo(host, None, flags=system.AI_NUMERICHOST)
    except OSError:
        return False
    return True
