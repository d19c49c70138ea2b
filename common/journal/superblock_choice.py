# SPDX-License-Identifier: GPL-2.0-only
"""Recovery of the superblock: which of its two copies counts. No I/O here.

Each copy is INTACT, BLANK, DAMAGED, OTHER_VERSION or FOREIGN; `_CHOICES` is the decision
table over both.
"""

from __future__ import annotations

from bdr.common.journal import superblock as superblock_format
from bdr.common.journal.disk import Read
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import BLOCK_BYTES, COPIES
from bdr.common.journal.superblock import Copy, Superblock

BLANK_BYTES = 1 << 20
"""Of zeros, where a journal may begin: whatever else may be there is known by its start."""

_NEWEST, _NONE, _UNREADABLE, _VERSION, _STRANGE = range(5)
_CHOICES: tuple[tuple[Copy, int], ...] = (
    # The first kind that any of the two copies is decides.
    (Copy.OTHER_VERSION, _VERSION),  # another BDR's: it may mean the intact one differently
    (Copy.INTACT, _NEWEST),  # each intact copy suffices, whatever became of the other
    (Copy.DAMAGED, _UNREADABLE),
    (Copy.FOREIGN, _STRANGE),
    (Copy.BLANK, _NONE),
)


def choose(read: Read, *, where: str) -> tuple[Superblock | None, tuple[Copy, ...]]:
    """The superblock that counts, or None where both copies are blank.

    Raises:
        JournalRefusedError: something is there, and it is no superblock of this version.
    """
    blocks = [read(at * BLOCK_BYTES, BLOCK_BYTES) for at in range(COPIES)]
    inspected = [superblock_format.inspect_superblock(block) for block in blocks]
    copies = tuple(copy for copy, _ in inspected)
    choice = next(choice for copy, choice in _CHOICES if copy in copies)
    if choice == _NONE and read(0, BLANK_BYTES).strip(b"\0"):
        choice = _STRANGE  # such as btrfs's, whose superblock stands at 64 KiB
    if choice == _NONE:
        return None, copies
    if choice == _NEWEST:
        intact = [superblock for _, superblock in inspected if superblock is not None]
        return max(intact, key=lambda superblock: superblock.generation), copies
    if choice == _VERSION:
        version = superblock_format.found_version(blocks[copies.index(Copy.OTHER_VERSION)])
        raise JournalRefusedError(
            where,
            f"format version {version}",
            f"version {superblock_format.VERSION}",
            "start it once with the BDR that wrote it and stop that cleanly, or delete the "
            "journal and the state file, and let the source scan: `bdr adopt` allows it",
        )
    states = " and ".join(f"copy {at} {copy.value}" for at, copy in enumerate(copies))
    if choice == _UNREADABLE:
        raise JournalRefusedError(where, f"superblock {states}", "one intact copy")
    raise JournalRefusedError(
        where,
        f"bytes that are no journal (superblock {states})",
        "a journal, or a file or device that begins with zeros",
        "name another path; if nothing of value is there, zero its first MiB",
    )
