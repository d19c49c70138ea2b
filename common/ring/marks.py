# SPDX-License-Identifier: GPL-2.0-only
"""Marks of the clock: when slots were reserved, to within an interval. No I/O here.

Mirrors `kern/include/bdr_marks.h`, which says what a mark means, for captures that are
written in Python.
"""

from __future__ import annotations

import struct

from bdr.common.ring.layout import MARKS_INTERVAL_NS, MARKS_MAX

Mark = tuple[int, int]
"""A slot, and the clock in ns."""
MARK = struct.Struct("<QQ")
"""`struct bdr_mark`."""


def decode_marks(raw: bytes) -> list[Mark]:
    """An array of `struct bdr_mark`."""
    return [(slot, clock_ns) for slot, clock_ns in MARK.iter_unpack(raw)]


class Marks:
    """The marks of a ring that its owner fills."""

    def __init__(self) -> None:
        self.next = 0
        """Number of the next mark, ever."""
        self.interval_ns = MARKS_INTERVAL_NS
        """Since the last mark, before there is another."""
        self._marks: list[Mark] = []

    def reserve(self, slot: int, clock_ns: int) -> None:
        """Slots from `slot` on are being reserved; neither argument decreases."""
        marks = self._marks
        if marks and clock_ns < marks[-1][1] + self.interval_ns:
            return
        if len(marks) == MARKS_MAX:
            del marks[1::2]
            self.interval_ns *= 2
        marks.append((slot, clock_ns))
        self.next += 1

    def release(self, tail: int) -> None:
        """Drops all but the last mark at or below `tail`."""
        marks = self._marks
        behind = 0
        while behind + 1 < len(marks) and marks[behind + 1][0] <= tail:
            behind += 1
        del marks[:behind]
        if len(marks) <= 1:
            self.interval_ns = MARKS_INTERVAL_NS

    def table(self) -> list[Mark]:
        """See `Capture.marks`."""
        return list(self._marks)
