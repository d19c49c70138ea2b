# SPDX-License-Identifier: GPL-2.0-only
"""Where the log ends: a torn tail to be cut, or a hole in what was durable. No I/O here.

At an end there is one question: was the entry that is missing durable once? It was, if
the superblock or any intact entry behind the place says so: the writer of an entry
writes into it up to where the log was durable then. Then this is no torn tail but a
hole in what was acknowledged. Only the last group of entries has no witness behind it.

An unsynced group is at most `UNSYNCED_BYTES_MAX` long, so a witness, if there is one,
stands within `WITNESS_BYTES` behind the place.
"""

from __future__ import annotations

import numpy as np

from bdr.common.journal.disk import Read
from bdr.common.journal.entry import ENTRY_MAGIC, HEADER_ENTRY_BYTES, decode_entry_header
from bdr.common.journal.layout import (
    BLOCK_BYTES,
    UNSYNCED_BYTES_MAX,
    Cursor,
    offset_of,
    rest_of_lap,
)
from bdr.common.journal.superblock import Superblock

WITNESS_BYTES = 2 * UNSYNCED_BYTES_MAX
_READ_BYTES = 4 << 20
_ENTRY_MAGIC_WORD = int.from_bytes(ENTRY_MAGIC, "little")


def is_hole(read: Read, *, superblock: Superblock, at: Cursor) -> bool:
    """Whether a witness says that the entry missing at `at` was durable once."""
    if superblock.durable > at.sequence:
        return True
    lap_end = superblock.checkpoint.position + superblock.log_bytes
    limit = min(at.position + WITNESS_BYTES, lap_end)
    position = at.position
    while position < limit:
        length = min(
            _READ_BYTES,
            limit - position,
            rest_of_lap(position, superblock.log_bytes),
        )
        data = read(offset_of(position, superblock.log_bytes), length)
        words = np.frombuffer(data, "<u8", count=len(data) // 8)[:: BLOCK_BYTES // 8]
        for block in np.flatnonzero(words == _ENTRY_MAGIC_WORD).tolist():
            offset = block * BLOCK_BYTES
            header = decode_entry_header(data[offset : offset + HEADER_ENTRY_BYTES])
            if (
                header is not None
                and header.journal == superblock.journal
                and header.run == superblock.run
                and header.cursor.position == position + offset
                and header.durable > at.sequence
            ):
                return True
        position += length
    return False
