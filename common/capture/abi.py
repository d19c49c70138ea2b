# SPDX-License-Identifier: GPL-2.0-only
"""Requests of a capture, and their structures. No I/O here.

Mirrors `kern/include/bdr_uapi.h`; a test compiles the header and compares every number,
size and offset. The kernel module receives requests as ioctls, the nbdkit plugin as packets; the
structures are the same.
"""

from __future__ import annotations

import struct

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.ring.layout import GAP_NONE, Mode

ABI_VERSION = 3
STREAM_ID_BYTES = 16
BITMAP_CHUNK_REGIONS = 8 * 65536
"""Most regions that one BITMAP_READ returns."""

INFO = struct.Struct("<II16sQQQQQQQ256s4Q")
STATUS = struct.Struct("<QQQQIIQQQQQQQQ16sQQQQQ5Q")
RELEASE = struct.Struct("<QQQQ")
RESUME = struct.Struct("<Q")
BITMAP = struct.Struct("<QQIIQ")
MARKS = struct.Struct("<QII")
OPEN = struct.Struct("<II")
REQUEST = struct.Struct("<II")
REPLY = struct.Struct("<iI")

_WRITE, _READ = 1, 2
_MAGIC = 0xB7


def _ioc(direction: int, number: int, argument: struct.Struct) -> int:
    """The number that Linux' _IOR and _IOW make, on every architecture BDR runs on."""
    return direction << 30 | argument.size << 16 | _MAGIC << 8 | number


IOC_INFO = _ioc(_READ, 0, INFO)
IOC_STATUS = _ioc(_READ, 1, STATUS)
IOC_RELEASE = _ioc(_WRITE, 2, RELEASE)
IOC_RESUME = _ioc(_READ, 3, RESUME)
IOC_BITMAP_READ = _ioc(_WRITE, 4, BITMAP)
IOC_BITMAP_CLEAR = _ioc(_WRITE, 5, BITMAP)
IOC_BITMAP_MARK = _ioc(_WRITE, 6, BITMAP)
IOC_OPEN = _ioc(_WRITE, 7, OPEN)
IOC_MARKS_READ = _ioc(_READ | _WRITE, 8, MARKS)

REQUEST_NAMES = {
    IOC_INFO: "INFO",
    IOC_STATUS: "STATUS",
    IOC_RELEASE: "RELEASE",
    IOC_RESUME: "RESUME",
    IOC_BITMAP_READ: "BITMAP_READ",
    IOC_BITMAP_CLEAR: "BITMAP_CLEAR",
    IOC_BITMAP_MARK: "BITMAP_MARK",
    IOC_OPEN: "OPEN",
    IOC_MARKS_READ: "MARKS_READ",
}


def decode_info(raw: bytes) -> tuple[CaptureInfo, int]:
    """Splits `struct bdr_info`; also returns the payload's offset in bytes.

    Raises:
        ValueError: of another ABI version.
    """
    (
        version,
        _,
        stream,
        device_sectors,
        capacity,
        region_sectors,
        regions,
        payload_offset,
        _payload_bytes,
        _map_bytes,
        underlying,
        *_reserved,
    ) = INFO.unpack(raw)
    if version != ABI_VERSION:
        raise ValueError(f"found ABI version {version}, wanted {ABI_VERSION}")
    info = CaptureInfo(
        stream=stream,
        device_sectors=device_sectors,
        capacity=capacity,
        region_sectors=region_sectors,
        regions=regions,
        underlying=underlying.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"),
    )
    return info, payload_offset


def decode_status(raw: bytes) -> CaptureStatus:
    """Splits `struct bdr_status`."""
    (
        head,
        tail,
        unpublished,
        gap,
        mode,
        _,
        active_regions,
        resync_regions,
        unlogged,
        overflows,
        missed_writes,
        failed_writes,
        device_sectors,
        last_gap,
        stream,
        acknowledged,
        counted,
        clock_ns,
        marks,
        missed_since_ns,
        *_reserved,
    ) = STATUS.unpack(raw)
    return CaptureStatus(
        head=head,
        tail=tail,
        unpublished=unpublished,
        gap=None if gap == GAP_NONE else gap,
        last_gap=None if last_gap == GAP_NONE else last_gap,
        mode=Mode(mode),
        active_regions=active_regions,
        resync_regions=resync_regions,
        unlogged=unlogged,
        overflows=overflows,
        missed_writes=missed_writes,
        failed_writes=failed_writes,
        device_sectors=device_sectors,
        stream=stream,
        acknowledged=acknowledged,
        counted=counted,
        clock_ns=clock_ns,
        marks=marks,
        missed_since_ns=missed_since_ns,
    )
