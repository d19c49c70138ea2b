# SPDX-License-Identifier: GPL-2.0-only
"""The hook that runs before a usable replica is changed to something else, as by a snapshot.

A batch is held until the hook has ended: one that makes a usable replica INCONSISTENT, or
the first one of a source that does not resume. The hook runs when everything accepted
before is applied, and nothing is accepted while it runs: it sees the replica as its record
says. What it has done is not remembered: it runs at least once.

- IDLE: no batch is held.
- WAITING: one is, until everything accepted before it is durable.
- RUNNING: the hook runs; every batch is held.
- FAILED: it failed, or took too long; it will run again.
- DONE: it has run for the present replica; or it failed, and replication is to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from bdr.common.facts import Facts
from bdr.common.machine import IGNORED, Machine, Story, Table, goes
from bdr.common.target.events import Action, Durable, HookEnded, LogEvent, RunHook
from bdr.common.target.hook import Cause, HookOutcome, HookSettings
from bdr.common.target.replica import Replica


class HookState(Enum):
    """See the module's docstring."""

    IDLE = auto()
    WAITING = auto()
    RUNNING = auto()
    FAILED = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Offered:
    """The next batch in order is valid; with a cause it must wait for the hook."""

    cause: Cause | None


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The hook failed long enough ago."""


class BeforeResync(Machine[HookState]):
    """See the module's docstring.

    Args:
        settings: None: there is no hook.
        replica: that it is to see.
    """

    def __init__(self, settings: HookSettings | None, replica: Replica, story: Story) -> None:
        super().__init__(HookState.IDLE, story)
        self._failures = 0
        """Since it was last due."""
        self._since_at = 0.0
        self._settings = settings or HookSettings()
        self._is_configured = settings is not None
        self._replica = replica
        self._cause = Cause.COMPARE
        self._waits_for = 0
        """This job is to be durable."""
        self._retry_at = 0.0
        self._actions: list[Action] = []

    def take_actions(self) -> list[Action]:
        """What follows from the events since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def lets_pass(self, cause: Cause | None) -> bool:
        """Whether the next batch may be accepted; else it is to be offered again later."""
        if not self._is_configured:
            return True
        self.fire(Offered(cause))
        return self.state is HookState.IDLE

    @property
    def is_over(self) -> bool:
        """Whether a batch that was held is to be offered again."""
        return self.state is HookState.DONE

    @property
    def held_s(self) -> float | None:
        """For how long it has been due and has not ended well; None: it is not due."""
        is_due = self.state not in (HookState.IDLE, HookState.DONE)
        return self._replica.now_at - self._since_at if is_due else None

    @property
    def failures(self) -> int:
        """How often it has failed since it became due."""
        return 0 if self.held_s is None else self._failures

    def tick(self, now_at: float) -> None:
        """Time passes, while a batch is held."""
        if self.state is HookState.FAILED and now_at >= self._retry_at:
            self.fire(RetryDue())

    # Handlers.

    def _on_offered(self, offered: Offered) -> None:
        if offered.cause is None:
            return
        self._cause, self._failures = offered.cause, 0
        self._since_at = self._replica.now_at
        jobs = self._replica.jobs
        if jobs.waiting:
            self._waits_for = jobs.last
            self.state = HookState.WAITING
        else:
            self._begin()

    def _on_durable(self, durable: Durable) -> None:
        if durable.job >= self._waits_for:
            self._begin()

    def _on_offered_again(self, offered: Offered) -> None:
        if offered.cause is None:
            self.state = HookState.IDLE

    def _on_retry(self, _: RetryDue) -> None:
        self._begin()

    def _on_ended(self, ended: HookEnded) -> None:
        is_good = ended.outcome is HookOutcome.GOOD
        if is_good or not self._settings.is_required:
            self.state = HookState.DONE
        else:
            self.state = HookState.FAILED
            self._retry_at = self._replica.now_at + self._settings.retry_s
        if not is_good:
            self._failures += 1
        facts: Facts = {"outcome": ended.outcome.value, "text": ended.text}
        self._actions.append(LogEvent("before-resync-ended", facts, is_warning=not is_good))

    def _on_passed(self, _: Offered) -> None:
        self.state = HookState.IDLE

    def _begin(self) -> None:
        self.state = HookState.RUNNING
        record = self._replica.record
        facts: Facts = {"cause": self._cause.value, "condition": record.condition.name}
        facts |= {"stream": record.stream.hex(), "slot": record.slot, "changes": record.changes}
        self._actions += [LogEvent("before-resync", facts), RunHook(self._cause, record)]

    TABLE: ClassVar[Table[HookState]] = {
        HookState.IDLE: {
            Offered: goes(_on_offered, HookState.IDLE, HookState.WAITING, HookState.RUNNING),
            Durable: IGNORED,
        },
        HookState.WAITING: {Durable: goes(_on_durable, HookState.WAITING, HookState.RUNNING)},
        HookState.RUNNING: {
            Offered: IGNORED,
            Durable: IGNORED,
            HookEnded: goes(_on_ended, HookState.DONE, HookState.FAILED),
        },
        HookState.FAILED: {
            Offered: goes(_on_offered_again, HookState.FAILED, HookState.IDLE),
            Durable: IGNORED,
            RetryDue: goes(_on_retry, HookState.RUNNING),
        },
        HookState.DONE: {Offered: goes(_on_passed, HookState.IDLE), Durable: IGNORED},
    }
