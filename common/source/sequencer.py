# SPDX-License-Identifier: GPL-2.0-only
"""The source's half of the protocol: a state machine without I/O or clock.

It alone decides order. It cuts the published slots into batches, numbers them
1, 2, 3 ... within an epoch, keeps what is in flight inside a window, and lets go
of slots when the target says that they are durable. On anything that may have
lost a batch it greets the target again, which names the place to go on from
(go-back-N).

Rules, in words:

- OFFLINE: no connection to the target. LINK UP -> greet.
- GREETING: HELLO sent. WELCOME of this very attempt -> STREAMING, from the slot
  that the target names. REFUSED -> PAUSED, or stop if it cannot pass. Silence ->
  HELLO again.
- STREAMING: dispatch while the window has room; ACK frees. REWIND, a lost sender,
  silence, or batches that do not arrive -> greet again: at once the first time,
  after growing pauses if nothing became durable since.
- PAUSED: until the pause is over, then greet.
- LINK DOWN, from anywhere -> OFFLINE. A REFUSED that was still on its way counts.
- STOPPED: an error that does not pass was reported, or the device has another size
  than when this process began; nothing leads out.

The condition of the replica, in words:

- UNKNOWN, the target knows nothing of this stream: every region is marked, and only
  then does a RESYNC mark say so. A reader that dies in between begins anew.
- A RESYNC mark makes it INCONSISTENT: where writes were missed, or before a scanner
  repairs anything, since it reads what has not completed yet.
- A CONSISTENT mark stands where the cursor reaches the ring's head as it was at a look
  that found the ring logging and no region dirty: whatever a scanner has read before,
  every write that it may have seen in part lies in front of that.

Resync batches stand in the order like any other, so go-back-N covers them: whatever
may have lost one changes `generation`, and a scan forgets what was not durable.

Invariants, checked after every event: tail <= cursor; batches in flight are
numbered without a hole and cover [tail, cursor) without a hole; slots are only
released when acknowledged as durable.

`handle` is the only way in. Time comes as `Tick`, results of I/O come as events.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from bdr.common.capture.api import CaptureInfo, CaptureStatus
from bdr.common.errors import BdrError, InternalError, RefusedError, StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES, WRITE_SLOTS_MAX, Mode
from bdr.common.wire.control import (
    BATCH_SLOTS_MAX,
    PROTOCOL,
    Ack,
    BatchHeader,
    BatchKind,
    Condition,
    Hello,
    Mark,
    Message,
    Ping,
    Progress,
    Refused,
    Rewind,
    Standing,
    Welcome,
)

RESYNC_SLOTS = 256
"""What a resync batch has at most, as a rule: 1 MiB."""

# Events: what happened.


@dataclass(frozen=True, slots=True)
class Tick:
    """Time is now `now_s`; comes before other events, and at least every 250 ms."""

    now_s: float


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The control connection's handshake succeeded."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The control connection was lost."""


@dataclass(frozen=True, slots=True)
class SenderLost:
    """A sender went away, perhaps with batches that it had not sent."""


@dataclass(frozen=True, slots=True)
class ScannerLost:
    """A scanner went away, perhaps with numbered batches that it had not sent."""


@dataclass(frozen=True, slots=True)
class ScanWanted:
    """A scanner is ready to repair what is marked."""


@dataclass(frozen=True, slots=True)
class ResyncReady:
    """A scanner can send `batches` resync batches; at most `Sequencer.resync_room`."""

    batches: int


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """The target said something."""

    message: Message


@dataclass(frozen=True, slots=True)
class CaptureSeen:
    """A look at the capture."""

    status: CaptureStatus


@dataclass(frozen=True, slots=True)
class SendersReady:
    """A sender can take a batch; `published` slots from `cursor` on are whole writes.

    `published` is at most `Sequencer.dispatch_limit`.
    """

    published: int


Event = (
    Tick
    | LinkUp
    | LinkDown
    | SenderLost
    | ScannerLost
    | ScanWanted
    | ResyncReady
    | MessageArrived
    | CaptureSeen
    | SendersReady
)

# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Send:
    """To the target, over the control connection; may be lost."""

    message: Message


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Have a sender send this batch."""

    header: BatchHeader


@dataclass(frozen=True, slots=True)
class Number:
    """The scanner's next batch has this place in the order; its slots it counts itself."""

    header: BatchHeader


@dataclass(frozen=True, slots=True)
class Release:
    """Slots below `tail` are durable on the target: free them."""

    tail: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Leave OVERFLOW, and have what was missed scanned; a `CaptureSeen` must follow."""


@dataclass(frozen=True, slots=True)
class MarkAll:
    """Mark every region to be scanned; a `CaptureSeen` must follow."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell whoever listens (log, scanner, monitor)."""

    topic: str
    facts: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process with this error."""

    error: BdrError


Action = Send | Dispatch | Number | Release | Resume | MarkAll | Announce | Stop


class Phase(Enum):
    """Where the conversation with the target stands."""

    OFFLINE = auto()
    GREETING = auto()
    STREAMING = auto()
    PAUSED = auto()
    STOPPED = auto()


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.OFFLINE: frozenset({Phase.GREETING, Phase.STOPPED}),
    Phase.GREETING: frozenset(
        {Phase.GREETING, Phase.STREAMING, Phase.PAUSED, Phase.OFFLINE, Phase.STOPPED}
    ),
    Phase.STREAMING: frozenset({Phase.GREETING, Phase.PAUSED, Phase.OFFLINE, Phase.STOPPED}),
    Phase.PAUSED: frozenset({Phase.GREETING, Phase.OFFLINE, Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class SequencerSettings:
    """Limits and times. Slots are of 4 KiB; times in seconds."""

    window_slots: int = 8192
    """Most slots in flight: 32 MiB of payload."""
    window_batches: int = 128
    """Most batches in flight; below every high-water mark on the way."""
    batch_slots: int = BATCH_SLOTS_MAX
    """Most slots in a batch: 4 MiB of payload."""
    hello_s: float = 1.0
    ping_s: float = 1.0
    silence_s: float = 5.0
    """Without a word from the target for so long, the link counts as dead."""
    progress_s: float = 20.0
    """Without an arrival for so long, what is in flight counts as lost; doubles."""
    pause_min_s: float = 0.25
    pause_max_s: float = 10.0
    resume_below: float = 0.25
    """Leave OVERFLOW when no more than this share of the ring is in use."""
    overflow_min_s: float = 1.0
    """An OVERFLOW so soon after one was left lasts at least so long; doubles."""
    overflow_max_s: float = 16.0
    resync_batches: int = 32
    """Most resync batches in flight, each of at most 1 MiB: a scan's part of the window."""
    resync_share: float = 0.25
    """And no more of them than fit into this share of the ring, but one."""
    resync_below: float = 0.5
    """None is added while more than this share of the ring is in use."""
    failed_wait_s: float = 60.0
    failed_wait_max_s: float = 3600.0
    """Regions of failed writes wait so long for the end of a scan, then join it, which begins
    anew: each time in the same scan, twice as long."""

    def __post_init__(self) -> None:
        if not WRITE_SLOTS_MAX <= self.batch_slots <= BATCH_SLOTS_MAX:
            raise ValueError(f"batch_slots: wanted {WRITE_SLOTS_MAX} to {BATCH_SLOTS_MAX}")
        if self.window_slots < self.batch_slots:
            raise ValueError("window_slots: wanted at least batch_slots")


@dataclass(frozen=True, slots=True)
class _InFlight:
    number: int
    end: int
    is_resync: bool = False


