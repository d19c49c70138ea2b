# SPDX-License-Identifier: GPL-2.0-only
"""The target's half of the protocol: a state machine without I/O or clock.

It accepts one source at a time, puts batches into order, and has them applied.

Rules, in words:

- A HELLO is refused for another protocol, another volume, a source bigger than
  the device, while another stream's source is alive (or may come back: the target
  has just started), or when it comes so late that the replica is beyond the ring
  that it describes. Otherwise it opens a new
  session: epoch + 1, batch 1, from the slot up to which everything was accepted.
  Its WELCOME is sent when all of that, and the new epoch, are durable.
- A batch of another stream or epoch, or one already accepted, is dropped unread.
- The next batch in order is checked (digest, place, slots) and becomes a job. A
  later one waits in a bounded buffer.
- A batch that is damaged, or misses its place, closes the session with a REWIND:
  the source greets again. One that reaches outside the device is refused for good.
- Jobs are done in order by a disk worker; when it reports a job durable, the
  session's source gets an ACK.

Where a known stream goes on: at `record.slot`, if the source still has it (tail <=
slot <= head). Anything else needs a scan of everything; the replica is then UNKNOWN.
That is remembered, whatever is restarted, until the source declares by a MARK that it
has marked every region to be scanned.

The user's word that both devices are equal (`assume_clean`) spares that once, at first
contact: this target has had no source yet, and no target has acknowledged a slot of
this capture. Left in a configuration, it must not make a replica of one that differs:
after the device was attached anew, or the target restored or replaced.

A RESYNC batch repairs what a scan found to differ: it is applied in its place in the
order, and moves nothing forward.

`handle` is the only way in. Time comes as `Tick`, results of I/O come as events.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, replace

from bdr.common.errors import BdrError, InternalError, InvalidSlotsError
from bdr.common.target.extents import NO_EXTENTS, Extents, plan
from bdr.common.target.job import Apply
from bdr.common.target.record import NO_STREAM, ReplicaRecord
from bdr.common.wire.control import (
    PROTOCOL,
    Ack,
    Batch,
    BatchKind,
    Buffer,
    Condition,
    Hello,
    Mark,
    Message,
    Ping,
    Progress,
    Refused,
    RefusedReason,
    Rewind,
    Standing,
    Welcome,
)

_NEEDS_SCAN = (Condition.INCONSISTENT, Condition.UNKNOWN)

Peer = bytes
"""Who sent a control message: the ROUTER's routing id."""

# Events: what happened.


@dataclass(frozen=True, slots=True)
class Tick:
    """Time is now `now_s`; comes before other events."""

    now_s: float
    utc_s: int = 0
    """Seconds since 1970, for people to read."""


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A source said something."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class OtherProtocolArrived:
    """A HELLO of another protocol version."""

    peer: Peer
    protocol: int
    attempt: int


@dataclass(frozen=True, slots=True)
class BatchArrived:
    """A batch of the right form; nothing else about it is known."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Durable:
    """Every job up to this one is applied and synced, and its record written."""

    job: int


JOBS_MAX = 2048
"""More than the batches of any window."""
STANDSTILL_S = 1.0
"""A clock that jumps by more has stood still with its process: ticks come more often."""

Event = Tick | MessageArrived | OtherProtocolArrived | BatchArrived | Durable

# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Send:
    """To this source, over the control socket; may be lost."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class Note:
    """Worth a line in the log."""

    topic: str
    facts: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process with this error."""

    error: BdrError


Action = Send | Apply | Note | Stop


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Limits and times."""

    reorder_batches: int = 256
    """How far ahead of the next batch one may be and still wait."""
    reorder_bytes: int = 64 << 20
    source_silence_s: float = 15.0
    """A source silent for so long no longer keeps others out: longer than any pause of its own."""


@dataclass(slots=True)
class _Session:
    peer: Peer
    attempt: int
    opened_by: int
    """The job whose durability lets the WELCOME go."""
    next_number: int = 1
    durable: int = 0
    is_open: bool = False
    farewell: Rewind | Refused | None = None
    """Why it is broken, as its source was told."""

    @property
    def is_broken(self) -> bool:
        """Whether nothing more of it is accepted."""
        return self.farewell is not None


