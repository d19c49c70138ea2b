# SPDX-License-Identifier: GPL-2.0-only
"""What a source says of the time up to which its replica lacks nothing.

It comes with each LIVE batch and marker, then it holds once the batch is durable, and with each
PING. Clocks are the capture's (`CaptureStatus.clock_ns`), which no change of the wall clock moves;
they are comparable within a stream only. What crosses hosts is the target's own clock: it stamps
its answers, and the source, which knows when each arrived, says what the target's clock showed at
`until_ns`. So the way of a message, in either direction, makes a replica older, never younger.
"""

from __future__ import annotations

from typing import NamedTuple

from bdr.common.wire.codec import FieldType, is_u64

STAMP_ORIGIN_NS = 1 << 62
"""A target's stamp is this, and its monotonic clock: an instant before its host's start has one."""


class Statement(NamedTuple):
    """See the module's docstring."""

    said_ns: int
    """The source's last look at its capture; 0: nothing is said."""
    said_utc_ms: int
    """The source's wall clock then: milliseconds since 1970."""
    until_ns: int
    """The replica has every write that was captured before; 0: not known. `said_ns`: it lacks
    nothing."""
    until_at_ns: int
    """The target's stamp at `until_ns`, or an earlier one; 0: not known."""

    @property
    def is_complete(self) -> bool:
        """Whether the replica lacked nothing when this was said."""
        return self.until_ns == self.said_ns > 0

    @property
    def as_of_utc(self) -> int:
        """The source's wall clock at `until_ns`, or before: seconds since 1970; 0: not known."""
        if not self.until_ns:
            return 0
        return max(0, self.said_utc_ms * 10**6 - (self.said_ns - self.until_ns)) // 10**9


NO_STATEMENT = Statement(0, 0, 0, 0)


def is_statement(value: object) -> bool:
    """Whether it is the list that stands for one on the wire."""
    return (
        isinstance(value, list)
        and len(value) == len(Statement._fields)
        and all(map(is_u64, value))
        and value[2] <= value[0]
    )


STATEMENT = FieldType(is_statement, lambda value: Statement(*value), list)
