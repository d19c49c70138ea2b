# SPDX-License-Identifier: GPL-2.0-only
"""A TCP proxy that behaves as a bad link: it delays, stalls, and is cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Self

_READ_BYTES = 1 << 16
_BURST_S = 0.25


class BadLink:
    """Forwards each of `ports` on 127.0.0.2 to the same port on 127.0.0.1.

    Attributes:
        delay_s: added to every piece of up to 64 KiB.
        rate: bytes a second, of all connections and both ways together; 0 for no limit.
    """

    address = "127.0.0.2"

    def __init__(self, *ports: int) -> None:
        self.delay_s = 0.0
        self.rate = 0.0
        self._free_at_s = 0.0
        self._ports = ports
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        assert ready.wait(10)

    def cut(self) -> None:
        """Closes every connection, and every new one at once."""
        self._is_cut = True
        self._call(self._close_all)

    def mend(self) -> None:
        """Lets new connections through again."""
        self._is_cut = False

    def stall(self) -> None:
        """Connections stay up, but nothing moves."""
        self._call(self._flows.clear)

    def flow(self) -> None:
        """Ends a stall."""
        self._call(self._flows.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _call(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def call() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._end = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for port in self._ports:
                server = await asyncio.start_server(self._forwarder(port), self.address, port)
                await stack.enter_async_context(server)
            ready.set()
            await self._end.wait()
            self._close_all()

    def _forwarder(
        self, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            try:
                if self._is_cut:
                    return
                there, back = await asyncio.open_connection("127.0.0.1", port)
                self._writers.add(back)
                try:
                    await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
                finally:
                    self._writers.discard(back)
                    back.transport.abort()
            except OSError:
                pass  # the other side is down, as it may be
            finally:
                self._writers.discard(writer)
                writer.transport.abort()

        return forward

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._flows.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.rate:
                now_at = self._loop.time()
                # What was not used is kept for a moment: this thread may be late.
                free_at_s = max(now_at - _BURST_S, self._free_at_s)
                self._free_at_s = free_at_s + len(data) / self.rate
                await asyncio.sleep(max(0.0, self._free_at_s - now_at))
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
