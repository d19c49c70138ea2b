# SPDX-License-Identifier: GPL-2.0-only
"""Checksums of the target's content for scanners, off the apply path.

A request is taken up when everything that the applier had accepted before it is
durable; a thread then waits until that is on the device, reads, and hashes. Reading
and hashing let other threads run, so batches are received and applied meanwhile.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections import deque
from dataclasses import dataclass

from bdr.common.errors import BdrError, WireError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.digests import block_digests, digest, digests_wanted
from bdr.common.scan.plan import PIECE_SECTORS, Piece
from bdr.common.storage.target_device import TargetDevice
from bdr.common.wire import control as wire
from bdr.services.target.store import StoreWorker

THREADS = 2
WAITING_MAX = 256
"""Requests; beyond it they are refused."""
SLICE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Request:
    peer: bytes
    message: wire.Checksums
    pieces: list[Piece]
    job: int
    """Must be durable first."""


class Checksummer:
    """Takes requests and gives answers to the applier's loop; all but `_run` in its thread.

    Args:
        device: what is read.
        worker: knows what is on it.
    """

    def __init__(self, device: TargetDevice, worker: StoreWorker) -> None:
        self.hashed_bytes = 0
        self._device = device
        self._worker = worker
        self._waiting: deque[_Request] = deque()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[bytes, wire.Digests]] = queue.SimpleQueue()
        self._in_work = 0
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._run, name=f"checksums-{at}", daemon=True)
            for at in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """Polls readable when there are answers."""
        return self._wakeup

    def ask(self, peer: bytes, message: wire.Checksums, *, last_job: int) -> str | None:
        """Takes a request; returns why not, if not.

        Args:
            last_job: the last that the replica has given out.
        """
        try:
            pieces = wire.decode_ranges(message.ranges)
        except WireError as error:
            return str(error)
        device_sectors = self._device.sectors
        if (
            len(pieces) > wire.RANGES_MAX
            or any(
                not 0 < sectors <= PIECE_SECTORS
                or sector > device_sectors - min(sectors, device_sectors)
                for sector, sectors in pieces
            )
            or digests_wanted(pieces, message.block_sectors) > wire.DIGESTS_MAX
        ):
            return "the ranges reach beyond the device, or are too many or too long"
        if len(self._waiting) + self._in_work >= WAITING_MAX:
            return "too many requests wait"
        self._waiting.append(_Request(peer, message, pieces, last_job))
        return None

    def on_durable(self, job: int) -> None:
        """Every job up to this one is durable."""
        while self._waiting and self._waiting[0].job <= job:
            self._in_work += 1
            self._requests.put(self._waiting.popleft())

    def answers(self) -> list[tuple[bytes, wire.Digests]]:
        """What is done since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._answers.get_nowait())
                self._in_work -= 1
        return found

    def close(self) -> None:
        """Ends the threads; what was not answered is not."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._wakeup)

    def _run(self) -> None:
        buffer = memoryview(mmap.mmap(-1, SLICE_BYTES))
        while (request := self._requests.get()) is not None:
            number = request.message.request
            try:
                self._worker.settle()
                digests = b"".join(
                    self._digests(buffer, piece, request.message.block_sectors)
                    for piece in request.pieces
                )
                answer = wire.Digests(number, digests, "")
            except BdrError as error:
                answer = wire.Digests(number, b"", str(error)[: wire.TEXT_BYTES_MAX // 4])
            self._answers.put((request.peer, answer))
            os.eventfd_write(self._wakeup, 1)

    def _digests(self, buffer: memoryview, piece: Piece, block_sectors: int) -> bytes:
        sector, sectors = piece
        data = buffer[: sectors * SECTOR_BYTES]
        self._device.read_into(data, sector * SECTOR_BYTES)
        self.hashed_bytes += len(data)
        if not block_sectors:
            return digest(data)
        return block_digests(data, block_sectors * SECTOR_BYTES)
