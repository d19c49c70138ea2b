# SPDX-License-Identifier: GPL-2.0-only
"""Builds the source's HELLO and PING, and validates the target's answers."""

from __future__ import annotations

from enum import Enum

from bdr.common.capture.api import CaptureInfo
from bdr.common.errors import BdrError, RefusedError
from bdr.common.facts import Facts
from bdr.common.source.events import Announce
from bdr.common.source.order import Order
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Ack, Hello, Ping, Welcome


class Assumption(Enum):
    """Whether `assume_clean` was applied."""

    HAD_SOURCE = "ignored: the target has had a source before; everything is compared"
    HAD_EITHER = (
        "ignored: the source or the target has been replicated before; everything is compared"
    )
    LACKS_WRITES = "ignored: the target has a replica of this source that lacks writes"
    TAKEN = "applied: source and target are assumed to be equal, unchecked"


class Greeting:
    """Makes the messages of one volume's source.

    Args:
        assume_clean: the operator asserts that both devices are equal; applied only if neither has
            been replicated before.
    """

    def __init__(self, *, volume: str, info: CaptureInfo, order: Order, assume_clean: bool) -> None:
        self._volume = volume
        self._info = info
        self._order = order
        self._assume_clean = assume_clean
        self._is_assumption_told = False

    def hello(self, attempt: int) -> Hello:
        """The HELLO of this attempt."""
        return Hello(
            protocol=PROTOCOL,
            attempt=attempt,
            volume=self._volume,
            stream=self._info.stream,
            device_sectors=self._info.device_sectors,
            tail=self._order.tail,
            head=self._order.head,
            assume_clean=self._assume_clean,
        )

    def ping(self) -> Ping:
        """The PING, with the bytes left to compare."""
        status, region_sectors = self._order.status, self._info.region_sectors
        return Ping(self._order.epoch, status.dirty_bytes(region_sectors=region_sectors))

    def check(self, welcome: Welcome) -> BdrError | None:
        """The error of a WELCOME, or None."""
        tail, head = self._order.tail, self._order.head
        if tail <= welcome.slot <= head and welcome.number == 1:
            return None
        return RefusedError(
            f"the target names slot {welcome.slot}, batch {welcome.number}; wanted a slot from "
            f"{tail} to {head} and batch 1: is it another version?"
        )

    def check_ack(self, ack: Ack) -> BdrError | None:
        """The error of an ACK of this session, or None."""
        if self._order.window.is_possible(accepted=ack.accepted, durable=ack.durable):
            return None
        return RefusedError(
            f"the target acknowledges batch {ack.durable} of {ack.accepted} accepted, but only "
            f"{self._order.dispatched} were sent: is it another version?"
        )

    def announce(self, welcome: Welcome) -> list[Announce]:
        """Events for the operator at the start of a session."""
        facts: Facts = {
            "epoch": welcome.epoch,
            "slot": welcome.slot,
            "condition": welcome.condition.name,
        }
        announced = [Announce("streaming", facts)]
        assumption = self._assumption(welcome)
        if assumption is not None:
            announced.append(Announce("assume-clean", {"assumption": assumption.value}))
        return announced

    def _assumption(self, welcome: Welcome) -> Assumption | None:
        """Whether `assume_clean` was applied, the first time that it is relevant; else None."""
        if not self._assume_clean or self._is_assumption_told:
            return None
        self._is_assumption_told = True
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
