# SPDX-License-Identifier: GPL-2.0-only
"""Begins a run of the journal: a new one, one behind what is replayed, a closed one.

`open_run` makes durable what recovery found before applying it (bytes that a killed
process left in the page cache may still be lost), applies it, syncs the device, and
begins a new run in both copies of the superblock. The older copy is written first and
synced before the other, so one of them is intact at any moment.
"""

from __future__ import annotations

from dataclasses import replace

from bdr.common.journal.disk import Device, Disk
from bdr.common.journal.layout import COPIES, Cursor
from bdr.common.journal.recovery import Recovery
from bdr.common.journal.replay import replay
from bdr.common.journal.superblock import Superblock, encode_superblock
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Witness, apply_job


def create(
    disk: Disk, *, journal_id: bytes, log_bytes: int, record: ReplicaRecord, witness: bytes = b""
) -> Superblock:
    """Writes a new journal, closed and empty; returns its superblock."""
    start = Cursor(0, 1)
    blank = Superblock(
        generation=0,
        journal=journal_id,
        log_bytes=log_bytes,
        run=0,
        checkpoint=start,
        durable=start.sequence,
        is_closed=True,
        record=record,
    )
    return begin_run(disk, blank, at=start, record=record, witness=witness, is_closed=True)


def open_run(
    disk: Disk,
    device: Device,
    recovery: Recovery,
    *,
    log_bytes: int | None = None,
) -> Superblock:
    """Applies what recovery found, and begins a new run behind it; returns its superblock.

    Args:
        disk: synced since the last process wrote to it, and read from the disk again.
        log_bytes: a new size of the log; nothing is in it when it changes.

    Raises:
        JournalRefusedError: the disk gives other bytes than recovery saw.
    """
    witness = Witness.decode(recovery.superblock.witness) or Witness()
    for entry in replay(disk.read, recovery):
        apply_job(device, witness, entry.extents, entry.payload, entry.record)
    device.sync()
    return begin_run(
        disk,
        recovery.superblock,
        at=recovery.end,
        record=recovery.record,
        witness=witness.encode(),
        log_bytes=log_bytes,
    )


def begin_run(
    disk: Disk,
    superblock: Superblock,
    *,
    at: Cursor,
    record: ReplicaRecord,
    witness: bytes = b"",
    log_bytes: int | None = None,
    is_closed: bool = False,
) -> Superblock:
    """Begins a run at `at` with `record`, which the device holds durably.

    Args:
        witness: encoded, of the same moment; empty where none is kept.

    A closed run takes no entries; it only says what the record is.
    """
    return _write_both(
        disk,
        replace(
            superblock,
            run=superblock.run + 1,
            log_bytes=log_bytes or superblock.log_bytes,
            checkpoint=at,
            durable=at.sequence,
            is_closed=is_closed,
            record=replace(record, clean=True),
            witness=witness,
        ),
    )


def _write_both(disk: Disk, superblock: Superblock) -> Superblock:
    """Writes the superblock into both copies, the older one first."""
    for _ in range(COPIES):
        superblock = replace(superblock, generation=superblock.generation + 1)
        disk.write(superblock.offset, [encode_superblock(superblock)])
        disk.sync()
    return superblock
