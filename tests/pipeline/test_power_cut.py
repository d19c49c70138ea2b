# SPDX-License-Identifier: GPL-2.0-only
"""The target loses power in the middle of anything: what comes up is a prefix.

The target's device and its journal are two halves of one disk, and that disk is a
captured one: its ring records every write and flush that reached it, in order. So
each place in the ring is a moment at which the power may fail. What was written
since the last flush before it may be on the disk or not, sector by sector; real
recovery then runs on what is left.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Op
from bdr.common.ring.slots import decode, slots_at
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.services.target.journal_store import open_journal
from deploy.command import wait_for
from deploy.nbd_source import loop_device, nbd_source
from tests.pipeline.pair import BLOCK_BYTES, DEADLINE_S, MIB, VOLUME, Pair
from tests.pipeline.stamped import StampedWriter

BLOCKS = 2048
TARGET_BYTES = BLOCKS * BLOCK_BYTES
JOURNAL_BYTES = 16 * MIB
WRITES = 6000
CUTS = 250


@dataclass(frozen=True)
class Acknowledged:
    """By the time that the disk had seen `disk_slot`, `writes` were acknowledged."""

    disk_slot: int
    writes: int


@pytest.mark.timeout(300)
def test_a_power_cut_anywhere_leaves_a_prefix_with_all_that_was_acknowledged(
    directory: Path, make_pair: Callable[..., Pair]
) -> None:
    disk_file = directory / "disk"
    with disk_file.open("wb") as file:
        file.truncate(JOURNAL_BYTES + TARGET_BYTES)
    captured = directory / "captured"
    captured.mkdir()
    with nbd_source(str(disk_file), captured, writes=65536) as disk:
        log = open_capture(disk.ring, Role.OBSERVER)
        with (
            loop_device(disk.device, size=JOURNAL_BYTES) as journal,
            loop_device(disk.device, offset=JOURNAL_BYTES) as target,
        ):
            pair = make_pair(
                size=TARGET_BYTES, writes=65536, applier_options=["--journal", journal]
            )
            pair.target_program = pair.target_with(target=target, options=["--journal", journal])
            pair.start()
            writer = StampedWriter(pair.nbd, blocks=BLOCKS, seed=5, pause_s=0.0005)
            acknowledged = watch(pair, log, writer)
            state = directory / "state-then"
            shutil.copyfile(pair.state, state)
            writer.stop()
            pair.settle()
            head = log.status().head
            pair.stack.stop("v-applier")
        assert log.status().overflows == 0, "the disk's ring was too small for the test"
        cut_everywhere(log, head, state, acknowledged, writer, directory)
        log.close()


def watch(pair: Pair, log: Capture, writer: StampedWriter) -> list[Acknowledged]:
    """Notes what is acknowledged as the disk's log grows, until enough is written."""
    seen = [Acknowledged(0, 0)]

    def is_enough() -> bool:
        # In this order: by the time that the log has this head, so much was acknowledged.
        writes = pair.status().tail
        if writes > seen[-1].writes:
            seen.append(Acknowledged(log.status().head, writes))
        return writer.completed > WRITES and len(seen) > 100

    wait_for(is_enough, what=f"{WRITES} writes", timeout_s=DEADLINE_S)

    return seen[1:]


def cut_everywhere(
    log: Capture,
    head: int,
    state: Path,
    acknowledged: list[Acknowledged],
    writer: StampedWriter,
    directory: Path,
) -> None:
    """Cuts the power at many places, and has the target come up after each."""
    rng = random.Random(6)
    first = acknowledged[0].disk_slot
    image = DiskImage(log)
    prefixes = []
    for cut in sorted(rng.randrange(first, head) for _ in range(CUTS)):
        image.write_torn(cut, rng, directory)
        then = directory / "state-cut"
        shutil.copyfile(state, then)
        store, record = open_journal(
            path=str(directory / "journal-cut"),
            size_bytes=None,
            device=TargetDevice(str(directory / "target-cut")),
            record_file=RecordFile(str(then)),
            volume=VOLUME,
        )
        store.close()
        prefix = writer.prefix_of(directory / "target-cut")
        assert prefix == record.slot, f"cut at {cut}"
        wanted = max(seen.writes for seen in acknowledged if seen.disk_slot <= cut)
        assert prefix >= wanted, f"cut at {cut}: write {wanted} was acknowledged, {prefix} is left"
        prefixes.append(prefix)
    assert prefixes[-1] > prefixes[0] + WRITES // 2, "the cuts were not all over the run"


class DiskImage:
    """The disk as of the last flush before a moment that only moves forward."""

    def __init__(self, log: Capture) -> None:
        self._log = log
        self._durable = np.zeros(JOURNAL_BYTES + TARGET_BYTES, np.uint8)
        self._at = 0
        head = log.status().head
        columns = decode(slots_at(log.headers, first=0, count=head))
        self._ops = columns.op.tolist()
        self._offsets = (columns.sector * SECTOR_BYTES).tolist()
        self._lengths = (columns.sectors * SECTOR_BYTES).tolist()
        self._flushes = np.flatnonzero(columns.op == Op.FLUSH)

    def write_torn(self, cut: int, rng: random.Random, directory: Path) -> None:
        """Writes both halves as a power cut in front of slot `cut` may leave them."""
        at = int(np.searchsorted(self._flushes, cut))
        flushed = int(self._flushes[at - 1]) if at else 0
        while self._at < flushed:
            self._apply(self._durable, self._at)
            self._at += 1
        left = self._durable.copy()
        # How much of what was not flushed the disk happened to keep.
        kept = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        for slot in range(self._at, cut):
            self._apply(left, slot, keep=lambda: rng.random() < kept)
        left[:JOURNAL_BYTES].tofile(directory / "journal-cut")
        left[JOURNAL_BYTES:].tofile(directory / "target-cut")

    def _apply(
        self,
        image: np.ndarray[tuple[int], np.dtype[np.uint8]],
        slot: int,
        keep: Callable[[], bool] = lambda: True,
    ) -> None:
        op, offset, length = self._ops[slot], self._offsets[slot], self._lengths[slot]
        payload = self._log.payload(slot, 1)
        if op in (Op.DISCARD, Op.WRITE_ZEROES):
            zeroes = int.from_bytes(payload[:8], "little") * SECTOR_BYTES
            if keep():
                image[offset : offset + zeroes] = 0
        elif op == Op.WRITE:
            data = np.frombuffer(payload, np.uint8, PAYLOAD_BYTES)
            for at in range(0, length, SECTOR_BYTES):
                if keep():
                    image[offset + at : offset + at + SECTOR_BYTES] = data[at : at + SECTOR_BYTES]
