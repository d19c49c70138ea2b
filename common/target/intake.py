# SPDX-License-Identifier: GPL-2.0-only
"""Reorders and validates batches.

- A batch of another stream or epoch, or one already accepted, is dropped unchecked.
- The next batch in order is validated (digest, position, slots) and becomes a job. A later one is
  kept in a bounded buffer.
- A valid batch that must wait for a hook (`before_resync`) is held, and offered again.
- A damaged or misplaced batch breaks the session with a REWIND: the source sends HELLO again. A
  batch that exceeds the device is refused permanently.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bdr.common.errors import InvalidSlotsError
from bdr.common.facts import Facts
from bdr.common.target.before_resync import BeforeResync
from bdr.common.target.events import Action, Apply, LogEvent, Send
from bdr.common.target.extents import plan
from bdr.common.target.reorder import ReorderBuffer
from bdr.common.target.replica import Replica
from bdr.common.target.session import Accepted, Broken, Session
from bdr.common.wire.batch import Batch, BatchKind
from bdr.common.wire.control import Refused, Rewind
from bdr.common.wire.reasons import RefusedReason, RewindReason


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """Limits."""

    reorder_batches: int = 256
    """Most batches that one may be ahead of the next and still be kept."""
    reorder_bytes: int = 64 << 20


class Intake:
    """See the module's docstring.

    Args:
        session: whose batches are accepted.
        replica: turns them into jobs.
        hook: that some of them must wait for.
        dropped: counts dropped batches, by reason.
    """

    def __init__(
        self,
        *,
        session: Session,
        replica: Replica,
        hook: BeforeResync,
        dropped: Counter[str],
        settings: IntakeSettings,
    ) -> None:
        self._held: Batch | None = None
        self.reorder = ReorderBuffer(batches=settings.reorder_batches, size=settings.reorder_bytes)
        self._session = session
        self._replica = replica
        self._hook = hook
        self._dropped = dropped
        self._actions: list[Action] = []

    @property
    def is_holding(self) -> bool:
        """Whether a batch waits for the hook."""
        return self._held is not None

    def tick(self, now_at: float) -> list[Action]:
        """Time passes: a hook that failed may be repeated."""
        if self.is_holding:
            self._hook.tick(now_at)
        return self.go_on()

    def forget(self) -> None:
        """Drops the batches in the buffer."""
        self.reorder.clear()
        self._held = None

    def take(self, batch: Batch) -> list[Action]:
        """Takes a well-formed batch, whose content is not validated yet."""
        actions = self._actions = []
        session, record, header = self._session, self._replica.expected, batch.header
        if not session.is_open or (header.stream, header.epoch) != (record.stream, record.epoch):
            self._dropped["stale"] += 1
        elif header.number <= session.accepted or self._has(header.number):
            self._dropped["duplicate"] += 1
        elif header.number > session.accepted + 1:
            self._keep(batch)
        else:
            self._accept_from(batch)
        return actions

    def go_on(self) -> list[Action]:
        """What follows from an event of the hook."""
        actions = self._actions = self._hook.take_actions()
        if self._hook.is_over:
            batch, self._held = self._held, None
            self._accept_from(batch)
        return actions

    def _has(self, number: int) -> bool:
        held = self._held
        return number in self.reorder or (held is not None and held.header.number == number)

    def _accept_from(self, batch: Batch | None) -> None:
        """This batch, and those in the buffer that follow."""
        while batch is not None and self._session.is_open:
            self._accept(batch)
            batch = self.reorder.take(self._session.accepted + 1)

    def _keep(self, batch: Batch) -> None:
        wanted = self._session.accepted + 1
        if not self.reorder.put(batch, wanted=wanted):
            text = f"batch {wanted} is missing while {len(self.reorder)} later ones wait"
            self._rewind(RewindReason.MISSING, text)

    def _accept(self, batch: Batch) -> None:
        header, record = batch.header, self._replica.expected
        if not batch.is_intact():
            self._dropped["corrupt"] += 1
            self._rewind(RewindReason.DAMAGED, f"batch {header.number} is damaged")
            return
        if header.first != record.slot:
            text = f"batch {header.number} begins at slot {header.first}, wanted {record.slot}"
            self._rewind(RewindReason.MISPLACED, text)
            return
        try:
            extents = plan(batch.headers, batch.payload, device_sectors=record.device_sectors)
        except InvalidSlotsError as error:
            self._refuse(str(error))
            return
        if not self._hook.lets_pass(self._replica.departure(header)):
            self._held = batch
            self._actions += self._hook.take_actions()
            return
        job = self._replica.accept(batch, extents)
        if header.kind is BatchKind.MARKER:
            facts: Facts = {
                "condition": job.record.condition.name,
                "slot": header.end,
            }
            self._actions.append(LogEvent("condition", facts))
        self._actions.append(Apply(job))
        self._session.fire(Accepted(job.number))

    def _rewind(self, reason: RewindReason, text: str) -> None:
        epoch = self._replica.record.epoch
        self._actions.append(LogEvent("rewind", {"epoch": epoch, "text": text}))
        self._break(Rewind(epoch, reason, text))

    def _refuse(self, text: str) -> None:
        reason = RefusedReason.SLOTS
        self._dropped[f"refused-{reason.name.lower()}"] += 1
        self._actions.append(LogEvent("refused", {"reason": reason.name, "text": text}))
        self._break(Refused(self._session.attempt, reason, 0, text))

    def _break(self, close_reason: Rewind | Refused) -> None:
        self._session.fire(Broken(close_reason))
        self.forget()
        self._actions.append(Send(self._session.peer, close_reason))
