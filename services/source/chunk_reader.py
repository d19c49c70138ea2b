# SPDX-License-Identifier: GPL-2.0-only
"""Threads that read chunks of the source's device into buffers, and hash them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES
from bdr.common.scan.digests import block_digests, digest
from bdr.common.scan.events import BlocksHashed, ChunksRead, HashBlocks, Read
from bdr.common.storage.source_device import SourceDevice
from bdr.services.runtime.workers import Tasks, Workers

THREADS = 2
BUFFER_BYTES = 16 << 20
"""Most bytes of a lease."""


class ChunkReader:
    """Performs a comparer's `Read` and `HashBlocks`.

    Args:
        device: the underlying device of the capture.
        buffers: number of buffers.
    """

    def __init__(self, device: SourceDevice, *, buffers: int) -> None:
        self.buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(buffers)]
        self._device = device
        self._workers = Workers(self._work, threads=THREADS, name="reading")

    def fileno(self) -> int:
        """Polls readable when there are results."""
        return self._workers.fileno()

    def put(self, task: Read | HashBlocks) -> None:
        """Queues a task; never blocks."""
        self._workers.put(task)

    def results(self) -> Iterator[ChunksRead | BlocksHashed]:
        """Results since the last call."""
        return self._workers.results()

    def close(self) -> None:
        """Ends the threads when every queued task is done."""
        self._workers.close()

    def _work(self, tasks: Tasks[Read | HashBlocks]) -> Iterator[ChunksRead | BlocksHashed]:
        for task in tasks:
            yield self._read(task) if isinstance(task, Read) else self._hash(task)

    def _hash(self, task: HashBlocks) -> BlocksHashed:
        buffer = self.buffers[task.buffer]
        digests = [
            block_digests(buffer[at : at + sectors * SECTOR_BYTES])
            for at, (_, sectors) in zip(task.offsets, task.chunks, strict=True)
        ]
        return BlocksHashed(task.job, digests)

    def _read(self, task: Read) -> ChunksRead:
        digests = []
        bad: dict[int, list[int]] = {}
        at = 0
        for index, (sector, sectors) in enumerate(task.chunks):
            data = self.buffers[task.buffer][at : at + sectors * SECTOR_BYTES]
            at += len(data)
            try:
                self._device.read_into(data, sector * SECTOR_BYTES)
            except OSError:
                bad[index] = self._read_blocks(data, sector * SECTOR_BYTES)
            digests.append(digest(data))
        return ChunksRead(task.job, b"".join(digests), bad)

    def _read_blocks(self, data: memoryview, offset: int) -> list[int]:
        """Reads a chunk block by block; returns the unreadable blocks."""
        bad = []
        for at in range(0, len(data), PAYLOAD_BYTES):
            try:
                self._device.read_into(data[at : at + PAYLOAD_BYTES], offset + at)
            except OSError:
                bad.append(at // PAYLOAD_BYTES)
        return bad
