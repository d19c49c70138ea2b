# SPDX-License-Identifier: GPL-2.0-only
"""A scanner: compares dirty regions of both sides, and sends what differs.

A thin loop around `common.scan.comparer`. It keeps no state that matters: the reader hands
out work and gives each batch its place in the order (see `common.source.scheduler`); several
scanners share one scan, since each asks for more when it is done. Threads read and
hash, this one talks.

If a connection breaks, numbered batches may be lost on the way: the scanner then
drops its connection to the reader too, which has the pair greet anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, assert_never

import click
import zmq

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import WireError
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.scan import comparer
from bdr.common.scan.comparer import Comparer
from bdr.common.scan.digests import block_digests, digest
from bdr.common.source import scheduler
from bdr.common.storage.source_device import SourceDevice
from bdr.common.wire import control as wire
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory

if TYPE_CHECKING:
    from bdr.services.runtime.loop import Socket

TICK_MS = 250
THREADS = 2
BUFFER_BYTES = 16 << 20

_Task = comparer.Read | comparer.HashBlocks
_Result = comparer.PiecesRead | comparer.BlocksHashed


class Scanner:
    """One process; several may serve one volume.

    Args:
        capture: opened as observer.
        source: the device below it.
        address: of the target.
        port: of the target's data socket.
        run_directory: where the reader's sockets are.
    """

    def __init__(
        self,
        *,
        capture: Capture,
        source: SourceDevice,
        address: str,
        port: int,
        run_directory: RunDirectory,
    ) -> None:
        self._log = log.logger()
        self._stream = capture.info.stream
        self._source = source
        self._addresses = (
            options.tcp(address, port),
            options.tcp(address, port + 1),
            run_directory.endpoint("tickets"),
        )
        self._comparer = Comparer(stream=self._stream)
        self._buffers = [
            memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(self._comparer.settings.buffers)
        ]
        self._outgoing: deque[list[bytes]] = deque()
        self._up: set[str] = set()
        self._repaired_bytes = 0
        self._sent_bytes = 0
        self._work: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Result | Exception] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._run_thread, name=f"reading-{at}", daemon=True)
            for at in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()
        self.loop = Loop()
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT),
            stage="scanner",
            values=self._values,
        )
        self.loop.register(self._wakeup, self._on_results)
        self._connect()

    def run(self) -> None:
        """Runs until SIGTERM."""
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._pump)
        finally:
            self._reporter.close()
            for _ in self._threads:
                self._work.put(None)
            for thread in self._threads:
                thread.join()
            self.loop.close()

    def _values(self) -> reports.Values:
        return {
            "is_connected": len(self._up) == len(self._addresses),
            "tickets": self._comparer.open_tickets,
            "compared_bytes": self._comparer.compared_bytes,
            "repaired_bytes": self._repaired_bytes,
            "sent_bytes": self._sent_bytes,
            "abandoned_tickets": self._comparer.abandoned,
            **self.loop.links,
        }

    # Connections.

    def _connect(self) -> None:
        context = self.loop.context
        data, control, office = self._addresses
        self._data = sockets.data_sender(context)
        self._control = sockets.control_client(context)
        self._office = sockets.ticket_client(context)
        for name, each, address in (
            ("data", self._data, data),
            ("control", self._control, control),
            ("tickets", self._office, office),
        ):
            self._watch(name, each)
            each.connect(address)
        self.loop.register(self._control, self._on_control)
        self.loop.register(self._office, self._on_office)

    def _watch(self, name: str, each: Socket) -> None:
        def up() -> None:
            self._up.add(name)
            if len(self._up) == len(self._addresses):
                self._tell(comparer.LinksUp())

        def down() -> None:
            self._log.warning("connection-lost", what=name)
            self._reconnect()

        self.loop.watch_link(each, up=up, down=down, is_counted=name != "tickets")

    def _reconnect(self) -> None:
        """Whatever is under way may be lost: the reader must know."""
        for each in (self._data, self._control, self._office):
            self.loop.drop(each)
        self._up.clear()
        self._outgoing.clear()
        self._tell(comparer.LinkLost())
        self._connect()

    # The loop.

    def _on_tick(self, now_s: float) -> None:
        self._tell(comparer.Tick(now_s))
        self._reporter.tick(now_s, len(self._up))

    def _pump(self) -> None:
        """Sends what is ready, and asks for work."""
        while self._outgoing and sockets.is_writable(self._data):
            frames = self._outgoing.popleft()
            self._data.send_multipart(frames, copy=False)
            self._sent_bytes += sum(map(len, frames))
        if self._outgoing:
            self.loop.register(self._data, _nothing, zmq.POLLOUT)
        else:
            self.loop.unregister(self._data)
        self._tell(comparer.RoomSeen(len(self._outgoing)))

    def _on_office(self) -> None:
        office = self._office
        while office is self._office and sockets.is_readable(office):
            self._tell(comparer.Answered(scheduler.decode_answer(office.recv())))

    def _on_control(self) -> None:
        control = self._control
        while control is self._control and sockets.is_readable(control):
            try:
                message = wire.decode_message(control.recv_multipart()[-1])
            except WireError as error:
                self._log.warning("bad-message", reason=str(error))
                continue
            if isinstance(message, wire.Digests):
                self._tell(comparer.DigestsArrived(message))

    def _on_results(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        with contextlib.suppress(queue.Empty):
            while True:
                result = self._results.get_nowait()
                if isinstance(result, Exception):
                    raise result
                self._tell(result)

    def _tell(self, event: comparer.Event) -> None:
        for action in self._comparer.handle(event):
            self._perform(action)

    def _perform(self, action: comparer.Action) -> None:
        match action:
            case comparer.TellOffice(request):
                # Not connected: it is told of the lost connection, and all begins anew.
                with contextlib.suppress(zmq.Again):
                    self._office.send(scheduler.encode(request), zmq.NOBLOCK)
            case comparer.AskTarget(message):
                with contextlib.suppress(zmq.Again):
                    self._control.send(wire.encode_message(message), zmq.NOBLOCK)
            case comparer.Read() | comparer.HashBlocks():
                self._work.put(action)
            case comparer.SendBatch():
                self._build(action)
            case comparer.Note("unreadable", facts):
                self._log.error("unreadable", device=self._source.path, **facts)
            case comparer.Note(topic, facts):
                self._log.warning(topic, **facts)
            case comparer.Stop(error):
                raise error
            case _:
                assert_never(action)

    def _build(self, batch: comparer.SendBatch) -> None:
        header, headers, payload = batch.build(self._buffers[batch.buffer], self._stream)
        top = wire.encode_batch(header, headers, payload)
        self._outgoing.append([top, headers, payload])
        self._repaired_bytes += len(payload)

    # Threads.

    def _run_thread(self) -> None:
        while (task := self._work.get()) is not None:
            result: _Result | Exception
            try:
                result = self._read(task) if isinstance(task, comparer.Read) else self._hash(task)
            except Exception as error:
                result = error
            self._results.put(result)
            os.eventfd_write(self._wakeup, 1)

    def _hash(self, task: comparer.HashBlocks) -> comparer.BlocksHashed:
        buffer = self._buffers[task.buffer]
        digests = [
            block_digests(buffer[at : at + sectors * SECTOR_BYTES])
            for at, (_, sectors) in zip(task.offsets, task.pieces, strict=True)
        ]
        return comparer.BlocksHashed(task.job, digests)

    def _read(self, task: comparer.Read) -> comparer.PiecesRead:
        digests = []
        bad: dict[int, list[int]] = {}
        at = 0
        for index, (sector, sectors) in enumerate(task.pieces):
            data = self._buffers[task.buffer][at : at + sectors * SECTOR_BYTES]
            at += len(data)
            try:
                self._source.read_into(data, sector * SECTOR_BYTES)
            except OSError:
                bad[index] = self._read_blocks(data, sector * SECTOR_BYTES)
            digests.append(digest(data))
        return comparer.PiecesRead(task.job, b"".join(digests), bad)

    def _read_blocks(self, data: memoryview, offset: int) -> list[int]:
        """Reads what can be read of a piece; returns the blocks that cannot."""
        bad = []
        for at in range(0, len(data), PAYLOAD_BYTES):
            try:
                self._source.read_into(data[at : at + PAYLOAD_BYTES], offset + at)
            except OSError:
                bad.append(at // PAYLOAD_BYTES)
        return bad


def _nothing() -> None:
    """The round's `after` does the work."""


@click.command()
@options.source_stage("scanner")
@click.option(
    "--underdev",
    type=click.Path(),
    help="The device below the capture; what the capture says without.",
)
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
    underdev: str | None,
) -> None:
    """Compares VOLUME with its replica where it must, and repairs the replica."""

    def build() -> Scanner:
        capture = open_capture(chardev, Role.OBSERVER)
        return Scanner(
            capture=capture,
            source=SourceDevice(underdev, chardev=chardev, info=capture.info),
            address=address,
            port=port,
            run_directory=RunDirectory(run_dir),
        )

    options.run(build)


if __name__ == "__main__":
    main()
