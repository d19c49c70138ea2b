# SPDX-License-Identifier: GPL-2.0-only
"""A consumer and a replica in a few lines: applies slots to a sparse file.

Knows nothing of the network. It is the judge of the suite: what it holds after
a drain must be what the underlying device holds, but for marked regions.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.dm import DmCapture
from bdr.common.ring.layout import PAYLOAD_BYTES, Mode, Op
from bdr.common.ring.slots import decode, published_count, slots_at
from tests.kernel.devices import Bdr, Direct

_LIMIT = 2048
_CHUNK = 4 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class Mirror:
    """Consumes the ring of `device` into the file `replica`."""

    def __init__(self, device: Bdr, replica: Path) -> None:
        self._device = device
        self.file = replica
        self.capture = DmCapture(device.device, Role.CONSUMER)
        self._fd = os.open(replica, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, self.capture.info.device_sectors * 512)
        status = self.capture.status()
        self.cursor = status.tail
        # Not its own: what another consumer has left, and must not decrease.
        self._acknowledged, self._counted = status.acknowledged, status.counted
        self.ops: dict[Op, int] = dict.fromkeys(Op, 0)
        self.fuas = 0
        self.resumes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the capture; the replica stays."""
        self.capture.close()
        os.close(self._fd)

    def step(self, limit: int = _LIMIT) -> int:
        """Applies and releases what is published; returns the number of slots."""
        capture = self.capture
        count = published_count(capture.headers, cursor=self.cursor, limit=limit)
        if count:
            self._apply(self.cursor, count)
            self.cursor += count
        capture.release(
            tail=self.cursor,
            cursor=self.cursor,
            acknowledged=self._acknowledged,
            counted=self._counted,
        )
        return count

    def drain(self, timeout_s: float = 60) -> None:
        """Applies everything, until no slot is reserved any more."""
        deadline_s = time.monotonic() + timeout_s
        while self.step() or self.capture.status().head != self.cursor:
            assert time.monotonic() < deadline_s, self.capture.status()

    def resume(self) -> int:
        """Goes back to STREAM."""
        self.resumes += 1
        return self.capture.resume()

    @contextmanager
    def running(self, *, pause_s: float = 0, limit: int = _LIMIT) -> Iterator[None]:
        """Consumes in a thread, and leaves OVERFLOW whenever it is entered."""
        stop = threading.Event()
        errors: list[BaseException] = []

        def loop() -> None:
            poll = select.poll()
            poll.register(self.capture.fileno(), select.POLLIN)
            try:
                while not stop.is_set():
                    poll.poll(100)
                    self.step(limit)
                    if self.capture.status().mode is Mode.OVERFLOW:
                        self.resume()
                    time.sleep(pause_s)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert not errors, errors

    def repair(self) -> None:
        """Copies the regions of `resync` from the underlying device, as a scan does."""
        info = self.capture.info
        status = self.capture.status()
        region_bytes = info.region_sectors * 512
        regions = -(-status.device_sectors // info.region_sectors)
        marked = np.flatnonzero(self.bits(Bitmap.RESYNC))
        assert not len(marked) or int(marked[-1]) < regions
        with Direct(info.underlying, os.O_RDONLY) as lower:
            for region in marked.tolist():
                offset = region * region_bytes
                count = min(region_bytes, status.device_sectors * 512 - offset)
                os.pwrite(self._fd, lower.read(count, offset), offset)
        self.capture.clear_bitmap(first=0, count=regions)

    def bits(self, bitmap: Bitmap) -> np.ndarray:
        """A bitmap as one bool a region."""
        info, status = self.capture.info, self.capture.status()
        regions = -(-status.device_sectors // info.region_sectors)
        raw = self.capture.read_bitmap(bitmap, first=0, count=regions)
        return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:regions].astype(bool)

    def differing(self) -> list[int]:
        """Regions in which the replica is not what the underlying device holds."""
        info = self.capture.info
        size = self.capture.status().device_sectors * 512
        region_bytes = info.region_sectors * 512
        found: list[int] = []
        with Direct(info.underlying, os.O_RDONLY) as lower:
            for at in range(0, size, _CHUNK):
                count = min(_CHUNK, size - at)
                left, right = lower.read(count, at), os.pread(self._fd, count, at)
                if left == right:
                    continue
                for offset in range(0, count, region_bytes):
                    end = offset + region_bytes
                    if left[offset:end] != right[offset:end]:
                        found.append((at + offset) // region_bytes)
        return found

    def _apply(self, first: int, count: int) -> None:
        columns = decode(slots_at(self.capture.headers, first=first, count=count))
        payload = self.capture.payload(first, count)
        self.fuas += int(columns.fua.sum())
        for at, (op, sector, sectors) in enumerate(
            zip(columns.op.tolist(), columns.sector.tolist(), columns.sectors.tolist(), strict=True)
        ):
            self.ops[Op(op)] += 1
            slot = payload[at * PAYLOAD_BYTES : (at + 1) * PAYLOAD_BYTES]
            if op == Op.WRITE:
                os.pwrite(self._fd, slot[: sectors * 512], sector * 512)
            elif op in (Op.DISCARD, Op.WRITE_ZEROES):
                self._zero(sector * 512, int.from_bytes(slot[:8], "little") * 512)

    def _zero(self, offset: int, count: int) -> None:
        """Punches a hole: a discard may be as big as the device."""
        mode = _KEEP_SIZE | _PUNCH_HOLE
        if _libc.fallocate(self._fd, mode, ctypes.c_int64(offset), ctypes.c_int64(count)):
            raise OSError(ctypes.get_errno(), "fallocate")
