# SPDX-License-Identifier: GPL-2.0-only
"""Batches in flight: their numbers, positions, and acknowledgement.

The only place that assigns batch numbers. They are 1, 2, 3 ... within an epoch, without gaps; the
batches in flight cover the slots from `tail` to `cursor`, without gaps. A resync batch or a marker
covers none; its position is slot `cursor`.

`forget` is go-back-N: batches in flight may be lost, and the next WELCOME gives the position to
continue from.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bdr.common.ring.layout import WRITE_SLOTS_MAX
from bdr.common.source.batch_size import BatchSize
from bdr.common.wire.batch import BATCH_SLOTS_MAX, BatchHeader, BatchKind, Marker

_DOUBLINGS_MAX = 6


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """Limits. Slots are of 4 KiB."""

    slots: int = 8192
    """Most slots in flight: 32 MiB of payload."""
    batches: int = 128
    """Most batches in flight; below the high-water mark of the receiver."""
    batch_slots: int = BATCH_SLOTS_MAX
    """Most slots in a batch: 4 MiB of payload."""
    idle_s: float = 30.0
    """Batches in flight count as lost if for this time the target has received no byte of any,
    as it says; doubles. A batch may take as long as it likes."""

    def __post_init__(self) -> None:
        if not WRITE_SLOTS_MAX <= self.batch_slots <= BATCH_SLOTS_MAX:
            raise ValueError(f"batch_slots: wanted {WRITE_SLOTS_MAX} to {BATCH_SLOTS_MAX}")
        if self.slots < self.batch_slots:
            raise ValueError("slots: wanted at least batch_slots")


@dataclass(frozen=True, slots=True)
class _InFlight:
    number: int
    end: int
    kind: BatchKind


class Window:
    """See the module's docstring.

    Args:
        stream: the capture's.
        tail: oldest slot of the ring.
        acknowledged: changes of the stream that are durable on the target.
    """

    def __init__(
        self, *, settings: WindowSettings, stream: bytes, tail: int, acknowledged: int
    ) -> None:
        self.tail = tail
        """Every slot below it is durable on the target."""
        self.acknowledged = acknowledged
        """So many changes of the stream, markers and resync batches, are durable there."""
        self.changes = acknowledged
        """So many were dispatched."""
        self.cursor = tail
        """Next slot to be dispatched."""
        self.accepted = 0
        """Every batch up to this number has arrived at the target."""
        self.resync_in_flight = 0
        self.is_late = False
        """Whether no byte of the dispatched batches arrives, as of the last acknowledgement."""
        self._settings = settings
        self._batch_size = BatchSize(settings.batch_slots)
        self._accepted_end = tail
        """Every slot below it has arrived at the target."""
        self._stream = stream
        self._epoch = 0
        self._next_number = 1
        self._in_flight: deque[_InFlight] = deque()
        self._waiting_since_at = 0.0
        self.idle_max_s = 0.0
        """Batches in flight are lost when no byte of them has arrived for so long."""

    @property
    def in_flight(self) -> int:
        """Batches dispatched and not yet durable."""
        return len(self._in_flight)

    @property
    def dispatched(self) -> int:
        """Number of the last batch of this epoch."""
        return self._next_number - 1

    @property
    def durable(self) -> int:
        """Every batch of this epoch up to this number is durable."""
        return (self._in_flight[0].number if self._in_flight else self._next_number) - 1

    @property
    def room_batches(self) -> int:
        """Batches that may be added now."""
        return self._settings.batches - len(self._in_flight)

    @property
    def room_slots(self) -> int:
        """Most slots of a batch; 0 if a whole write might not fit."""
        if not self.room_batches:
            return 0
        room = self._settings.slots - (self.cursor - self.tail)
        limit = min(self._settings.batch_slots, room)
        return limit if limit >= WRITE_SLOTS_MAX else 0

    @property
    def batch_slots(self) -> int:
        """Slots that the next batch should have at most, unless its first write has more."""
        return self._batch_size.slots

    @property
    def has_resync_on_its_way(self) -> bool:
        """Whether a resync batch may not have arrived yet."""
        return any(
            each.kind is BatchKind.RESYNC and each.number > self.accepted
            for each in self._in_flight
        )

    def begin(self, *, epoch: int, slot: int, changes: int) -> None:
        """A session begins: `slot` is the next, and the replica has so many changes."""
        self.forget()
        self._epoch = epoch
        self.tail = self.cursor = slot
        self.acknowledged = self.changes = changes

    def forget(self) -> None:
        """Batches in flight may be lost."""
        self._in_flight.clear()
        self.is_late = False
        self.resync_in_flight = 0
        self.cursor = self.tail
        self.changes = self.acknowledged
        self._next_number = 1
        self.accepted = 0

    def add(
        self,
        kind: BatchKind,
        marker: Marker = Marker.NONE,
        count: int = 0,
        *,
        now_at: float,
        consecutive_losses: int,
    ) -> BatchHeader:
        """The next batch of the order.

        Args:
            count: slots of the ring that it covers.
            consecutive_losses: each of them doubles the timeout.
        """
        if self.accepted == self.dispatched:
            # No batch was in flight until now.
            self._await(now_at, consecutive_losses)
            self._batch_size.begin(now_at)
            self._accepted_end = self.cursor
        header = BatchHeader(
            kind, marker, self._stream, self._epoch, self._next_number, self.cursor, count
        )
        self.cursor += count
        self._in_flight.append(_InFlight(self._next_number, self.cursor, kind))
        self.resync_in_flight += kind is BatchKind.RESYNC
        self.changes += kind is not BatchKind.LIVE
        self._next_number += 1
        return header

    def is_possible(self, *, accepted: int, durable: int) -> bool:
        """Whether an acknowledgement refers to dispatched batches only."""
        return durable <= accepted <= self.dispatched

    def acknowledge(
        self, *, accepted: int, durable: int, idle_s: int, now_at: float, consecutive_losses: int
    ) -> bool:
        """Takes a valid acknowledgement; returns whether a batch became durable.

        Only here is it judged whether batches are late: while acknowledgements are late too,
        nothing is known.
        """
        if accepted > self.accepted:
            self.accepted = accepted
            self._await(now_at, consecutive_losses)
            self._measure(now_at)
        waited_s = now_at - self._waiting_since_at
        is_complete = self.accepted == self.dispatched
        self.is_late = not is_complete and min(waited_s, idle_s) >= self.idle_max_s
        before = len(self._in_flight)
        while self._in_flight and self._in_flight[0].number <= durable:
            entry = self._in_flight.popleft()
            self.tail = entry.end
            self.resync_in_flight -= entry.kind is BatchKind.RESYNC
            self.acknowledged += entry.kind is not BatchKind.LIVE
        return len(self._in_flight) < before

    def _measure(self, now_at: float) -> None:
        arrived = (each.end for each in reversed(self._in_flight) if each.number <= self.accepted)
        end = next(arrived, self._accepted_end)
        self._batch_size.arrived(end - self._accepted_end, now_at)
        self._accepted_end = end

    def contradiction(self) -> str | None:
        """The violated invariant, or None."""
        first = self._in_flight[0].number if self._in_flight else self._next_number
        end = self._in_flight[-1].end if self._in_flight else self.tail
        if (
            self.tail > self.cursor
            or end != self.cursor
            or first + len(self._in_flight) != self._next_number
            or self.accepted > self.dispatched
            or self.resync_in_flight
            != sum(each.kind is BatchKind.RESYNC for each in self._in_flight)
            or self.changes - self.acknowledged
            != sum(each.kind is not BatchKind.LIVE for each in self._in_flight)
        ):
            return (
                f"window: tail {self.tail}, cursor {self.cursor}, accepted {self.accepted}, next "
                f"{self._next_number}, {self.resync_in_flight} resync batches, changes "
                f"{self.acknowledged} of {self.changes}, in flight "
                f"{list(self._in_flight)}"
            )
        return None

    def _await(self, now_at: float, consecutive_losses: int) -> None:
        self._waiting_since_at = now_at
        self.idle_max_s = self._settings.idle_s * 2.0 ** min(consecutive_losses, _DOUBLINGS_MAX)
