# SPDX-License-Identifier: GPL-2.0-only
"""The event loop of every process: sockets, descriptors, signals, a tick. One thread."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from bdr.common.status.reports import LinkCounts
from bdr.services.runtime.connections import Connections

FAILURES = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: LinkCounts(handshakes_failed=1),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: LinkCounts(handshakes_failed=1),
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkCounts(authentications_failed=1),
}
_LINK_EVENT = struct.Struct("=HI")
"""First frame of a socket monitor's message: event and value. pyzmq's function for it imports
asyncio and TLS, 8 MiB in each process."""
_BEGUN = zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED
LINK_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | _BEGUN
    | sum(FAILURES)
)

Socket = zmq.Socket[bytes]
Source = Socket | int
Handler = Callable[[], None]


def nothing() -> None:
    """A handler where the wake-up or its count is enough: the end of the round does the work."""


class Loop:
    """Calls a handler whenever its socket or descriptor is readable."""

    def __init__(self) -> None:
        self.context: zmq.Context[Socket] = zmq.Context()
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Handler] = {}
        self._watched: dict[Socket, Socket] = {}
        self.links = LinkCounts()
        """Connection counts of the watched network sockets, since the start."""
        self.connections = Connections()
        """Those of the watched network sockets."""
        self._every_round: list[Callable[[float], None]] = [self.connections.examine]
        self._is_stopping = False
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self.register(self._wakeup.fileno(), self._drain_wakeup)

    def register(self, source: Source, handler: Handler, events: int = zmq.POLLIN) -> None:
        """Calls `handler` whenever `source` is ready; call again to change the events."""
        self._poller.register(source, events)
        self._handlers[source] = handler

    def unregister(self, source: Source) -> None:
        """Undoes `register`; ignored if the source is not registered."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def listen(
        self, source: Source, handler: Handler, events: int = zmq.POLLIN, *, is_wanted: bool
    ) -> None:
        """Registers or unregisters if necessary; meant to be called in each round."""
        if is_wanted and source not in self._handlers:
            self.register(source, handler, events)
        elif not is_wanted:
            self.unregister(source)

    def watch_link(
        self,
        watched: Socket,
        *,
        up: Handler,
        down: Handler,
        retried: Handler = nothing,
        is_counted: bool = True,
    ) -> Socket:
        """Calls `up` and `down` when connections of `watched` are established and lost.

        A connection is up when its handshake succeeded, not when TCP connected; one whose
        handshake fails is lost too. `retried` is called when an attempt has failed. Events are
        counted in `links`, and connections that are dead are ended, unless `is_counted` is false:
        within a host the kernel ends them. Returns the socket monitor; this loop drains it, since
        an unread one blocks the data socket.
        """
        monitor: Socket = watched.get_monitor_socket(LINK_EVENTS)

        def count(what: LinkCounts) -> None:
            if is_counted:
                self.links += what

        def drain() -> None:
            while watched in self._watched and monitor.poll(0):
                event, value = _LINK_EVENT.unpack(monitor.recv_multipart()[0])
                if event & _BEGUN:
                    if is_counted:
                        self.connections.opened(watched, value)
                elif event == zmq.EVENT_CONNECT_RETRIED:
                    retried()
                elif event in FAILURES:
                    # A separate event for the end of the connection follows.
                    count(FAILURES[zmq.Event(event)])
                elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    count(LinkCounts(connects=1))
                    up()
                else:
                    self.connections.closed(watched, value)
                    count(LinkCounts(disconnects=1))
                    down()

        self._watched[watched] = monitor
        self.register(monitor, drain)
        return monitor

    def drop(self, closing: Socket) -> None:
        """Unregisters and closes a socket and its monitor; unsent messages are lost."""
        self.unregister(closing)
        monitor = self._watched.pop(closing, None)
        if monitor is not None:
            # In this order, or libzmq may access a closed socket.
            closing.disable_monitor()
            self.unregister(monitor)
            monitor.close(linger=0)
        self.connections.forget(closing)
        closing.close(linger=0)

    def end_on_signals(self) -> None:
        """Makes SIGTERM and SIGINT end `run`, also during a long poll; main thread only."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """Ends `run` after the current round; thread-safe."""
        self._is_stopping = True
        self.wake()

    def in_every_round(self, call: Callable[[float], None]) -> None:
        """Calls it with the monotonic time in each round, before handlers."""
        self._every_round.append(call)

    def wake(self) -> None:
        """Begins a round soon; thread-safe."""
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"!")

    def run(self, *, tick: Callable[[float], None], tick_ms: int, after: Handler) -> None:
        """Runs until `stop`.

        Args:
            tick: called with the monotonic time in seconds, before handlers, and at
                least every `tick_ms`.
            after: called at the end of each round.
        """
        while not self._is_stopping:
            ready = self._poller.poll(tick_ms)
            now_at = time.monotonic()
            for call in self._every_round:
                call(now_at)
            tick(now_at)
            for source, _ in ready:
                handler = self._handlers.get(source)
                if handler is not None:
                    handler()
            after()

    def close(self) -> None:
        """Closes every socket of the context without waiting for unsent messages."""
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._waker.close()
        self.context.destroy(linger=0)

    def _drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
