# SPDX-License-Identifier: GPL-2.0-only
"""Layout of the ring: sizes, limits, fields of a header. See `common.ring.slots`.

Separate from that module because half of the processes decode no slots, and numpy is a third of a
process's memory.
"""

from __future__ import annotations

from enum import IntEnum

SECTOR_BYTES = 512
PAYLOAD_BYTES = 4096
HEADER_BYTES = 8
SLOT_BYTES = HEADER_BYTES + PAYLOAD_BYTES
SLOT_SECTORS = PAYLOAD_BYTES // SECTOR_BYTES

WRITE_SLOTS_MAX = 256
CAPACITY_MIN = 8
CAPACITY_MAX = 1 << 28

SECTOR_BITS = 48
SECTOR_MASK = (1 << SECTOR_BITS) - 1
COUNT_SHIFT = 48
COUNT_MASK = 7
OP_SHIFT = 51
OP_MASK = 7
FUA_SHIFT = 54
LAST_SHIFT = 55
PHASE_SHIFT = 63

REGION_SECTORS_DEFAULT = 128
REGION_SECTORS_MIN = 8
REGION_SECTORS_MAX = 1 << 20

GAP_NONE = (1 << 64) - 1

MISSED_NOTHING = 0
MISSED_UNKNOWN = (1 << 64) - 1
"""Of `CaptureStatus.missed_since_ns`: something is missing, since when is not known."""

MARKS_MAX = 4096
MARKS_INTERVAL_NS = 100_000_000
"""Of `common.ring.marks`."""

JOURNAL_BYTES_MIN = 16 << 20
"""Space for a few batches of the maximum size."""


class Op(IntEnum):
    """Operation of a slot."""

    NOP = 0
    WRITE = 1
    DISCARD = 2
    WRITE_ZEROES = 3
    FLUSH = 4


class Mode(IntEnum):
    """Whether writes take slots, or only mark the dirty bitmap."""

    STREAM = 0
    OVERFLOW = 1
