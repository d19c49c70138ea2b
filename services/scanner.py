# SPDX-License-Identifier: GPL-2.0-only
"""A scanner: compares dirty regions of both sides, and sends what differs.

It keeps no state that matters. The reader hands out work and gives each batch its
place in the order (see `common.tickets`); several scanners share one scan, since each
asks for more when it is done. Threads read and hash, this one talks.

If a connection breaks, numbered batches may be lost on the way: the scanner then
drops its connection to the reader too, which has the pair greet anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import click
import numpy as np
import zmq

from common import scan, tickets, wire
from common.capture import Capture, Role, open_capture
from common.errors import WireError
from common.ring import PAYLOAD_BYTES, SECTOR_BYTES
from common.scan import BLOCK_SECTORS, Flags, Piece, Repair
from common.sourcedev import SourceDevice
from services import log, metrics, options, sockets
from services.loop import Loop
from services.metrics import Reporter
from services.sockets import RunDirectory

if TYPE_CHECKING:
    from services.loop import Socket

TICK_MS = 250
JOBS_MAX = 3
"""Tickets at a time: one is read, one is compared, one is sent."""
THREADS = 2
BUFFER_BYTES = 16 << 20
ASK_AGAIN_S = 2.0
JOB_S = 25.0
"""A ticket takes no longer, or is given back."""
REST_S = 0.25
"""After a ticket that could not be done."""
OUTGOING_MAX = 32
"""With so many batches to send, no more work is asked for."""


class _Stage(Enum):
    ASKING = auto()
    COMPARING = auto()
    BLOCKS = auto()
    COMMITTING = auto()
    OVER = auto()
    """Dropped; a thread may still hold its buffer."""


@dataclass(slots=True, eq=False)
class _Job:
    ask: int
    asked_s: float
    buffer: memoryview
    stage: _Stage = _Stage.ASKING
    began_s: float = 0.0
    ticket: int = 0
    epoch: int = 0
    pieces: list[Piece] = field(default_factory=list)
    data: list[memoryview] = field(default_factory=list)
    unreadable: list[Piece] = field(default_factory=list)
    bad_blocks: dict[int, list[int]] = field(default_factory=dict)
    """Piece to those of its blocks that cannot be read."""
    own: bytes | None = None
    theirs: bytes | None = None
    suspects: list[int] = field(default_factory=list)
    """Pieces that are compared by blocks."""
    own_blocks: list[bytes] | None = None
    their_blocks: dict[int, bytes] = field(default_factory=dict)
    """By the position in `suspects` of the first piece that was asked for."""
    asked_blocks: int = 0
    groups: list[list[tuple[int, Flags]]] = field(default_factory=list)
    """Of each batch: pieces, and which of their blocks."""
    in_thread: int = 0


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
        self._info = capture.info
        self._source = source
        self._addresses = (
            options.tcp(address, port),
            options.tcp(address, port + 1),
            run_directory.endpoint("tickets"),
        )
        self._jobs: dict[int, _Job] = {}
        self._requests: dict[int, tuple[_Job, int]] = {}
        """Request for checksums, to its job and to the first suspect, or -1."""
        self._outgoing: deque[list[bytes]] = deque()
        self._up: set[str] = set()
        self._next = 1
        self._rest_until_s = 0.0
        self._now_s = time.monotonic()
        self._compared_bytes = 0
        self._repaired_bytes = 0
        self._sent_bytes = 0
        self._abandoned = 0
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(JOBS_MAX)]
        self._work: queue.SimpleQueue[tuple[_Job, _Stage] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[_Job, bytes | list[bytes] | Exception]] = (
            queue.SimpleQueue()
        )
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
            run_directory.endpoint(metrics.ENDPOINT),
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

    def _values(self) -> metrics.Values:
        return {
            "is_connected": len(self._up) == len(self._addresses),
            "tickets": sum(job.ticket > 0 for job in self._jobs.values()),
            "compared_bytes": self._compared_bytes,
            "repaired_bytes": self._repaired_bytes,
            "sent_bytes": self._sent_bytes,
            "abandoned_tickets": self._abandoned,
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
        self._requests.clear()
        for job in list(self._jobs.values()):
            self._end(job)
        self._connect()

    # The loop.

    def _on_tick(self, now_s: float) -> None:
        self._now_s = now_s
        for job in list(self._jobs.values()):
            if job.stage is _Stage.ASKING:
                if now_s - job.asked_s > ASK_AGAIN_S:
                    job.asked_s = now_s
                    self._tell_office(tickets.Ask(job.ask))
            elif job.stage is not _Stage.COMMITTING and now_s - job.began_s > JOB_S:
                self._abandon(job, "it takes too long")
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
        if (
            len(self._up) == len(self._addresses)
            and self._now_s >= self._rest_until_s
            and len(self._outgoing) < OUTGOING_MAX
        ):
            while self._buffers:
                job = _Job(self._number(), self._now_s, self._buffers.pop())
                self._jobs[job.ask] = job
                self._tell_office(tickets.Ask(job.ask))

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _tell_office(self, request: tickets.Request) -> None:
        # Not connected: it is told of the lost connection, and everything begins anew.
        with contextlib.suppress(zmq.Again):
            self._office.send(tickets.encode(request), zmq.NOBLOCK)

    # Jobs.

    def _end(self, job: _Job) -> None:
        """Forgets a job; its buffer is used again when no thread works on it."""
        job.stage = _Stage.OVER
        self._jobs.pop(job.ask, None)
        for number in [number for number, (its, _) in self._requests.items() if its is job]:
            del self._requests[number]
        self._reclaim(job)

    def _reclaim(self, job: _Job) -> None:
        if job.stage is _Stage.OVER and not job.in_thread:
            self._buffers.append(job.buffer)

    def _abandon(self, job: _Job, why: str) -> None:
        """Gives a ticket back."""
        self._log.warning("abandoned", why=why, pieces=len(job.pieces))
        self._abandoned += 1
        self._rest_until_s = self._now_s + REST_S
        again = wire.encode_ranges(job.pieces)
        self._tell_office(tickets.Commit(job.ticket, 0, 0, again, b""))
        self._end(job)

    def _by_ticket(self, ticket: int) -> _Job | None:
        return next((job for job in self._jobs.values() if job.ticket == ticket), None)

    def _on_office(self) -> None:
        office = self._office
        while office is self._office and sockets.is_readable(office):
            answer = tickets.decode_answer(office.recv())
            match answer:
                case tickets.Work():
                    self._begin(answer)
                case tickets.Committed():
                    self._send_batches(answer)
                case tickets.Dropped(ticket):
                    job = self._by_ticket(ticket)
                    if job is not None:
                        self._end(job)
                case _:
                    self._log.warning("unexpected", answer=type(answer).__name__)

    def _begin(self, work: tickets.Work) -> None:
        job = self._jobs.get(work.ask)
        if job is None or job.stage is not _Stage.ASKING:
            # The answer to a question that was asked twice.
            self._tell_office(tickets.Commit(work.ticket, 0, 0, work.ranges, b""))
            return
        job.stage = _Stage.COMPARING
        job.began_s = self._now_s
        job.ticket, job.epoch = work.ticket, work.epoch
        job.pieces = wire.decode_ranges(work.ranges)
        at = 0
        for _, sectors in job.pieces:
            job.data.append(job.buffer[at : at + sectors * SECTOR_BYTES])
            at += sectors * SECTOR_BYTES
        self._give_to_thread(job)
        self._ask_checksums(job, job.pieces, block_sectors=0, suspect=-1)

    def _ask_checksums(
        self, job: _Job, pieces: list[Piece], *, block_sectors: int, suspect: int
    ) -> None:
        number = self._number()
        self._requests[number] = (job, suspect)
        message = wire.Checksums(number, job.epoch, block_sectors, wire.encode_ranges(pieces))
        with contextlib.suppress(zmq.Again):
            self._control.send(wire.encode_message(message), zmq.NOBLOCK)

    def _on_control(self) -> None:
        control = self._control
        while control is self._control and sockets.is_readable(control):
            try:
                message = wire.decode_message(control.recv_multipart()[-1])
            except WireError as error:
                self._log.warning("bad-message", reason=str(error))
                continue
            if not isinstance(message, wire.Digests) or message.request not in self._requests:
                continue  # of a ticket that was dropped
            job, suspect = self._requests.pop(message.request)
            if message.text:
                self._abandon(job, message.text)
            elif suspect < 0:
                job.theirs = message.digests
                self._compare(job)
            else:
                job.their_blocks[suspect] = message.digests
                self._compare_blocks(job)

    def _compare(self, job: _Job) -> None:
        """Both sides' digests of the pieces are there, or the first of them."""
        if job.own is None or job.theirs is None:
            return
        if len(job.own) != len(job.theirs):
            self._abandon(job, "the target's answer has another length")
            return
        differs = scan.differing(job.own, job.theirs)
        differs[list(job.bad_blocks)] = True
        job.suspects = np.flatnonzero(differs).tolist()
        if not job.suspects:
            self._commit(job)
            return
        job.stage = _Stage.BLOCKS
        self._give_to_thread(job)
        at = 0
        while at < len(job.suspects):
            end, digests = at, 0
            pieces: list[Piece] = []
            while end < len(job.suspects):
                piece = job.pieces[job.suspects[end]]
                digests += scan.digests_wanted([piece], BLOCK_SECTORS)
                if digests > wire.DIGESTS_MAX:
                    break
                pieces.append(piece)
                end += 1
            self._ask_checksums(job, pieces, block_sectors=BLOCK_SECTORS, suspect=at)
            job.asked_blocks += 1
            at = end

    def _compare_blocks(self, job: _Job) -> None:
        if job.own_blocks is None or len(job.their_blocks) < job.asked_blocks:
            return
        theirs = b"".join(job.their_blocks[at] for at in sorted(job.their_blocks))
        if len(theirs) != sum(map(len, job.own_blocks)):
            self._abandon(job, "the target's answer has another length")
            return
        at = 0
        chosen: list[tuple[int, Flags]] = []
        for index, own in zip(job.suspects, job.own_blocks, strict=True):
            blocks = scan.differing(own, theirs[at : at + len(own)])
            blocks[job.bad_blocks.get(index, [])] = False
            at += len(own)
            chosen.append((index, blocks))
        job.groups = scan.group_blocks(chosen)
        self._commit(job)

    def _commit(self, job: _Job) -> None:
        job.stage = _Stage.COMMITTING
        blocks = sum(int(flags.sum()) for group in job.groups for _, flags in group)
        if job.unreadable:
            self._log.error(
                "unreadable",
                device=self._source.path,
                sectors=str(scan.joined(job.unreadable)[:16]),
            )
        unreadable = wire.encode_ranges(scan.joined(job.unreadable))
        self._tell_office(tickets.Commit(job.ticket, len(job.groups), blocks, b"", unreadable))

    def _send_batches(self, committed: tickets.Committed) -> None:
        job = self._by_ticket(committed.ticket)
        if job is None or job.stage is not _Stage.COMMITTING:
            return
        excluded: list[Flags | None] = [None] * len(job.pieces)
        if committed.excluded:
            sizes = [sectors for _, sectors in job.pieces]
            flags = scan.unpack_bits(committed.excluded, sum(sizes))
            excluded = list(np.split(flags, np.cumsum(sizes)[:-1]))
        for at, group in enumerate(job.groups):
            headers, payload = scan.build_batch(
                [
                    Repair(job.pieces[index][0], job.data[index], blocks, excluded[index])
                    for index, blocks in group
                ]
            )
            header = wire.BatchHeader(
                wire.BatchKind.RESYNC,
                wire.Mark.NONE,
                self._info.stream,
                committed.epoch,
                committed.number + at,
                committed.first,
                len(payload) // PAYLOAD_BYTES,
            )
            top = wire.encode_batch(header, headers, payload)
            self._outgoing.append([top, headers, payload])
            self._repaired_bytes += len(payload)
        self._compared_bytes += sum(map(len, job.data))
        self._end(job)

    # Threads.

    def _give_to_thread(self, job: _Job) -> None:
        job.in_thread += 1
        self._work.put((job, job.stage))

    def _on_results(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        with contextlib.suppress(queue.Empty):
            while True:
                job, result = self._results.get_nowait()
                job.in_thread -= 1
                if isinstance(result, Exception):
                    raise result
                if job.stage is _Stage.OVER:
                    self._reclaim(job)
                elif isinstance(result, bytes):
                    job.own = result
                    self._compare(job)
                else:
                    job.own_blocks = result
                    self._compare_blocks(job)

    def _run_thread(self) -> None:
        while (work := self._work.get()) is not None:
            job, stage = work
            result: bytes | list[bytes] | Exception
            try:
                if stage is _Stage.COMPARING:
                    result = b"".join(self._read(job, at) for at in range(len(job.pieces)))
                else:
                    result = [scan.block_digests(job.data[index]) for index in job.suspects]
            except Exception as error:
                result = error
            self._results.put((job, result))
            os.eventfd_write(self._wakeup, 1)

    def _read(self, job: _Job, index: int) -> bytes:
        """Reads a piece; one that cannot be read whole is read block by block."""
        sector, _ = job.pieces[index]
        data = job.data[index]
        try:
            self._source.read_into(data, sector * SECTOR_BYTES)
        except OSError:
            bad = []
            for at in range(0, len(data), PAYLOAD_BYTES):
                block = data[at : at + PAYLOAD_BYTES]
                try:
                    self._source.read_into(block, sector * SECTOR_BYTES + at)
                except OSError:
                    bad.append(at // PAYLOAD_BYTES)
                    place = (sector + at // SECTOR_BYTES, len(block) // SECTOR_BYTES)
                    job.unreadable.append(place)
            job.bad_blocks[index] = bad
        return scan.digest(data)


def _nothing() -> None:
    """The round's `after` does the work."""


@click.command()
@options.volume
@options.chardev
@options.target_address
@options.run_dir
@click.option(
    "--underdev",
    type=click.Path(),
    help="The device below the capture; what the capture says without.",
)
@options.verbosity
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
    underdev: str | None,
    verbose: bool,
    debug: bool,
    noprint: bool,
) -> None:
    """Compares VOLUME with its replica where it must, and repairs the replica."""
    log.configure(stage="scanner", volume=volume, verbose=verbose, debug=debug, quiet=noprint)

    def build() -> Scanner:
        capture = open_capture(chardev, Role.OBSERVER)
        info = capture.info
        return Scanner(
            capture=capture,
            source=SourceDevice(
                underdev or info.underlying, chardev=chardev, sectors=info.device_sectors
            ),
            address=address,
            port=port,
            run_directory=RunDirectory(run_dir),
        )

    options.run(build)


if __name__ == "__main__":
    main()
