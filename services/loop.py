# SPDX-License-Identifier: GPL-2.0-only
"""The event loop of every process: sockets, descriptors, signals, a tick. One thread."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

LINK_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED

Socket = zmq.Socket[bytes]
Source = Socket | int
Handler = Callable[[], None]


class Loop:
    """Calls a handler whenever its socket or descriptor is readable.

    SIGTERM and SIGINT end `run` in an orderly way, also out of a long poll.
    """

    def __init__(self) -> None:
        self.context: zmq.Context[Socket] = zmq.Context()
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Handler] = {}
        self._watched: dict[Socket, Socket] = {}
        self._is_stopping = False
        self._signals, signal_writer = socket.socketpair()
        self._signals.setblocking(False)
        signal_writer.setblocking(False)
        self._signal_writer = signal_writer
        signal.set_wakeup_fd(signal_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self.register(self._signals.fileno(), self._drain_signals)

    def register(self, source: Source, handler: Handler, events: int = zmq.POLLIN) -> None:
        """Has `handler` called when `source` is ready; again to change the events."""
        self._poller.register(source, events)
        self._handlers[source] = handler

    def unregister(self, source: Source) -> None:
        """Undoes `register`; a source that is not registered is no error."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def watch_link(self, watched: Socket, *, up: Handler, down: Handler) -> Socket:
        """Calls `up` and `down` as connections of `watched` come and go.

        A connection is up when its handshake succeeded, not when TCP connected.
        Returns the monitor; this loop drains it, since an unread one stalls the data.
        """
        monitor: Socket = watched.get_monitor_socket(LINK_EVENTS)

        def drain() -> None:
            while watched in self._watched and monitor.poll(0):
                event = int(recv_monitor_message(monitor)["event"])
                (up if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else down)()

        self._watched[watched] = monitor
        self.register(monitor, drain)
        return monitor

    def drop(self, closing: Socket) -> None:
        """Unregisters and closes a socket and its monitor; what is unsent is lost."""
        self.unregister(closing)
        monitor = self._watched.pop(closing, None)
        if monitor is not None:
            # In this order, else libzmq may touch a socket that is gone.
            closing.disable_monitor()
            self.unregister(monitor)
            monitor.close(linger=0)
        closing.close(linger=0)

    def stop(self) -> None:
        """Ends `run` after the current round."""
        self._is_stopping = True

    def run(self, *, tick: Callable[[float], None], tick_ms: int, after: Handler) -> None:
        """Runs until `stop`.

        Args:
            tick: called with the monotonic time in seconds, before handlers, and at
                least every `tick_ms`.
            after: called at the end of each round.
        """
        while not self._is_stopping:
            ready = self._poller.poll(tick_ms)
            tick(time.monotonic())
            for source, _ in ready:
                handler = self._handlers.get(source)
                if handler is not None:
                    handler()
            after()

    def close(self) -> None:
        """Closes every socket of the context without waiting for what is unsent."""
        signal.set_wakeup_fd(-1)
        self._signals.close()
        self._signal_writer.close()
        self.context.destroy(linger=0)

    def _drain_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(4096)
