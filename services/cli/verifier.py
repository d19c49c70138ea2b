# SPDX-License-Identifier: GPL-2.0-only
"""Comparing a source with its replica while both are in use.

Nothing is said to differ that only looks so because a write was under way: see
`common.source.scheduler`. A block that differs where a write has passed is looked at again,
and counted as busy if it is always so.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import BdrError, StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.digests import BLOCK_SECTORS, block_digests, differing, digest
from bdr.common.scan.plan import PIECE_SECTORS, Flags, Piece, joined, unpack_bits
from bdr.common.source import scheduler
from bdr.common.storage.source_device import SourceDevice
from bdr.common.wire import control as wire
from bdr.services.cli.reader_client import NoPeerError, OfficeClient, SourcePlace

THREADS = 3
TICKET_PIECES = 16
SMALL_PIECES = 64
TRIES = 8
PAUSE_S = 0.25
PATIENCE_S = 20.0
"""A target that is away for so long ends the comparison."""


@dataclass(slots=True)
class Findings:
    """What a comparison has found; sectors."""

    differing: list[Piece] = field(default_factory=list)
    unreadable: list[Piece] = field(default_factory=list)
    busy: list[Piece] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    compared_bytes: int = 0


class Verifier:
    """Compares ranges in several threads.

    Args:
        place: of the source side.
    """

    def __init__(self, place: SourcePlace) -> None:
        self._place = place
        self._progress: Callable[[int], None] = _ignore
        capture = open_capture(place.chardev, Role.OBSERVER)
        self.sectors = capture.info.device_sectors
        self._stream = capture.info.stream
        self._source = SourceDevice(place.underdev, chardev=place.chardev, info=capture.info)
        capture.close()
        self._lock = threading.Lock()
        self._findings = Findings()
        self._again: list[Piece] = []
        self._error: BdrError | Exception | None = None

    def close(self) -> None:
        """Gives the device free."""
        self._source.close()

    def compare(
        self,
        pieces: list[Piece] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Findings:
        """Compares pieces, everything without.

        Args:
            progress: told of bytes that are done with, by any thread.

        Raises:
            NoPeerError: reader or target are away.
        """
        self._progress = progress or _ignore
        if pieces is None:
            starts = range(0, self.sectors, PIECE_SECTORS)
            pieces = [(at, min(PIECE_SECTORS, self.sectors - at)) for at in starts]
        self._findings = Findings()
        self._round(pieces, TICKET_PIECES, is_first=True)
        for _ in range(TRIES):
            if not self._again:
                break
            time.sleep(PAUSE_S)
            again, self._again = self._again, []
            self._round(sorted(set(again)), SMALL_PIECES, is_first=False)
        found = self._findings
        found.busy = joined(self._again)
        found.differing = joined(found.differing)
        found.unreadable = joined(found.unreadable)
        self._again = []
        return found

    def _round(self, pieces: list[Piece], count: int, *, is_first: bool) -> None:
        work: queue.SimpleQueue[list[Piece]] = queue.SimpleQueue()
        for at in range(0, len(pieces), count):
            work.put(pieces[at : at + count])
        threads = [
            threading.Thread(target=self._run, args=(work, is_first), daemon=True)
            for _ in range(min(THREADS, -(-len(pieces) // count)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short waits, so that Ctrl-C is heard.
            while thread.is_alive():
                thread.join(0.2)
        if self._error is not None:
            raise self._error

    def _run(self, work: queue.SimpleQueue[list[Piece]], is_first: bool) -> None:
        client = OfficeClient(self._place)
        buffer = memoryview(mmap.mmap(-1, TICKET_PIECES * PIECE_SECTORS * SECTOR_BYTES))
        try:
            while self._error is None:
                try:
                    pieces = work.get_nowait()
                except queue.Empty:
                    return
                self._compare_until_done(client, buffer, pieces)
                if is_first:
                    size = sum(sectors for _, sectors in pieces) * SECTOR_BYTES
                    with self._lock:
                        self._findings.compared_bytes += size
                    self._progress(size)
        except Exception as error:
            self._error = error
        finally:
            client.close()

    def _compare_until_done(
        self, client: OfficeClient, buffer: memoryview, pieces: list[Piece]
    ) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._compare(client, buffer, pieces):
            if time.monotonic() > deadline_s:
                raise NoPeerError(
                    f"volume {self._place.volume}: the comparison was interrupted again and again "
                    f"for {PATIENCE_S:g} s; see `bdr status`"
                )
            time.sleep(PAUSE_S)

    def _compare(self, client: OfficeClient, buffer: memoryview, pieces: list[Piece]) -> bool:
        """Compares the pieces of one ticket; False if they must be compared again."""
        request = scheduler.Examine(client.number(), wire.encode_ranges(pieces))
        work = client.ask(request, PATIENCE_S)
        assert isinstance(work, scheduler.Work)
        if work.stream != self._stream:
            raise StaleCaptureError.of_stream(work.stream, self._stream)
        number = client.number()
        client.send_checksums(wire.Checksums(number, work.epoch, 0, request.ranges))
        data: list[memoryview] = []
        unreadable: list[Piece] = []
        digests = []
        at = 0
        for sector, sectors in pieces:
            data.append(buffer[at : at + sectors * SECTOR_BYTES])
            at += sectors * SECTOR_BYTES
            unreadable += self._read(data[-1], sector)
            digests.append(digest(data[-1]))
        theirs = client.receive_digests(number)
        if theirs.text:
            return self._refused(pieces, theirs.text)
        suspects = np.flatnonzero(differing(b"".join(digests), theirs.digests)).tolist()
        blocks: dict[int, Flags] = {}
        for index in suspects:
            number = client.number()
            ranges = wire.encode_ranges([pieces[index]])
            client.send_checksums(wire.Checksums(number, work.epoch, BLOCK_SECTORS, ranges))
            own = block_digests(data[index])
            theirs = client.receive_digests(number)
            if theirs.text:
                return self._refused([pieces[index]], theirs.text)
            blocks[index] = differing(own, theirs.digests)
        concluded = client.ask(scheduler.Conclude(work.ticket), PATIENCE_S)
        if not isinstance(concluded, scheduler.Concluded):
            return False
        self._judge(pieces, blocks, concluded.busy, unreadable)
        return True

    def _read(self, data: memoryview, sector: int) -> list[Piece]:
        """Reads a piece; returns what of it cannot be read."""
        try:
            self._source.read_into(data, sector * SECTOR_BYTES)
        except OSError:
            bad = []
            step = BLOCK_SECTORS * SECTOR_BYTES
            for at in range(0, len(data), step):
                block = data[at : at + step]
                try:
                    self._source.read_into(block, sector * SECTOR_BYTES + at)
                except OSError:
                    bad.append((sector + at // SECTOR_BYTES, len(block) // SECTOR_BYTES))
            return bad
        return []

    def _refused(self, pieces: list[Piece], text: str) -> bool:
        """What the target did not tell: not now (another epoch), or never (it cannot read)."""
        if "epoch" in text or "wait" in text:
            return False
        with self._lock:
            self._findings.unreadable += pieces
            self._findings.reasons.add(text)
        return True

    def _judge(
        self, pieces: list[Piece], blocks: dict[int, Flags], busy: bytes, unreadable: list[Piece]
    ) -> None:
        sizes = [sectors for _, sectors in pieces]
        flags = unpack_bits(busy, sum(sizes)) if busy else np.zeros(sum(sizes), np.bool_)
        of_piece = np.split(flags, np.cumsum(sizes)[:-1])
        bad = {sector for sector, _ in unreadable}
        with self._lock:
            self._findings.unreadable += unreadable
            for index, differs in blocks.items():
                sector, sectors = pieces[index]
                for block in np.flatnonzero(differs).tolist():
                    first = block * BLOCK_SECTORS
                    place = (sector + first, min(BLOCK_SECTORS, sectors - first))
                    if place[0] in bad:
                        continue
                    if of_piece[index][first : first + place[1]].any():
                        self._again.append(place)
                    else:
                        self._findings.differing.append(place)


def _ignore(_: int) -> None:
    """Nobody wants to know."""
