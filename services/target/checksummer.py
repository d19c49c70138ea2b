# SPDX-License-Identifier: GPL-2.0-only
"""Computes checksums of the target for scanners, outside the apply path.

The node passes on a request once everything accepted before it is durable. A thread then waits
until that is applied to the device, reads, and hashes. Reading and hashing release the GIL, so
batches are received and applied meanwhile.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from bdr.common.errors import BdrError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.digests import block_digests, digest
from bdr.common.scan.plan import Chunk
from bdr.common.storage.target_device import TargetDevice
from bdr.common.wire.codec import TEXT_BYTES_MAX
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.reasons import DigestsRefused
from bdr.services.runtime.workers import Tasks, Workers
from bdr.services.target.store import StoreWorker

THREADS = 2
SLICE_BYTES = 1 << 20


class Checksummer:
    """Takes requests from the applier's loop and returns answers to it; `_run` runs in threads.

    Args:
        device: to be read.
        worker: waits until durable jobs are applied to it.
    """

    def __init__(self, device: TargetDevice, worker: StoreWorker) -> None:
        self.hashed_bytes = 0
        self._device = device
        self._worker = worker
        self._workers = Workers(self._run, threads=THREADS, name="checksums")

    def fileno(self) -> int:
        """Polls readable when there are answers."""
        return self._workers.fileno()

    def put(self, peer: bytes, request: Checksums) -> None:
        """Queues a request; never blocks."""
        self._workers.put((peer, request))

    def answers(self) -> list[tuple[bytes, Digests]]:
        """Answers since the last call."""
        return list(self._workers.results())

    def close(self) -> None:
        """Ends the threads; queued requests are dropped."""
        self._workers.discard()
        self._workers.close()

    def _run(self, requests: Tasks[tuple[bytes, Checksums]]) -> Iterator[tuple[bytes, Digests]]:
        buffer = memoryview(mmap.mmap(-1, SLICE_BYTES))
        for peer, request in requests:
            try:
                self._worker.wait_applied()
                digests = b"".join(
                    self._digests(buffer, chunk, request.block_sectors) for chunk in request.ranges
                )
                answer = Digests(request.request, digests, DigestsRefused.NONE, "")
            except BdrError as error:
                text = str(error)[: TEXT_BYTES_MAX // 4]
                answer = Digests(request.request, b"", DigestsRefused.UNREADABLE, text)
            yield peer, answer

    def _digests(self, buffer: memoryview, chunk: Chunk, block_sectors: int) -> bytes:
        sector, sectors = chunk
        data = buffer[: sectors * SECTOR_BYTES]
        self._device.read_into(data, sector * SECTOR_BYTES)
        self.hashed_bytes += len(data)
        if not block_sectors:
            return digest(data)
        return block_digests(data, block_sectors * SECTOR_BYTES)
