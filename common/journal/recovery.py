# SPDX-License-Identifier: GPL-2.0-only
"""What of a journal counts: its superblock, then every entry behind the checkpoint.

No I/O here, and nothing here writes. Nothing is handed out for applying before the
whole log that counts has been looked at: `recover` first, then
`common/journal/replay.py`.

1. `superblock_choice` decides which copy of the superblock counts.
2. From its checkpoint on, `entry_reader` says of each place: take it, end the log
   there, or refuse the journal.
3. At the end, `torn_tail` says whether an entry is missing that was durable once. Then
   the journal is refused, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bdr.common.journal.disk import Read
from bdr.common.journal.entry_reader import VERDICTS, Found, Step, Verdict, read_step
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import LOG_OFFSET, Cursor
from bdr.common.journal.superblock import Copy, Superblock
from bdr.common.journal.superblock_choice import choose
from bdr.common.journal.torn_tail import is_hole
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Witness
from bdr.common.target.witness_check import Versions


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a journal that is believed holds."""

    superblock: Superblock
    copies: tuple[Copy, ...]
    end: Cursor
    """Behind the last entry that counts."""
    ended_by: Found
    record: ReplicaRecord
    """After the last entry that counts."""
    jobs: int
    slots: int
    versions: Versions
    """What the kept sectors of the device may hold."""

    @property
    def log_bytes_used(self) -> int:
        """From the checkpoint to the end."""
        return self.end.position - self.superblock.checkpoint.position


def recover(
    read: Read, *, where: str, size_bytes: int, volume: str, device_sectors: int
) -> Recovery | None:
    """Looks at the whole journal, and says what of it counts; None for a blank one.

    Args:
        where: the journal's path, for messages.
        size_bytes: of the file or device.
        volume: whose journal it must be.
        device_sectors: size of the device that it would be applied to.

    Raises:
        JournalRefusedError: damaged, foreign, or of another version, volume or size.
    """
    superblock, copies = choose(read, where=where)
    if superblock is None:
        return None
    record = superblock.record
    if record.volume != volume:
        raise JournalRefusedError(
            where,
            f"that of volume {record.volume!r}",
            f"that of {volume!r}",
            "name another journal",
        )
    if record.device_sectors > device_sectors:
        raise JournalRefusedError(
            where,
            f"a replica of {record.device_sectors} sectors",
            f"at most {device_sectors}, the size of the target",
            "name the right target; if it was shrunk, delete the journal and the state file, "
            "and let the source scan: `bdr adopt` allows it",
        )
    wanted_bytes = LOG_OFFSET + superblock.log_bytes
    if size_bytes < wanted_bytes:
        raise JournalRefusedError(
            where, f"{size_bytes} bytes: it was truncated", f"at least {wanted_bytes}"
        )
    return _scan(
        read,
        where=where,
        superblock=superblock,
        copies=copies,
        record=replace(record, device_sectors=device_sectors),
    )


def _scan(
    read: Read,
    *,
    where: str,
    superblock: Superblock,
    copies: tuple[Copy, ...],
    record: ReplicaRecord,
) -> Recovery:
    at = superblock.checkpoint
    jobs = slots = 0
    versions = Versions(Witness.decode(superblock.witness) or Witness())
    while True:
        if at.position - superblock.checkpoint.position >= superblock.log_bytes:
            step = Step(Found.LOG_FULL, None, None)
            break
        step = read_step(read, superblock=superblock, at=at, before=record)
        if step.end is None:
            break
        if step.entry is not None:
            record = step.entry.record
            jobs += 1
            slots += step.entry.slots
            versions.add(step.entry.extents, step.entry.payload)
        at = step.end
    place = f"{step.found.value} at sequence {at.sequence}, position {at.position}"
    if VERDICTS[step.found] is Verdict.REFUSE:
        raise JournalRefusedError(where, place, "the next entry, or the log's end")
    if is_hole(read, superblock=superblock, at=at):
        raise JournalRefusedError(
            where,
            f"{place}, although that entry was acknowledged as durable once",
            "it intact: the disk lost or changed it",
        )
    return Recovery(
        superblock=superblock,
        copies=copies,
        end=at,
        ended_by=step.found,
        record=record,
        jobs=jobs,
        slots=slots,
        versions=versions,
    )