class Replica:
    """See the module's text. One instance lives as long as its applier process."""

    def __init__(self, *, record: ReplicaRecord, settings: ReplicaSettings | None = None) -> None:
        self.settings = settings or ReplicaSettings()
        self.record = record.at_start()
        """The replica's place when every job so far is done."""
        self.dropped: Counter[str] = Counter()
        self._session: _Session | None = None
        self._reorder: dict[int, Batch] = {}
        self._reorder_bytes = 0
        self._jobs: deque[tuple[int, int]] = deque()
        """(job, batch number) of this session's jobs that are not durable yet."""
        self._last_job = 0
        self._durable_job = 0
        self._now_s = 0.0
        self._utc_s = 0
        self._heard_s = math.inf  # counts from the first Tick: its source may come back
        self._story: deque[str] = deque(maxlen=32)

    @property
    def is_settled(self) -> bool:
        """Whether every job is durable."""
        return self._durable_job == self._last_job

    @property
    def _is_crowded(self) -> bool:
        """Whether so many jobs wait for the disk that what is only said makes no more of them."""
        return self._last_job - self._durable_job >= JOBS_MAX

    @property
    def is_fed(self) -> bool:
        """Whether a source's session is open and its source was heard lately."""
        session = self._session
        return (
            session is not None
            and session.is_open
            and not session.is_broken
            and self._now_s - self._heard_s < self.settings.source_silence_s
        )

    @property
    def last_job(self) -> int:
        """The last job that was given out."""
        return self._last_job

    @property
    def durable_job(self) -> int:
        """The last job that is durable."""
        return self._durable_job

    def serves(self, epoch: int) -> bool:
        """Whether the session of this epoch is open."""
        session = self._session
        return (
            session is not None
            and session.is_open
            and not session.is_broken
            and epoch == self.record.epoch
        )

    def closing_job(self) -> Apply:
        """The last job before a clean stop: nothing lies beyond the record's slot."""
        self._session = None
        return self._job(replace(self.record, clean=True))

    def handle(self, event: Event) -> list[Action]:
        """Takes one event; returns what to do, in order.

        Raises:
            InternalError: an invariant broke; the message holds the recent story.
        """
        actions: list[Action] = []
        match event:
            case Tick(now_s, utc_s):
                # While this process did not run, its source was silent to nobody.
                stood_still_s = now_s - self._now_s
                if stood_still_s > STANDSTILL_S:
                    self._heard_s += stood_still_s
                self._now_s, self._utc_s = now_s, utc_s
                self._heard_s = min(self._heard_s, now_s)
            case MessageArrived(peer, message):
                self._story.append(str(message)[:200])
                self._on_message(peer, message, actions)
            case OtherProtocolArrived(peer, protocol, attempt):
                text = f"found protocol version {protocol}, wanted {PROTOCOL}"
                self._refuse(peer, attempt, RefusedReason.PROTOCOL, text, actions)
            case BatchArrived(batch):
                self._on_batch(batch, actions)
            case Durable(job):
                self._on_durable(job, actions)
        self.check_invariants()
        return actions

    def check_invariants(self) -> None:
        """Raises InternalError where the state contradicts itself."""
        session = self._session
        if (
            self._durable_job > self._last_job
            or self._reorder_bytes < 0
            or (session is not None and session.durable >= session.next_number)
            or (
                session is not None
                and min(self._reorder, default=1 << 64) <= session.next_number - 1
            )
        ):
            raise InternalError(
                f"replica: {session}, jobs {self._durable_job} of {self._last_job}, waiting "
                f"{sorted(self._reorder)}; story: {list(self._story)}"
            )

    # Control.

    def _on_message(self, peer: Peer, message: Message, actions: list[Action]) -> None:
        session = self._session
        if isinstance(message, Hello):
            self._on_hello(peer, message, actions)
        elif isinstance(message, Progress):
            if session is not None and session.peer == peer and self.serves(message.epoch):
                self._on_progress(peer, message, actions)
        elif isinstance(message, Ping):
            is_mine = session is not None and session.peer == peer
            if session is not None and is_mine and not session.is_open:
                return  # its WELCOME is on its way
            if session is None or not is_mine or message.epoch != self.record.epoch:
                text = "the target does not know this session: it was restarted or taken over"
                actions.append(Send(peer, Rewind(message.epoch, text)))
            elif session.farewell is not None:
                # It pings on, so that word was lost.
                actions.append(Send(peer, session.farewell))
            else:
                self._heard_s = self._now_s
                self._acknowledge(session, actions)

    def _on_progress(self, peer: Peer, progress: Progress, actions: list[Action]) -> None:
        record = self.record
        is_news = record.condition in _NEEDS_SCAN and progress.left_bytes != record.left_bytes
        if is_news and not self._is_crowded:
            actions.append(self._job(replace(record, left_bytes=progress.left_bytes)))
        record = self.record
        standing = Standing(record.epoch, record.condition, record.since_s, record.at_s)
        actions.append(Send(peer, standing))

    def _on_hello(self, peer: Peer, hello: Hello, actions: list[Action]) -> None:
        record, session = self.record, self._session
        if hello.volume != record.volume:
            text = f"found volume {hello.volume!r}, wanted {record.volume!r}"
            self._refuse(peer, hello.attempt, RefusedReason.VOLUME, text, actions)
        elif hello.device_sectors > record.device_sectors:
            text = (
                f"found a source of {hello.device_sectors} sectors, wanted at most "
                f"{record.device_sectors}, the size of the target device; enlarge the target, "
                "then restart its applier and this source's reader"
            )
            self._refuse(peer, hello.attempt, RefusedReason.SIZE, text, actions)
        elif self._is_crowded:
            text = f"found {JOBS_MAX} jobs that wait for the target's disk; greet again"
            self._refuse(peer, hello.attempt, RefusedReason.BUSY, text, actions)
        elif hello.stream == record.stream and hello.head < record.slot:
            # A ring's head never goes back. Taken at its word, this would cost a scan.
            text = (
                f"found a HELLO of before: its ring ends at slot {hello.head}, wanted "
                f"{record.slot} or more, which the replica has; greet again"
            )
            self._refuse(peer, hello.attempt, RefusedReason.BUSY, text, actions)
        elif (
            record.stream not in (NO_STREAM, hello.stream)
            and self._now_s - self._heard_s < self.settings.source_silence_s
        ):
            text = (
                f"found stream {hello.stream.hex()}, but the replica is fed by stream "
                f"{record.stream.hex()}, now or until {self.settings.source_silence_s:g} s ago; "
                "stop that source first"
            )
            self._refuse(peer, hello.attempt, RefusedReason.BUSY, text, actions)
        elif (
            session is not None
            and session.peer == peer
            and hello.stream == record.stream
            and not session.is_open
        ):
            # Its WELCOME still waits for the disk: answer the latest attempt then.
            session.attempt = hello.attempt
            self._heard_s = self._now_s
        else:
            self._open_session(peer, hello, actions)

    def _open_session(self, peer: Peer, hello: Hello, actions: list[Action]) -> None:
        record = self.record
        known = hello.stream == record.stream and hello.tail <= record.slot <= hello.head
        if known:
            slot, condition = record.slot, record.condition
        elif hello.assume_clean and record.stream == NO_STREAM and hello.tail == 0:
            # Equal by the user's word, once what the ring still holds has been applied.
            slot, condition = hello.tail, Condition.CATCHING_UP
        else:
            slot, condition = hello.tail, Condition.UNKNOWN
        if not known:
            actions.append(
                Note(
                    "unknown-position",
                    {
                        "stream": hello.stream.hex(),
                        "tail": hello.tail,
                        "head": hello.head,
                        "known_stream": record.stream.hex(),
                        "known_slot": record.slot,
                        "condition": condition.name,
                        "assume_clean": _assumed(record, hello),
                    },
                )
            )
        self._forget_waiting()
        self._jobs.clear()
        job = self._job(
            replace(
                record,
                stream=hello.stream,
                slot=slot,
                epoch=record.epoch + 1,
                condition=condition,
                clean=False,
            ),
        )
        self._session = _Session(peer, hello.attempt, job.job)
        self._heard_s = self._now_s
        actions.append(job)

    def _refuse(
        self, peer: Peer, attempt: int, reason: RefusedReason, text: str, actions: list[Action]
    ) -> Refused:
        self.dropped[f"refused-{reason.name.lower()}"] += 1
        actions.append(Note("refused", {"reason": reason.name, "text": text}))
        refused = Refused(attempt, reason, text)
        actions.append(Send(peer, refused))
        return refused

    def _acknowledge(self, session: _Session, actions: list[Action]) -> None:
        actions.append(
            Send(session.peer, Ack(self.record.epoch, session.next_number - 1, session.durable))
        )

    # Batches.

    def _on_batch(self, batch: Batch, actions: list[Action]) -> None:
        session, header = self._session, batch.header
        if (
            session is None
            or not session.is_open
            or session.is_broken
            or header.stream != self.record.stream
            or header.epoch != self.record.epoch
        ):
            self.dropped["stale"] += 1
        elif header.number < session.next_number or header.number in self._reorder:
            self.dropped["duplicate"] += 1
        elif header.number > session.next_number:
            self._wait(session, batch, actions)
        else:
            self._accept(session, batch, actions)
            while not session.is_broken and session.next_number in self._reorder:
                waiting = self._reorder.pop(session.next_number)
                self._reorder_bytes -= waiting.size
                self._accept(session, waiting, actions)

    def _wait(self, session: _Session, batch: Batch, actions: list[Action]) -> None:
        ahead = batch.header.number - session.next_number
        if (
            ahead > self.settings.reorder_batches
            or self._reorder_bytes + batch.size > self.settings.reorder_bytes
        ):
            text = (
                f"batch {session.next_number} is missing while {len(self._reorder)} later ones wait"
            )
            self._break(session, text, actions)
            return
        self._reorder[batch.header.number] = batch
        self._reorder_bytes += batch.size

    def _accept(self, session: _Session, batch: Batch, actions: list[Action]) -> None:
        header = batch.header
        if not batch.is_intact():
            self.dropped["corrupt"] += 1
            self._break(session, f"batch {header.number} is damaged", actions)
            return
        if header.first != self.record.slot:
            text = f"batch {header.number} begins at slot {header.first}, wanted {self.record.slot}"
            self._break(session, text, actions)
            return
        try:
            extents = plan(batch.headers, batch.payload, device_sectors=self.record.device_sectors)
        except InvalidSlotsError as error:
            session.farewell = self._refuse(
                session.peer, session.attempt, RefusedReason.SLOTS, str(error), actions
            )
            return
        condition = self.record.condition
        if header.kind is BatchKind.MARK:
            condition = (
                Condition.CONSISTENT if header.mark is Mark.CONSISTENT else Condition.INCONSISTENT
            )
            actions.append(Note("condition", {"condition": condition.name, "slot": header.end}))
        self._heard_s = self._now_s
        job = self._job(
            replace(self.record, slot=header.end, condition=condition, at_s=self._utc_s),
            extents=extents,
            headers=batch.headers,
            payload=batch.payload,
        )
        self._jobs.append((job.job, header.number))
        session.next_number += 1
        actions.append(job)

    def _break(self, session: _Session, text: str, actions: list[Action]) -> None:
        session.farewell = Rewind(self.record.epoch, text)
        self._forget_waiting()
        actions.append(Note("rewind", {"epoch": self.record.epoch, "text": text}))
        actions.append(Send(session.peer, session.farewell))

    def _forget_waiting(self) -> None:
        self._reorder.clear()
        self._reorder_bytes = 0

    # Jobs.

    def _job(
        self,
        record: ReplicaRecord,
        *,
        extents: Extents = NO_EXTENTS,
        headers: Buffer = b"",
        payload: Buffer = b"",
    ) -> Apply:
        if record.condition is not self.record.condition:
            record = replace(record, since_s=self._utc_s)
        left_bytes = record.left_bytes if record.condition in _NEEDS_SCAN else 0
        record = replace(record, left_bytes=left_bytes)
        self.record = record
        self._last_job += 1
        return Apply(self._last_job, extents, headers, payload, record)

    def _on_durable(self, job: int, actions: list[Action]) -> None:
        self._durable_job = job
        session = self._session
        if session is None:
            return
        if not session.is_open and job >= session.opened_by:
            session.is_open = True
            actions.append(
                Send(
                    session.peer,
                    Welcome(
                        attempt=session.attempt,
                        epoch=self.record.epoch,
                        number=1,
                        slot=self.record.slot,
                        condition=self.record.condition,
                    ),
                )
            )
            actions.append(
                Note(
                    "welcome",
                    {
                        "epoch": self.record.epoch,
                        "slot": self.record.slot,
                        "condition": self.record.condition.name,
                    },
                )
            )
        before = session.durable
        while self._jobs and self._jobs[0][0] <= job:
            session.durable = self._jobs.popleft()[1]
        if session.durable > before and not session.is_broken:
            self._acknowledge(session, actions)


def _assumed(record: ReplicaRecord, hello: Hello) -> str:
    """What became of the user's word that both devices are equal."""
    if not hello.assume_clean:
        return "not asked for"
    if record.stream != NO_STREAM:
        return "not taken: this replica has had a source before, so it may differ"
    if hello.tail:
        return "not taken: this source has been replicated before, so the target may lack writes"
    return "taken: the devices are held to be equal, unchecked"
