# SPDX-License-Identifier: GPL-2.0-only
"""Builds the source's HELLO and PING, and validates the target's answers."""

from __future__ import annotations

from enum import Enum

from bdr.common.capture.api import CaptureInfo
from bdr.common.errors import BdrError, RefusedError
from bdr.common.facts import Facts
from bdr.common.source.events import Action, Announce, SaveAssumption, Send
from bdr.common.source.generation import Generation
from bdr.common.source.identity import NO_TARGET, SourceRecord
from bdr.common.source.order import Order
from bdr.common.source.release_tracker import ReleaseTracker
from bdr.common.source.ring import Ring
from bdr.common.source.session_events import BadWelcome, Failed, OtherHistory
from bdr.common.wire.batch import PROTOCOL, AcceptedBatch
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Hello, Message, Ping, Refused, Rewind, Welcome


class Assumption(Enum):
    """Whether `assume_clean` was applied."""

    HAD_SOURCE = "ignored: the target has had a source before; everything is compared"
    HAD_EITHER = (
        "ignored: the source or the target has been replicated before; everything is compared"
    )
    USED = "ignored: it was applied before, and counts once; everything is compared"
    LACKS_WRITES = "ignored: the target has a replica of this source that lacks writes"
    TAKEN = "applied: source and target are assumed to be equal, unchecked"


class Greeting:
    """Makes the messages of one volume's source.

    Args:
        record: of this source.
        generation: its identifiers.
        assume_clean: the operator asserts that both devices are equal; applied once, and only if
            neither has been replicated before.
    """

    def __init__(
        self,
        *,
        record: SourceRecord,
        generation: Generation,
        info: CaptureInfo,
        order: Order,
        ring: Ring,
        releases: ReleaseTracker,
        assume_clean: bool,
    ) -> None:
        self._record = record
        self._generation = generation
        self._info = info
        self._order = order
        self._ring = ring
        self._releases = releases
        # Left in a configuration, it must not make a replica of a target that was made anew.
        is_used = record.assumed_for != NO_TARGET
        self._assume_clean = assume_clean and not is_used
        self._is_used_again = assume_clean and is_used
        self._nonce = 0
        self._target = NO_TARGET
        self._is_assumption_announced = False
        self.is_ping_due = False
        """A PING follows the next look."""

    def hello(self, attempt: int) -> Hello:
        """The HELLO of this attempt."""
        return Hello(
            protocol=PROTOCOL,
            attempt=attempt,
            nonce=self._nonce,
            volume=self._record.volume,
            source=self._record.source,
            generations=self._generation.known,
            stream=self._info.stream,
            device_sectors=self._info.device_sectors,
            tail=self._order.tail,
            head=self._order.head,
            acknowledged=self._order.window.acknowledged,
            counted=self._releases.counted,
            assume_clean=self._assume_clean,
        )

    def session_event(self, message: Message, *, attempt: int) -> object | None:
        """What a message of the target is to the session; None for nothing.

        Args:
            attempt: of the last HELLO. A WELCOME to an earlier one is not worth a check.
        """
        match message:
            case Welcome() if message.attempt != attempt:
                return message
            case Welcome() if (error := self._check(message)) is not None:
                return BadWelcome(error)
            case Welcome() if not self._are_ours(message.recent):
                return OtherHistory(message.epoch)
            case Refused():
                self._nonce = message.nonce
                return message
            case Welcome() | Rewind():
                return message
            case Ack() if self._order.is_of_session(message):
                error = self._check_ack(message)
                return None if error is None else Failed(error)
            case _:
                return None

    def pings(self) -> list[Action]:
        """The PING that is due after a look, if the session still is."""
        is_due, self.is_ping_due = self.is_ping_due, False
        return [Send(self._ping())] if is_due and self._order.is_streaming else []

    def _ping(self) -> Ping:
        """With the marked bytes, which will be compared."""
        marked = self._order.status.dirty_bytes(region_sectors=self._info.region_sectors)
        statement = self._order.statement()
        return Ping(self._order.epoch, self._generation.newest, marked, statement)

    def _check(self, welcome: Welcome) -> BdrError | None:
        """The error of a WELCOME, or None."""
        tail, head = self._order.tail, self._order.head
        done, counted = self._order.window.acknowledged, self._releases.counted
        is_resumed = tail <= welcome.slot <= head and done <= welcome.changes <= counted
        is_begun = welcome.slot == tail and welcome.changes > counted
        if (is_resumed or is_begun) and welcome.number == 1:
            return None
        return RefusedError(
            f"the target names slot {welcome.slot}, change {welcome.changes}, batch "
            f"{welcome.number}; wanted a slot from {tail} to {head}, a change from {done} to "
            f"{counted}, or slot {tail} and a later change, and batch 1: is it another version?"
        )

    def _are_ours(self, recent: tuple[AcceptedBatch, ...]) -> bool:
        """Whether the last batches that the replica has are what the ring holds there.

        They are not of a source that was reverted or cloned, or of a target that went back and
        was then fed by another. One batch proves little: it may be a lone FLUSH.
        """
        return all(map(self._is_ours, recent))

    def _is_ours(self, batch: AcceptedBatch) -> bool:
        if batch.first < self._order.tail:
            return True  # released, which the target has made durable before
        if batch.first + batch.slots > self._order.head:
            return False
        headers = self._ring.slots(batch.first, batch.slots)
        payload = self._ring.payload(batch.first, batch.slots)
        return batch.is_of(self._info.stream, headers.tobytes(), payload)

    def _check_ack(self, ack: Ack) -> BdrError | None:
        """The error of an ACK of this session, or None."""
        if self._order.window.is_possible(accepted=ack.accepted, durable=ack.durable):
            return None
        return RefusedError(
            f"the target acknowledges batch {ack.durable} of {ack.accepted} accepted, but only "
            f"{self._order.dispatched} were sent: is it another version?"
        )

    def announce(self, welcome: Welcome) -> list[Action]:
        """What a user is to know when a session begins."""
        facts: Facts = {
            "epoch": welcome.epoch,
            "slot": welcome.slot,
            "condition": welcome.condition.name,
        }
        actions: list[Action] = [Announce("streaming", facts)]
        assumption = self._assumption(welcome)
        if assumption is not None:
            actions.append(Announce("assume-clean", {"assumption": assumption.value}))
        self._target = welcome.target
        return actions

    def acknowledged(self) -> list[Action]:
        """Something is durable on the target: the assumption was used, if there was one."""
        if not self._assume_clean:
            return []
        self._assume_clean = False
        return [SaveAssumption(self._target)]

    def _assumption(self, welcome: Welcome) -> Assumption | None:
        """Whether `assume_clean` was applied, the first time that it is relevant; else None."""
        if self._is_assumption_announced or not (self._assume_clean or self._is_used_again):
            return None
        self._is_assumption_announced = True
        if self._is_used_again:
            return Assumption.USED if welcome.condition is Condition.UNKNOWN else None
        match welcome.condition:
            case Condition.UNKNOWN if welcome.slot == 0:
                return Assumption.HAD_SOURCE
            case Condition.UNKNOWN:
                return Assumption.HAD_EITHER
            case Condition.INCONSISTENT:
                return Assumption.LACKS_WRITES
            case Condition.CATCHING_UP if welcome.slot == 0:
                return Assumption.TAKEN
            case _:
                return None  # the target has this stream: nothing had to be assumed
