# SPDX-License-Identifier: GPL-2.0-only
"""A comparer with its connections and threads, shared by scanner and `bdr verify`.

Poll, handle, perform around `common.scan.comparer`. Threads read and hash; the loop's
thread sends and receives.

If a connection is lost, numbered batches may be lost: all connections are closed then, including
that to the reader, which starts a new session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import zmq

from bdr.common.errors import WireError
from bdr.common.scan import events
from bdr.common.scan.comparer import Comparer
from bdr.common.storage.source_device import SourceDevice
from bdr.common.wire.control import Digests, decode_message, encode_message
from bdr.common.wire.scan import decode_answer, encode_request
from bdr.services.runtime import log, sockets
from bdr.services.runtime.dialer import Dialer
from bdr.services.runtime.loop import Loop, Socket
from bdr.services.source.chunk_reader import ChunkReader

TICK_MS = 250


class Comparison:
    """One comparer in one process.

    Args:
        comparer: the state machine.
        source: the underlying device of the capture.
        control: ZeroMQ address of the target's control socket.
        reader: ZeroMQ address of the reader's socket for requests.
        more: other sockets, by name: factory and address.
        perform: performs the remaining actions.
    """

    def __init__(
        self,
        *,
        comparer: Comparer,
        source: SourceDevice,
        control: str,
        reader: str,
        more: Mapping[str, tuple[Callable[[zmq.Context[Socket]], Socket], str]],
        perform: Callable[[events.Action], None],
    ) -> None:
        self.comparer = comparer
        self.sockets: dict[str, Socket] = {}
        """By name: `control`, `reader`, and those of `more`."""
        self.up: set[str] = set()
        """Names of connected sockets."""
        self.loop = Loop()
        self._log = log.logger()
        self._perform_more = perform
        self._kinds = {
            **more,
            "control": (sockets.control_client, control),
            "reader": (sockets.request_client, reader),
        }
        self._dialers = {
            name: Dialer(self.loop, address)
            for name, (_, address) in self._kinds.items()
            if name != "reader"
        }
        self.chunks = ChunkReader(source, buffers=comparer.settings.buffers)
        self.loop.register(self.chunks.fileno(), self._on_results)
        self._connect()

    @property
    def is_connected(self) -> bool:
        """Whether all connections are up."""
        return len(self.up) == len(self._kinds)

    def close(self) -> None:
        """Ends threads and sockets."""
        self.chunks.close()
        self.loop.close()

    def handle(self, event: events.Event) -> None:
        """Passes an event to the comparer, and performs its actions."""
        for action in self.comparer.handle(event):
            match action:
                case events.SendToReader(request):
                    # Not connected: `LinkLost` follows, which drops all jobs.
                    with contextlib.suppress(zmq.Again):
                        self.sockets["reader"].send(encode_request(request), zmq.NOBLOCK)
                case events.SendToTarget(message):
                    with contextlib.suppress(zmq.Again):
                        self.sockets["control"].send(encode_message(message), zmq.NOBLOCK)
                case events.Read() | events.HashBlocks():
                    self.chunks.put(action)
                case events.Stop(error):
                    raise error
                case _:
                    self._perform_more(action)

    # Connections.

    def _connect(self) -> None:
        for name, (make, address) in self._kinds.items():
            self.sockets[name] = made = make(self.loop.context)
            self._watch(name, made, address)
        self.loop.register(self.sockets["control"], self._on_control)
        self.loop.register(self.sockets["reader"], self._on_answer)

    def _watch(self, name: str, watched: Socket, address: str) -> None:
        def up() -> None:
            self.up.add(name)
            if self.is_connected:
                self.handle(events.LinksUp())

        def down() -> None:
            self._log.warning("connection-lost", what=name)
            self._reconnect()

        if name in self._dialers:
            self._dialers[name].dial(watched, up=up, down=down)
        else:
            self.loop.watch_link(watched, up=up, down=down, is_counted=False)
            watched.connect(address)

    def _reconnect(self) -> None:
        """Closes and reopens all connections, which notifies the reader of possible losses."""
        for each in self.sockets.values():
            self.loop.drop(each)
        self.up.clear()
        self.handle(events.LinkLost())
        self._connect()

    # Poll.

    def _on_answer(self) -> None:
        reader = self.sockets["reader"]
        while reader is self.sockets["reader"] and sockets.is_readable(reader):
            self.handle(events.Answered(decode_answer(reader.recv())))

    def _on_control(self) -> None:
        control = self.sockets["control"]
        while control is self.sockets["control"] and sockets.is_readable(control):
            try:
                message = decode_message(control.recv_multipart()[-1])
            except WireError as error:
                self._log.warning("bad-message", reason=str(error))
                continue
            if isinstance(message, Digests):
                self.handle(events.DigestsArrived(message))

    def _on_results(self) -> None:
        for result in self.chunks.results():
            self.handle(result)