class Sequencer:
    """See the module's text. One instance lives as long as its reader process."""

    def __init__(
        self,
        *,
        volume: str,
        info: CaptureInfo,
        status: CaptureStatus,
        assume_clean: bool = False,
        settings: SequencerSettings | None = None,
    ) -> None:
        self.settings = settings or SequencerSettings()
        self.phase = Phase.OFFLINE
        self.tail = status.tail
        self.cursor = status.tail
        self.condition = Condition.INCONSISTENT
        self.epoch = 0
        self.generation = 0
        """Changes when batches in flight may be lost, and when regions may be marked anew."""
        self.standing: Standing | None = None
        """What the target remembers of its replica, as it last said."""
        self._volume = volume
        self._info = info
        self._status = status
        self._assume_clean = assume_clean
        self._is_assumption_told = False
        self._in_flight: deque[_InFlight] = deque()
        self._next_number = 1
        self._accepted = 0
        self._attempt = 0
        self._hellos = 0
        self._seen_head = status.head
        self._consistent_at: int | None = None
        self._consistent_overflows = 0
        """Overflows as of the look that set `_consistent_at`."""
        self._settled_overflows: int | None = None
        """So many were repaired when the replica was last consistent, if that is known."""
        self._is_scan_wanted = False
        self._resync_in_flight = 0
        self._resumed_s = -math.inf
        self._unfailed_s = 0.0
        """When no region was marked that a scan does not know of."""
        self._failed_wait_s = self.settings.failed_wait_s
        self._overflow_wait_s = 0.0
        self._resume_at_s = 0.0
        self._now_s = 0.0
        self._heard_s = 0.0
        self._hello_at_s = 0.0
        self._ping_at_s = 0.0
        self._progress_at_s = 0.0
        self._pause_until_s = 0.0
        self._setbacks = 0
        self._story: deque[str] = deque(maxlen=32)

    # What the loop asks.

    @property
    def dispatch_limit(self) -> int:
        """Most slots that the next batch may hold; 0 if none may go now."""
        if self.phase is not Phase.STREAMING or not self._window_has_room() or self._due_mark():
            return 0
        limit = min(
            self.settings.batch_slots, self.settings.window_slots - (self.cursor - self.tail)
        )
        gap = self._open_gap()
        if gap is not None and self.cursor < gap <= self.cursor + limit:
            return gap - self.cursor
        # Less might not hold one whole write.
        return limit if limit >= WRITE_SLOTS_MAX else 0

    @property
    def has_mark_due(self) -> bool:
        """Whether a mark must be dispatched next, and may be."""
        return (
            self.phase is Phase.STREAMING
            and self._window_has_room()
            and self._due_mark() is not None
        )

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
    def status(self) -> CaptureStatus:
        """The last look at the capture."""
        return self._status

    @property
    def may_scan(self) -> bool:
        """Whether regions may be repaired: the replica is said to be inconsistent."""
        return self.phase is Phase.STREAMING and self.condition is Condition.INCONSISTENT

    @property
    def is_scan_wanted(self) -> bool:
        """Whether a scanner waits for the replica to be declared inconsistent."""
        return self._is_scan_wanted

    @property
    def resync_limit(self) -> int:
        """Resync batches in flight that are enough: live writes wait behind them.

        What the ring gathers meanwhile must fit into it, or a scan over a slow link would
        make the overflow that the next scan has to repair.
        """
        share = self.settings.resync_share * self._info.capacity / RESYNC_SLOTS
        return max(1, min(self.settings.resync_batches, int(share)))

    @property
    def resync_room(self) -> int:
        """Resync batches that may be numbered now."""
        used = max(self._status.head, self.cursor) - self.tail
        if (
            not self.may_scan
            or self._due_mark()
            or used > self.settings.resync_below * self._info.capacity
        ):
            return 0
        # Those of one ticket go together.
        limit = self.resync_limit if self._resync_in_flight else self.settings.resync_batches
        return min(
            limit - self._resync_in_flight, self.settings.window_batches - len(self._in_flight)
        )

    # The way in.

    def handle(self, event: Event) -> list[Action]:
        """Takes one event; returns what to do, in order.

        Raises:
            InternalError: an invariant broke; the message holds the recent story.
        """
        actions: list[Action] = []
        if self.phase is Phase.STOPPED:
            return actions
        if not isinstance(event, Tick | SendersReady | CaptureSeen):
            self._story.append(f"{self.phase.name} <- {event}"[:200])
        match event:
            case Tick(now_s):
                self._on_tick(now_s, actions)
            case LinkUp():
                self._hellos = 0
                self._greet(actions)
            case LinkDown():
                self._in_flight_lost()
                self._enter(Phase.OFFLINE)
            case SenderLost():
                if self.phase is Phase.STREAMING and self._in_flight:
                    self._setback("a sender was lost with batches in flight", actions)
            case ScannerLost() | ScanWanted() | ResyncReady():
                self._on_scanner(event, actions)
            case MessageArrived(message):
                self._on_message(message, actions)
            case CaptureSeen(status):
                self._on_capture(status, actions)
            case SendersReady(published):
                self._on_senders_ready(published, actions)
        self.check_invariants()
        return actions

    def check_invariants(self) -> None:
        """Raises InternalError where the state contradicts itself."""
        first = self._in_flight[0].number if self._in_flight else self._next_number
        end = self._in_flight[-1].end if self._in_flight else self.tail
        if (
            self.tail > self.cursor
            or end != self.cursor
            or first + len(self._in_flight) != self._next_number
            or self._resync_in_flight != sum(entry.is_resync for entry in self._in_flight)
        ):
            raise InternalError(
                f"sequencer: tail {self.tail}, cursor {self.cursor}, in flight "
                f"{list(self._in_flight)}, next {self._next_number}; story: {list(self._story)}"
            )

    # Events, in the order of a conversation.

    def _on_tick(self, now_s: float, actions: list[Action]) -> None:
        self._now_s = now_s
        due_s = {
            Phase.PAUSED: self._pause_until_s,
            Phase.GREETING: self._hello_at_s,
        }.get(self.phase)
        if due_s is not None and now_s >= due_s:
            self._greet(actions)
        elif self.phase is Phase.STREAMING:
            if now_s - self._heard_s > self.settings.silence_s:
                self._setback("the target has fallen silent", actions)
            elif self._is_lost_in_transit():
                self._setback("batches in flight do not arrive", actions)
            elif now_s >= self._ping_at_s:
                self._ping_at_s = now_s + self.settings.ping_s
                actions.append(Send(Ping(self.epoch)))
                actions.append(Send(Progress(self.epoch, self._left_bytes())))

    def _on_message(self, message: Message, actions: list[Action]) -> None:
        self._heard_s = self._now_s
        match message:
            case Welcome() if self.phase is Phase.GREETING and message.attempt == self._attempt:
                self._on_welcome(message, actions)
            case Refused() if message.attempt == self._attempt:
                self._on_refused(message, actions)
            case Standing() if self.phase is Phase.STREAMING and message.epoch == self.epoch:
                self.standing = message
            case Ack() if self.phase is Phase.STREAMING and message.epoch == self.epoch:
                self._on_ack(message, actions)
            case Rewind() if self.phase is Phase.STREAMING and message.epoch == self.epoch:
                self._setback(message.text, actions)
            case _:
                # Answers to an attempt or an epoch that is over.
                pass

    def _on_welcome(self, welcome: Welcome, actions: list[Action]) -> None:
        if not self.tail <= welcome.slot <= self._head() or welcome.number != 1:
            text = (
                f"the target names slot {welcome.slot}, batch {welcome.number}; wanted a slot from "
                f"{self.tail} to {self._head()} and batch 1: is it another version?"
            )
            self._stop(RefusedError(text), actions)
            return
        self._enter(Phase.STREAMING)
        self.epoch = welcome.epoch
        self._next_number = welcome.number
        self._accepted = 0
        self._hellos = 0
        self.condition = welcome.condition
        self._consistent_at = self._head() if self.condition is Condition.CATCHING_UP else None
        self.cursor = welcome.slot
        self._release(welcome.slot, actions)
        if self.condition is Condition.UNKNOWN:
            self.generation += 1
            actions.append(MarkAll())
        self._ping_at_s = self._now_s + self.settings.ping_s
        self._progress_at_s = self._now_s + self._progress_limit_s()
        actions.append(
            Announce(
                "streaming",
                {
                    "epoch": self.epoch,
                    "slot": welcome.slot,
                    "condition": self.condition.name,
                },
            )
        )
        if self._assume_clean and not self._is_assumption_told:
            self._is_assumption_told = True
            self._tell_assumption(welcome, actions)

    def _on_refused(self, refused: Refused, actions: list[Action]) -> None:
        if refused.reason.is_permanent:
            text = f"the target refused volume {self._volume}: {refused.text}"
            self._stop(RefusedError(text), actions)
        elif self.phase in (Phase.GREETING, Phase.STREAMING):
            self._pause(f"the target refused for now: {refused.text}", actions)

    def _on_ack(self, ack: Ack, actions: list[Action]) -> None:
        if ack.accepted >= self._next_number or ack.durable > ack.accepted:
            text = (
                f"the target acknowledges batch {ack.durable} of {ack.accepted} accepted, but only "
                f"{self._next_number - 1} were sent: is it another version?"
            )
            self._stop(RefusedError(text), actions)
            return
        if ack.accepted > self._accepted:
            self._accepted = ack.accepted
            self._progress_at_s = self._now_s + self._progress_limit_s()
        tail = self.tail
        while self._in_flight and self._in_flight[0].number <= ack.durable:
            entry = self._in_flight.popleft()
            tail = entry.end
            self._resync_in_flight -= entry.is_resync
            self._setbacks = 0
        self._release(tail, actions)

    def _on_capture(self, status: CaptureStatus, actions: list[Action]) -> None:
        if status.device_sectors != self._info.device_sectors:
            # Regions, tickets and the word to the target all go by the size.
            text = (
                f"the device has {status.device_sectors} sectors now, and had "
                f"{self._info.device_sectors}; beginning anew with that"
            )
            self._stop(StaleCaptureError(text), actions)
            return
        if status.stream != self._info.stream:
            self._stop(StaleCaptureError.of_stream(status.stream, self._info.stream), actions)
            return
        # Their number, not the mode: it may have begun anew since the last look.
        if status.mode is Mode.OVERFLOW and status.overflows != self._status.overflows:
            actions.append(
                Announce("overflow", {"slot": status.head, "overflows": status.overflows})
            )
            self._pace_overflow()
        self._status = status
        if not status.active_regions:
            self._unfailed_s = self._now_s
        if not status.resync_regions:
            self._failed_wait_s = self.settings.failed_wait_s
        if self.phase is not Phase.STREAMING:
            return
        is_clean = status.mode is Mode.STREAM and not (
            status.active_regions or status.resync_regions or status.unlogged
        )
        if self.condition is Condition.INCONSISTENT:
            if not is_clean:
                self._consistent_at = None
            elif self._consistent_at is None:
                self._consistent_at = max(status.head, self.cursor)
                self._consistent_overflows = status.overflows
        elif is_clean and self.condition is not Condition.UNKNOWN:
            self._settled_overflows = status.overflows
        if self._should_resume(status):
            self._resumed_s = self._unfailed_s = self._now_s
            if status.active_regions and status.resync_regions:
                self._failed_wait_s = min(2 * self._failed_wait_s, self.settings.failed_wait_max_s)
            self.generation += 1
            actions.append(Resume())

    def _on_senders_ready(self, published: int, actions: list[Action]) -> None:
        if self.phase is not Phase.STREAMING or not self._window_has_room():
            return
        mark = self._due_mark()
        if mark:
            if mark is Mark.RESYNC:
                self.condition = Condition.INCONSISTENT
            else:
                self._settled_overflows = max(
                    self._consistent_overflows, self._settled_overflows or 0
                )
                self.condition = Condition.CONSISTENT
            self._consistent_at = None
            self._is_scan_wanted = False
            self._dispatch(BatchKind.MARK, mark, 0, actions)
            actions.append(Announce("condition", {"condition": self.condition.name}))
        elif published:
            if published > self.dispatch_limit:
                raise InternalError(f"{published} slots for a limit of {self.dispatch_limit}")
            self._dispatch(BatchKind.LIVE, Mark.NONE, published, actions)

    def _on_scanner(
        self, event: ScannerLost | ScanWanted | ResyncReady, actions: list[Action]
    ) -> None:
        match event:
            case ScannerLost():
                if self.phase is Phase.STREAMING and any(
                    entry.is_resync and entry.number > self._accepted for entry in self._in_flight
                ):
                    self._setback("a scanner was lost with batches in flight", actions)
            case ScanWanted():
                self._is_scan_wanted = self.phase is Phase.STREAMING
            case ResyncReady(batches):
                if batches > self.resync_room:
                    raise InternalError(f"{batches} batches for a room of {self.resync_room}")
                for _ in range(batches):
                    actions.append(Number(self._number(BatchKind.RESYNC, Mark.NONE, 0)))

    # Parts.

    def _tell_assumption(self, welcome: Welcome, actions: list[Action]) -> None:
        """What became of `assume_clean`; see `common.target.replica`."""
        match welcome.condition:
            case Condition.UNKNOWN if welcome.slot == 0:
                said = "not taken: the target has had a source before; everything is compared"
            case Condition.UNKNOWN:
                said = (
                    "not taken: the source or the target has been replicated before; everything "
                    "is compared"
                )
            case Condition.INCONSISTENT:
                said = "not taken: the target knows this source, and lacks writes of it"
            case Condition.CATCHING_UP if welcome.slot == 0:
                said = "taken: source and target are held to be equal, unchecked"
            case _:
                return  # the target knows this source: nothing had to be assumed
        actions.append(Announce("assume-clean", {"assumption": said}))

    def _left_bytes(self) -> int:
        """What is marked, and so will be compared; a region may be marked in both bitmaps."""
        marked = self._status.active_regions + self._status.resync_regions
        sectors = min(marked * self._info.region_sectors, self._info.device_sectors)
        return sectors * SECTOR_BYTES

    def _should_resume(self, status: CaptureStatus) -> bool:
        if status.mode is Mode.STREAM:
            # Writes that failed. Not in the middle of a scan, which would begin anew; but a
            # region that cannot be read keeps its bit, so that a scan may never end.
            is_due = self._now_s - self._unfailed_s >= self._failed_wait_s
            return status.active_regions > 0 and (not status.resync_regions or is_due)
        return (
            status.head - status.tail <= self.settings.resume_below * self._info.capacity
            and self._now_s >= self._resume_at_s
        )

    def _pace_overflow(self) -> None:
        """An overflow has begun: how long it lasts at least.

        Under a load above the link's rate the ring fills again and again. Each time that
        it does so soon, the pause doubles: what is written meanwhile only dirties
        regions, each of which is moved once, and the replica stays what it was.
        """
        settings = self.settings
        streamed_s = self._now_s - self._resumed_s
        if streamed_s > 2 * max(self._overflow_wait_s, settings.overflow_min_s):
            self._overflow_wait_s = 0.0
        else:
            self._overflow_wait_s = min(
                max(2 * self._overflow_wait_s, settings.overflow_min_s), settings.overflow_max_s
            )
        self._resume_at_s = self._now_s + self._overflow_wait_s

    def _due_mark(self) -> Mark | None:
        """The mark that must stand at the cursor, before any more slots."""
        status = self._status
        if self.condition is Condition.UNKNOWN:
            return Mark.RESYNC
        if self._is_scan_wanted and self._may_begin_scan():
            return Mark.RESYNC
        gap = self._open_gap()
        if (
            gap is not None
            and gap <= self.cursor
            # In OVERFLOW the replica is still a prefix, unless slots follow the gap: the
            # mode may have turned again before this gap was passed.
            and (status.mode is Mode.STREAM or status.head > gap)
            and status.active_regions + status.resync_regions
            and self.condition is not Condition.INCONSISTENT
        ):
            return Mark.RESYNC
        # A write that was under way at the look which found all clean may fail, and a scan have
        # read a part of it: so may whoever reads the source.
        if self._consistent_at is not None and self.cursor >= self._consistent_at:
            return Mark.CONSISTENT
        return None

    def _open_gap(self) -> int | None:
        """The lowest slot in front of which writes were missed that nothing has repaired.

        The capture names the last one, and a bound for the first that is not released; which
        of them were repaired since is known here, by their number.
        """
        status = self._status
        if self._settled_overflows is None:
            return status.gap
        match status.overflows - self._settled_overflows:
            case 0:
                return None
            case 1:
                return status.last_gap
            case _:
                return status.gap

    def _may_begin_scan(self) -> bool:
        """Whether a scan may make the replica inconsistent now: not before it must."""
        status = self._status
        gap = self._open_gap()
        return (
            status.mode is Mode.STREAM
            and status.resync_regions > 0
            and self.condition is not Condition.INCONSISTENT
            # In front of a gap it is still a prefix.
            and (gap is None or gap <= self.cursor)
        )

    def _dispatch(self, kind: BatchKind, mark: Mark, count: int, actions: list[Action]) -> None:
        actions.append(Dispatch(self._number(kind, mark, count)))

    def _number(self, kind: BatchKind, mark: Mark, count: int) -> BatchHeader:
        """The next batch of the order."""
        if self._accepted == self._next_number - 1:
            # Nothing was awaited until now.
            self._progress_at_s = self._now_s + self._progress_limit_s()
        header = BatchHeader(
            kind, mark, self._info.stream, self.epoch, self._next_number, self.cursor, count
        )
        self.cursor += count
        is_resync = kind is BatchKind.RESYNC
        self._in_flight.append(_InFlight(self._next_number, self.cursor, is_resync))
        self._resync_in_flight += is_resync
        self._next_number += 1
        return header

    def _greet(self, actions: list[Action]) -> None:
        self._in_flight_lost()
        self._enter(Phase.GREETING)
        self._attempt += 1
        # Longer each time: an answer to an earlier attempt must find its way first.
        self._hello_at_s = self._now_s + min(
            self.settings.hello_s * 2 ** min(self._hellos, 16), self.settings.pause_max_s
        )
        self._hellos += 1
        actions.append(
            Send(
                Hello(
                    protocol=PROTOCOL,
                    attempt=self._attempt,
                    volume=self._volume,
                    stream=self._info.stream,
                    device_sectors=self._status.device_sectors,
                    tail=self.tail,
                    head=self._head(),
                    assume_clean=self._assume_clean,
                )
            )
        )

    def _setback(self, why: str, actions: list[Action]) -> None:
        """Something may be lost: greet again, slower each time that nothing got through."""
        if self._setbacks == 0:
            self._setbacks = 1
            actions.append(Announce("rewind", {"epoch": self.epoch, "why": why}))
            self._greet(actions)
        else:
            self._pause(why, actions)

    def _pause(self, why: str, actions: list[Action]) -> None:
        self._in_flight_lost()
        self._enter(Phase.PAUSED)
        pause_s = min(
            self.settings.pause_min_s * 2 ** min(self._setbacks, 16), self.settings.pause_max_s
        )
        self._setbacks += 1
        self._pause_until_s = self._now_s + pause_s
        actions.append(
            Announce("pause", {"epoch": self.epoch, "why": why, "pause_ms": int(pause_s * 1000)})
        )

    def _stop(self, error: BdrError, actions: list[Action]) -> None:
        self._in_flight_lost()
        self._enter(Phase.STOPPED)
        actions.append(Stop(error))

    def _in_flight_lost(self) -> None:
        """Forgets what is in flight: the target will say where to go on."""
        self._seen_head = self._head()  # the cursor may know more than the last look
        self._in_flight.clear()
        self._resync_in_flight = 0
        self._is_scan_wanted = False
        self.generation += 1
        self.cursor = self.tail
        self._next_number = 1
        self._accepted = 0

    def _release(self, tail: int, actions: list[Action]) -> None:
        if tail > self.tail:
            self.tail = tail
            actions.append(Release(tail))

    def _enter(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase] and phase is not self.phase:
            raise InternalError(
                f"sequencer: {self.phase.name} -> {phase.name}; story: {list(self._story)}"
            )
        self.phase = phase

    def _window_has_room(self) -> bool:
        return len(self._in_flight) < self.settings.window_batches

    def _is_lost_in_transit(self) -> bool:
        return self._accepted < self._next_number - 1 and self._now_s >= self._progress_at_s

    def _progress_limit_s(self) -> float:
        return self.settings.progress_s * float(1 << min(self._setbacks, 6))

    def _head(self) -> int:
        """The ring's head as far as it is known."""
        return max(self._status.head, self.cursor, self._seen_head)
