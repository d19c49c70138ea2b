# SPDX-License-Identifier: GPL-2.0-only
"""Replay: the jobs of a recovered journal, read from the log again. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bdr.common.journal.disk import Read
from bdr.common.journal.entry_reader import Entry, read_step
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.recovery import Recovery


def replay(read: Read, recovery: Recovery) -> Iterator[Entry]:
    """The jobs that count, in order, to be applied to the device again.

    Raises:
        JournalRefusedError: the disk gives other bytes than a moment ago.
    """
    superblock = recovery.superblock
    at = superblock.checkpoint
    record = replace(superblock.record, device_sectors=recovery.record.device_sectors)
    while at < recovery.end:
        step = read_step(read, superblock=superblock, at=at, before=record)
        if step.end is None:
            raise JournalRefusedError(
                f"at sequence {at.sequence}", step.found.value, "the entry that was there before"
            )
        if step.entry is not None:
            record = step.entry.record
            yield step.entry
        at = step.end
