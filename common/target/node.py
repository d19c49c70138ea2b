# SPDX-License-Identifier: GPL-2.0-only
"""The target's node: decides which batches are accepted, in which order, and the answers.

============  =================================================================
`reception`   whether a HELLO is taken, and where its source goes on
`session`     the session of the source that was admitted last
`intake`      batches, put into order and checked
`hook`        whether a batch must wait until a hook has run
`replica`     the record, and the jobs that lead to it
`checksums`   queue of requests for checksums
============  =================================================================

An admitted HELLO opens a new session: epoch + 1, batch 1, from the slot up to which everything was
accepted. Its WELCOME is sent when all of that, and the new epoch, are durable. Jobs are performed
in order; when one is durable, an ACK is sent to the source.

A RESYNC batch repairs differences found by a scan: it is applied in batch order, and does not
advance the slot.

`handle` is the only entry point: it takes an event and returns actions, in order. Time arrives as
`Tick`, results of I/O as events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from bdr.common.facts import Facts
from bdr.common.machine import Story, brief
from bdr.common.target import events, session
from bdr.common.target.admission import Refusal
from bdr.common.target.answers import acknowledgement, welcome
from bdr.common.target.before_resync import BeforeResync
from bdr.common.target.checksums import REFUSED_TEXTS, ChecksumQueue
from bdr.common.target.events import Action, Apply, Event, LogEvent, Peer, Send
from bdr.common.target.intake import Intake
from bdr.common.target.job_queue import JobQueue
from bdr.common.target.reception import Reception
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.replica import Replica
from bdr.common.target.session import Session, SessionState
from bdr.common.target.settings import TargetSettings
from bdr.common.target.silence import Silence
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.control import Checksums, Digests, Disown, Hello, Message, Ping, Rewind
from bdr.common.wire.reasons import DigestsRefused, RefusedReason, RewindReason


class TargetNode:
    """See the module's docstring. One instance per applier process.

    Args:
        record: what the target remembers.
        is_blank: nothing is on the device that would be lost; of interest before the first
            source only.
        nonce: random, from 1 to 2**48; other for each process.
        stride: random, too; see `Replica`.
        wrong_device: why the device is not opened, and every source refused, if so.
    """

    def __init__(
        self,
        *,
        record: ReplicaRecord,
        is_blank: bool = False,
        nonce: int = 1,
        stride: int = 0,
        settings: TargetSettings | None = None,
        wrong_device: str | None = None,
    ) -> None:
        self.wrong_device = wrong_device
        self.settings = settings or TargetSettings()
        self.dropped: Counter[str] = Counter()  # messages and batches, by reason
        self.acked_at: float | None = None
        """When the last acknowledgement was sent."""
        self._story = Story()
        self._replica = Replica(record, stride=stride)
        self.age = self._replica.age
        self._session = Session(self._story)
        self.hook = BeforeResync(self.settings.before_resync, self._replica, self._story)
        self._intake = Intake(
            session=self._session,
            replica=self._replica,
            hook=self.hook,
            dropped=self.dropped,
            settings=self.settings.intake,
        )
        self._checksums = ChecksumQueue(device_sectors=record.device_sectors)
        self._silence = Silence()
        self._arrivals = Silence()
        self._reception = Reception(
            replica=self._replica,
            session=self._session,
            intake=self._intake,
            silence=self._silence,
            arrivals=self._arrivals,
            dropped=self.dropped,
            is_blank=is_blank,
            nonce=nonce,
            session_s=self.settings.session_s,
            wrong_device=wrong_device,
        )
        self._actions: list[Action] = []

    # State.

    @property
    def record(self) -> ReplicaRecord:
        """The record once every job so far is durable."""
        return self._replica.record

    @property
    def jobs(self) -> JobQueue:
        """Jobs that are not durable yet."""
        return self._replica.jobs

    @property
    def rival(self) -> Hello | None:
        """What a source last said of itself whose history is another than the replica's."""
        return self._reception.rival

    @property
    def accepts_batches(self) -> bool:
        """Whether batches should be read; those beyond a source's window stay in the socket."""
        return not (self.jobs.is_full or self._intake.is_holding)

    @property
    def has_source(self) -> bool:
        """Whether a session is open and its source is not silent."""
        return self._session.is_open and self._silence.seconds < self.settings.source_silence_s

    @property
    def queued_s(self) -> float:
        """Age of the oldest job that is not durable."""
        return self.jobs.oldest_s(self._replica.now_at)

    # Entry point.

    def handle(self, event: Event) -> list[Action]:
        """Handles one event; returns the actions, in order.

        Raises:
            InternalError: an invariant was violated; the message has the recent story.
        """
        actions = self._actions = []
        if isinstance(event, events.MessageArrived | events.OtherProtocolArrived):
            self._story.add(f"{self._session.state.name} <- {brief(event)}")
        self._HANDLERS[type(event)](self, event)
        self.check_invariants()
        return actions

    def check_invariants(self) -> None:
        """Raises InternalError if an invariant is violated."""
        at, lowest = self._session, self._intake.reorder.lowest
        if (
            self.jobs.durable > self.jobs.last
            or at.durable > at.accepted
            or (lowest is not None and lowest <= at.accepted)
        ):
            raise self._story.error(
                f"target: {at.state.name}, batches {at.durable} of {at.accepted}, jobs "
                f"{self.jobs.durable} of {self.jobs.last}, waiting from {lowest} on"
            )

    def _on_tick(self, tick: events.Tick) -> None:
        self._silence.tick(tick.now_at)
        self._arrivals.tick(tick.now_at)
        self._replica.now_at, self._replica.now_utc = tick.now_at, tick.now_utc
        self._actions += self._intake.tick(tick.now_at)

    def _on_hook_ended(self, ended: events.HookEnded) -> None:
        self.hook.fire(ended)
        self._actions += self._intake.go_on()

    # Control.

    def _on_message(self, arrived: events.MessageArrived) -> None:
        peer, message = arrived.peer, arrived.message
        match message:
            case Hello():
                self._actions += self._reception.take(peer, message)
            case Ping():
                self._on_ping(peer, message)
            case Disown():
                self._actions += self._reception.disown(peer, message)
            case Checksums():
                self._on_checksums(peer, message)
            case _:
                self.dropped["unexpected"] += 1

    def _on_other_protocol(self, arrived: events.OtherProtocolArrived) -> None:
        text = f"found protocol version {arrived.protocol}, wanted {PROTOCOL}"
        refusal = Refusal(RefusedReason.PROTOCOL, text)
        self._actions += self._reception.refuse(arrived.peer, arrived.attempt, refusal)

    def _on_peer_lost(self, lost: events.PeerLost) -> None:
        self._reception.lost(lost.peer)

    def _on_ping(self, peer: Peer, ping: Ping) -> None:
        at = self._session
        is_its = at.state is not SessionState.NONE and at.peer == peer
        if is_its and at.state is SessionState.OPENING:
            return  # its WELCOME is pending
        if not is_its or ping.epoch != self.record.epoch:
            text = "unknown session: the target was restarted, or another source took over"
            self._send(peer, Rewind(ping.epoch, RewindReason.NO_SESSION, text))
        elif at.close_reason is not None:
            # It still sends PING, so that message was lost.
            self._send(peer, at.close_reason)
        else:
            self._silence.heard()
            self._reception.confirmed()
            job = self._replica.remember(ping)
            if job is not None:
                self._actions.append(Apply(job))
            self._acknowledge()

    def _on_checksums(self, peer: Peer, request: Checksums) -> None:
        if self._session.is_open and request.epoch == self.record.epoch:
            refused = self._checksums.put(peer, request, last_job=self.jobs.last)
            self._actions += self._checksums.ready(self.jobs.durable)
        else:
            refused = DigestsRefused.NO_SESSION
        if refused is not DigestsRefused.NONE:
            self._send(peer, Digests(request.request, b"", refused, REFUSED_TEXTS[refused]))

    def _on_digests(self, made: events.DigestsMade) -> None:
        self._checksums.done()
        self._send(made.peer, made.digests)

    def _send(self, peer: Peer, message: Message) -> None:
        self._actions.append(Send(peer, message))

    def _acknowledge(self) -> None:
        ack = acknowledgement(self._session, self._replica, self._arrivals)
        self._send(self._session.peer, ack)
        self.acked_at = self._replica.now_at

    # Batches and jobs.

    def _on_batch(self, arrived: events.BatchArrived) -> None:
        self._arrivals.heard()
        before = self._session.accepted
        self._actions += self._intake.take(arrived.batch)
        if self._session.accepted > before:
            self._silence.heard()
            self._reception.confirmed()

    def _on_bytes(self, _: events.BytesArrived) -> None:
        # Pings share the line with what is queued before them, so bytes are as good.
        self._arrivals.heard()
        if self._session.is_open:
            self._silence.heard()

    def _on_durable(self, durable: events.Durable) -> None:
        at, jobs = self._session, self.jobs
        if not jobs.durable <= durable.job <= jobs.last:
            raise self._story.error(
                f"target: job {durable.job} is durable, of {jobs.durable} to {jobs.last}"
            )
        self._replica.durable(durable.job)
        was_opening, before = at.state is SessionState.OPENING, at.durable
        at.fire(durable)
        self.hook.fire(durable)
        self._actions += self._intake.go_on()
        if at.is_open and was_opening:
            self._welcome()
        elif at.is_open and at.durable > before:
            self._acknowledge()
        self._actions += self._checksums.ready(self.jobs.durable)

    def _welcome(self) -> None:
        record = self._replica.expected
        self.age.begin()
        self._send(self._session.peer, welcome(self._session, self._replica))
        facts: Facts = {"epoch": record.epoch, "slot": record.slot}
        facts["condition"] = record.condition.name
        self._actions.append(LogEvent("welcome", facts))

    def _on_stopping(self, _: events.Stopping) -> None:
        self._session.fire(session.Closed())
        if not self.record.promoted_utc and self.wrong_device is None:
            self._actions.append(Apply(self._replica.close()))

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        events.Tick: _on_tick,
        events.MessageArrived: _on_message,
        events.PeerLost: _on_peer_lost,
        events.OtherProtocolArrived: _on_other_protocol,
        events.BatchArrived: _on_batch,
        events.BytesArrived: _on_bytes,
        events.Durable: _on_durable,
        events.DigestsMade: _on_digests,
        events.HookEnded: _on_hook_ended,
        events.Stopping: _on_stopping,
    }
