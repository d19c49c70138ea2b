# SPDX-License-Identifier: GPL-2.0-only
"""Slot order agrees with the order in which an in-kernel trace saw the writes."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from bdr.common.ring.layout import Op
from bdr.common.ring.slots import decode, slots_at
from tests.kernel.devices import Bdr, Direct, Loop, Mapped, have_module, start, wait_for, write
from tests.kernel.mirror import Mirror

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


def logged_sectors(path: str) -> list[int]:
    """First sectors of the data writes in a dm-log-writes log, in its order."""
    with Direct(path) as log:
        magic, version, entries, sector_size = _SUPER.unpack(log.read(512, 0)[: _SUPER.size])
        assert (magic, version) == (_MAGIC, 1)
        sectors, at = [], sector_size
        for _ in range(entries):
            sector, count, flags, _ = _ENTRY.unpack(log.read(sector_size, at)[: _ENTRY.size])
            at += sector_size
            if not flags & _DISCARD:
                at += count * 512
            if count and not flags & (_DISCARD | _MARK):
                sectors.append(sector)
        return sectors


def slots_of_chains(table: str, tmp_path: Path) -> list[int]:
    """Sectors in slot order of three chains of dependent writes over a device of `table`."""
    with (
        Mapped("traced", table) as traced,
        Bdr("t0", traced.path, capacity=4096) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):

        def chain(number: int) -> None:
            random = np.random.default_rng(number)
            with Direct(bdr.path) as disk:
                for _ in range(100):
                    sector = number * 40960 + int(random.integers(0, 5000)) * 8
                    disk.write(random.bytes(4096), sector * 512)

        threads = [threading.Thread(target=chain, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        head = mirror.capture.status().head
        columns = decode(slots_at(mirror.capture.headers, first=0, count=head))
        slots: list[int] = columns.sector[columns.op == Op.WRITE].tolist()
        mirror.drain()
        return slots


def test_dependent_writes_have_slots_in_the_order_of_dm_log_writes(
    loop: Loop, tmp_path: Path
) -> None:
    """Three threads, each writing only after its previous write has completed."""
    if not have_module("dm-log-writes"):
        pytest.skip("this kernel has no dm-log-writes")
    with Loop(tmp_path / "log", megabytes=64) as log:
        slots = slots_of_chains(f"0 131072 log-writes {loop.path} {log.path}", tmp_path)
        trace = logged_sectors(log.path)
    assert len(slots) == len(trace) == 300
    for number in range(3):

        def of_chain(sectors: list[int], number: int = number) -> list[int]:
            return [sector for sector in sectors if sector // 40960 == number]

        assert of_chain(slots) == of_chain(trace)


def test_head_of_line_write_holds_back_what_completed_after_it(loop: Loop, tmp_path: Path) -> None:
    """The prefix ends at the slot whose write is still in flight, and status names it."""
    with (
        Mapped("held", f"0 1024 linear {loop.path} 0") as held,
        Mapped("mixed", f"0 1024 linear {held.path} 0\n1024 1024 linear {loop.path} 1024") as mixed,
        Bdr("t0", mixed.path, capacity=64) as bdr,
        Mirror(bdr, tmp_path / "replica") as mirror,
    ):
        with held.suspended():
            first = start(lambda: write(bdr.path, b"h" * 4096, 0))
            wait_for(lambda: bdr.status().head == 1, "the first write in flight")
            for number in range(3):
                write(bdr.path, b"o" * 4096, (1024 + number * 8) * 512)
            status = mirror.capture.status()
            assert (status.head, status.unpublished) == (4, 0)
            assert mirror.step() == 0
        first.join()
        assert mirror.capture.status().unpublished == 4
        assert mirror.step() == 4
        assert mirror.differing() == []
