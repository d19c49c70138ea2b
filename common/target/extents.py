# SPDX-License-Identifier: GPL-2.0-only
"""Merges slots into the operations that apply them. No I/O here.

Adjacent slots that are contiguous on the device and in memory become one extent, so a sequential
batch is one write. The order of slots is kept: a later extent may overwrite an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bdr.common.errors import InvalidSlotsError
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, SLOT_SECTORS, Op
from bdr.common.ring.slots import decode
from bdr.common.wire.codec import Buffer

_LAST_OP = np.uint64(max(Op))


@dataclass(frozen=True, slots=True)
class Extents:
    """Operations in the order in which they must be applied; all in bytes.

    Four lists of equal length: plain ints, since the applier passes them to system calls one by
    one.
    """

    op: list[int]
    offset: list[int]
    """Offset on the device."""
    length: list[int]
    source: list[int]
    """Offset in the payload, for a WRITE; meaningless for others."""

    def __len__(self) -> int:
        return len(self.op)


NO_EXTENTS = Extents([], [], [], [])


def plan(headers: Buffer, payload: Buffer, *, device_sectors: int) -> Extents:
    """The extents of a batch.

    Args:
        headers: 8 bytes a slot.
        payload: 4096 bytes a slot.
        device_sectors: size of the device.

    Raises:
        InvalidSlotsError: an unknown operation, or a slot that exceeds the device. Nothing of such
            a batch may be applied.
    """
    words = np.frombuffer(headers, "<u8")
    if not len(words):
        return NO_EXTENTS
    columns = decode(words)
    if (columns.op > _LAST_OP).any():
        raise InvalidSlotsError(f"batch holds an unknown operation: {int(columns.op.max())}")

    touches = (columns.op != Op.NOP) & (columns.op != Op.FLUSH)
    sectors = columns.sectors
    ranged = (columns.op == Op.DISCARD) | (columns.op == Op.WRITE_ZEROES)
    if ranged.any():
        lengths = np.frombuffer(payload, "<u8").reshape(-1, PAYLOAD_BYTES // 8)[:, 0]
        sectors = np.where(ranged, lengths, sectors)
    # Compared without an addition, which could overflow.
    room = np.uint64(device_sectors) - np.minimum(columns.sector, np.uint64(device_sectors))
    outside = touches & (sectors > room)
    if outside.any():
        at = int(outside.argmax())
        raise InvalidSlotsError(
            f"slot {at} of the batch covers {int(sectors[at])} sectors from sector "
            f"{int(columns.sector[at])} on, but the device has {device_sectors}"
        )

    write = columns.op == Op.WRITE
    joins = (
        write[1:]
        & write[:-1]
        & (sectors[:-1] == SLOT_SECTORS)
        & (columns.sector[1:] == columns.sector[:-1] + SLOT_SECTORS)
    )
    starts = np.flatnonzero(np.concatenate(([True], ~joins)))
    run_sectors = np.add.reduceat(sectors, starts)
    keep = touches[starts] & (run_sectors > 0)
    starts = starts[keep]
    return Extents(
        op=columns.op[starts].tolist(),
        offset=(columns.sector[starts] * SECTOR_BYTES).tolist(),
        length=(run_sectors[keep] * SECTOR_BYTES).tolist(),
        source=(starts * PAYLOAD_BYTES).tolist(),
    )
