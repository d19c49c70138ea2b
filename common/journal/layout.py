# SPDX-License-Identifier: GPL-2.0-only
"""The journal's layout, version 2: a circular write-ahead log. No I/O here.

```
0            4096         8192
| superblock | superblock | log: log_bytes, a multiple of 4096 ............... |
  copy 0       copy 1
```

A **position** counts the bytes ever logged; it only grows, and stands at offset
`8192 + position mod log_bytes`. An **entry** begins at a multiple of 4096, takes
whole blocks, and never wraps: see `common/journal/entry.py`. Log space is free only
below the checkpoint of the *older* copy of the **superblock**: see
`common/journal/superblock.py`.

`docs/journal.md` has every byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

BLOCK_BYTES = 4096
COPIES = 2
LOG_OFFSET = COPIES * BLOCK_BYTES
LOG_BYTES_MIN = 4 * BLOCK_BYTES
"""Less makes no circle. What a service takes at least is more."""

UNSYNCED_BYTES_MAX = 32 << 20
"""A writer syncs at the latest after so much, skips not counted."""

CHECKSUM_BYTES = 16


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the log, and the sequence of the entry that stands or will stand there."""

    position: int
    sequence: int


def log_bytes_of(size_bytes: int) -> int:
    """How much log fits into a file or device of this size."""
    return max(0, (size_bytes - LOG_OFFSET) // BLOCK_BYTES * BLOCK_BYTES)


def offset_of(position: int, log_bytes: int) -> int:
    """Where in the file a position stands."""
    return LOG_OFFSET + position % log_bytes


def rest_of_lap(position: int, log_bytes: int) -> int:
    """Bytes from a position to the end of its lap, never 0."""
    return log_bytes - position % log_bytes


def round_up(length: int) -> int:
    """The length in whole blocks, in bytes."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def checksum(data: bytes | bytearray) -> bytes:
    """xxh3-128, its canonical bytes; its own place in `data` holds zeros."""
    return xxhash.xxh3_128(data).digest()
