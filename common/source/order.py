# SPDX-License-Identifier: GPL-2.0-only
"""The order of batches: the next one, those in flight, and those that a scan may add.

Live slots, markers and resync batches are in one order. `Window` assigns numbers, `Consistency`
determines markers; both only while the session is streaming.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.machine import Story
from bdr.common.ring.layout import WRITE_SLOTS_MAX
from bdr.common.source.consistency import Consistency, Declared, Repaired, ScanRequested, StatusSeen
from bdr.common.source.quota import QuotaSettings, ResyncQuota
from bdr.common.source.ring import Ring
from bdr.common.source.session import Phase, Session
from bdr.common.source.times import Times
from bdr.common.source.window import Window, WindowSettings
from bdr.common.wire.batch import BatchHeader, BatchKind, Marker
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Welcome
from bdr.common.wire.statement import Statement


class Waits(Enum):
    """The event that the next batch waits for."""

    TARGET = auto()
    """A message of the target: no batch may be sent."""
    RING = auto()
    """The next published slot, or a change of the capture's mode."""
    SENDER = auto()
    """A sender that can accept it."""


_SCANNED = (Condition.INCONSISTENT, Condition.UNVERIFIED)


class Order:
    """See the module's docstring.

    Args:
        info: of the capture.
        status: its first status.
        ring: its memory.
        session: determines whether batches may be sent.
    """

    def __init__(
        self,
        *,
        info: CaptureInfo,
        status: CaptureStatus,
        ring: Ring,
        session: Session,
        window: WindowSettings,
        quota: QuotaSettings,
        story: Story,
    ) -> None:
        self.status = status
        """The capture's last status."""
        self.times = Times()
        self.now_at, self.now_utc_ms = 0.0, 0
        self.window = Window(
            settings=window,
            stream=info.stream,
            tail=status.tail,
            acknowledged=status.acknowledged,
        )
        self.consistency = Consistency(status, story)
        self._quota = ResyncQuota(settings=quota, capacity=info.capacity)
        self._ring = ring
        self._session = session
        self._story = story
        self._seen_head = status.head
        """The ring's highest head known from earlier sessions."""
        self._look_at_times(status)

    # State.

    @property
    def is_streaming(self) -> bool:
        """Whether batches may be sent."""
        return self._session.state is Phase.STREAMING

    def is_of_session(self, ack: Ack) -> bool:
        """Whether it is of the present session, not of one that is over."""
        return self.is_streaming and ack.epoch == self.epoch

    @property
    def condition(self) -> Condition:
        """The replica's condition, as declared by this source."""
        return self.consistency.state

    @property
    def epoch(self) -> int:
        """Epoch of the session; 0 before the first."""
        return self._session.epoch

    @property
    def head(self) -> int:
        """The ring's last known head."""
        return max(self.status.head, self.cursor, self._seen_head)

    @property
    def tail(self) -> int:
        """Every slot below it is durable on the target."""
        return self.window.tail

    @property
    def cursor(self) -> int:
        """Next slot to be dispatched."""
        return self.window.cursor

    @property
    def dispatched(self) -> int:
        """Number of the last batch."""
        return self.window.dispatched

    @property
    def durable(self) -> int:
        """Every batch up to this number is durable."""
        return self.window.durable

    def check_invariants(self) -> None:
        """Raises InternalError if an invariant is violated."""
        contradiction = self.window.contradiction()
        if contradiction is not None:
            raise self._story.error(contradiction)

    # Events.

    def begin(self, welcome: Welcome) -> None:
        """A session has started."""
        self.times.begin(
            is_prefix=not welcome.condition.needs_scan,
            as_of_ns=welcome.as_of_ns,
            stamp_ns=welcome.sent_ns,
            now_at=self.now_at,
        )
        self.consistency.begin(welcome.condition, head=self.head)
        self.window.begin(epoch=welcome.epoch, slot=welcome.slot, changes=welcome.changes)

    def forget(self) -> None:
        """Batches in flight may be lost: the next WELCOME gives the position to continue from."""
        self._seen_head = self.head
        self.window.forget()
        self.consistency.forget()

    def see(self, status: CaptureStatus) -> None:
        """Takes the capture's status."""
        self.status = status
        self.consistency.seen(status)
        if self.is_streaming:
            self.consistency.fire(StatusSeen(status, self.cursor))
        self._look_at_times(status)

    def _look_at_times(self, status: CaptureStatus) -> None:
        is_news = status.marks != self.times.slots.marks_seen
        self.times.see(
            status,
            self._ring.marks() if is_news else None,
            now_at=self.now_at,
            now_utc_ms=self.now_utc_ms,
            is_prefix=self._is_prefix_durable,
        )

    @property
    def _is_prefix_durable(self) -> bool:
        """Whether the target has made durable that the replica is a prefix."""
        window = self.window
        return (
            self.is_streaming
            and not self.condition.needs_scan
            and window.acknowledged == window.changes
        )

    def statement(self) -> Statement:
        """Of the replica as it is durable, as of the last look."""
        return self.times.statement(self.tail, is_prefix=self._is_prefix_durable)

    def acknowledge(self, ack: Ack) -> bool:
        """Takes a valid acknowledgement; returns whether a batch became durable."""
        self.times.heard(ack.sent_ns, self.now_at)
        return self.window.acknowledge(
            accepted=ack.accepted,
            durable=ack.durable,
            idle_s=ack.idle_s,
            now_at=self.now_at,
            consecutive_losses=self._session.consecutive_losses,
        )

    # The next batch.

    def waits_for(self) -> Waits:
        """The event that the next batch waits for, given the present ring."""
        if not self._may_go():
            return Waits.TARGET
        if self._due_marker() is not None:
            return Waits.SENDER
        limit = self._limit()
        if not limit:
            return Waits.TARGET
        return Waits.SENDER if self._ring.published(self.cursor, limit) else Waits.RING

    def next_batch(self) -> BatchHeader | None:
        """Numbers the next batch, if there is one and it may be sent."""
        if not self._may_go():
            return None
        marker = self._due_marker()
        if marker is not None:
            header = self._add(BatchKind.MARKER, marker)
            self.consistency.fire(Declared(marker))
            return header
        limit = self._limit()
        usual = min(limit, self.window.batch_slots)
        count = self._ring.published(self.cursor, usual) if limit else 0
        if not count and limit:
            # The first write has more.
            count = self._ring.published(self.cursor, min(limit, WRITE_SLOTS_MAX))
        if count > limit:
            raise self._story.error(f"{count} slots for a limit of {limit}")
        return self._add(BatchKind.LIVE, count=count) if count else None

    def _may_go(self) -> bool:
        return self.is_streaming and self.window.room_batches > 0

    def _due_marker(self) -> Marker | None:
        return self.consistency.due_marker(self.cursor)

    def _limit(self) -> int:
        """Most slots of the next batch; 0 if none may be sent now."""
        limit = self.window.room_slots
        gap = self.consistency.gap()
        if gap is not None and self.cursor < gap <= self.cursor + limit:
            limit = gap - self.cursor
        return self.times.slots.cut(self.cursor, limit)

    def _add(self, kind: BatchKind, marker: Marker = Marker.NONE, count: int = 0) -> BatchHeader:
        header = self.window.add(
            kind,
            marker,
            count,
            now_at=self.now_at,
            consecutive_losses=self._session.consecutive_losses,
        )
        if kind is BatchKind.RESYNC:
            return header  # made by a scanner, which knows of no clock
        is_prefix = marker is Marker.CONSISTENT or not self.condition.needs_scan
        header = replace(header, statement=self.times.statement(header.end, is_prefix=is_prefix))
        if not count:
            return header
        between_ns = self.times.between_ns(header.first, header.end, self.now_at)
        return replace(header, not_before_ns=between_ns[0], not_after_ns=between_ns[1])

    # Scans.

    @property
    def may_scan(self) -> bool:
        """Whether regions may be repaired: the replica is declared to need it."""
        return self.is_streaming and self.condition in _SCANNED

    @property
    def resync_limit(self) -> int:
        """Target number of resync batches in flight."""
        return self._quota.limit

    @property
    def resync_batches_max(self) -> int:
        """Most resync batches of a lease."""
        return self._quota.settings.batches

    @property
    def resync_room(self) -> int:
        """Resync batches that may be numbered now."""
        if not self.may_scan or self._due_marker() is not None:
            return 0
        return self._quota.room(
            used_slots=max(self.status.head, self.cursor) - self.tail,
            resync_in_flight=self.window.resync_in_flight,
            room_batches=self.window.room_batches,
        )

    def number_resync(self, batches: int) -> BatchHeader:
        """Numbers this many resync batches, at most `resync_room`; returns the first header."""
        if not 0 < batches <= self.resync_room:
            raise self._story.error(f"{batches} batches for a room of {self.resync_room}")
        first = self._add(BatchKind.RESYNC)
        self.consistency.fire(Repaired())
        for _ in range(batches - 1):
            self._add(BatchKind.RESYNC)
        return first

    def request_scan(self) -> None:
        """A scanner waits until the replica is declared inconsistent."""
        self.consistency.fire(ScanRequested())
