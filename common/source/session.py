# SPDX-License-Identifier: GPL-2.0-only
"""The source's session with its target: handshake, timeouts, losses, pauses.

- OFFLINE: no connection to the target. LINK UP -> send HELLO.
- GREETING: HELLO sent. WELCOME of the same attempt -> STREAMING. REFUSED -> PAUSED, or STOPPED if
  it is permanent. Timeout -> HELLO again.
- STREAMING: batches may be sent. A rewind, a loss, or a timeout -> HELLO again: at once the first
  time, after increasing pauses if nothing became durable since.
- PAUSED: until the pause has elapsed, then HELLO.
- LINK DOWN, in any state -> OFFLINE. A REFUSED that arrives late is still handled.
- STOPPED: a permanent error was reported; final state.

Whenever batches in flight may be lost, the outcome includes `DropInFlight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from bdr.common.errors import RefusedError
from bdr.common.facts import Facts
from bdr.common.machine import IGNORED, Machine, Story, Table, goes, stays
from bdr.common.source.events import Announce, LinkDown, LinkUp, Send, Stop, Tick
from bdr.common.source.session_events import (
    BadWelcome,
    DropInFlight,
    Failed,
    Lost,
    OtherHistory,
    Outcome,
    SendHello,
    SendPing,
    SessionBegan,
)
from bdr.common.wire.control import Disown, Refused, Rewind, Welcome
from bdr.common.wire.reasons import RefusedReason

_DOUBLINGS_MAX = 16


class Phase(Enum):
    """See the module's docstring."""

    OFFLINE = auto()
    GREETING = auto()
    STREAMING = auto()
    PAUSED = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Timeouts and pauses."""

    hello_s: float = 1.0
    """Before a HELLO is repeated; doubles."""
    hello_max_s: float = 60.0
    """An answer may take so long: it comes to the last HELLO only."""
    ping_s: float = 0.75
    answer_s: float = 10.0
    """Without a message from the target for this time, it is shown as not answering."""
    silence_s: float = 60.0
    """The same, until HELLO is sent again; doubles. The target's process does not run, or something
    on the way swallows what it says: the end of a connection is noticed earlier."""
    pause_min_s: float = 0.25
    pause_max_s: float = 10.0


class Session(Machine[Phase]):
    """See the module's docstring.

    Args:
        volume: for messages.
    """

    def __init__(
        self,
        *,
        volume: str,
        settings: SessionSettings,
        story: Story,
    ) -> None:
        super().__init__(Phase.OFFLINE, story)
        self.epoch = 0
        self.consecutive_losses = 0
        """Losses since a batch last became durable."""
        self.outcome: list[Outcome] = []
        """What the last events ask for; the node takes it, and empties it."""
        self.refused: Refused | None = None
        """The target's last refusal, while nothing else came of a greeting."""
        self._volume = volume
        self._settings = settings
        self._is_confirming = False
        self.attempt = 0
        """Number of the last HELLO."""
        self._hellos = 0
        self._now_at = 0.0
        self._heard_at = 0.0
        self._hello_at = 0.0
        self._ping_at = 0.0
        self._paused_until_at = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether the target has answered lately, while batches may be sent."""
        silent_s = self._now_at - self._heard_at
        return self.state is Phase.STREAMING and silent_s <= self._settings.answer_s

    def heard(self) -> None:
        """A message arrived from the target."""
        self._heard_at = self._now_at

    def progressed(self) -> None:
        """A batch became durable."""
        self.consecutive_losses = 0

    # Handlers.

    def _on_link_up(self, _: LinkUp) -> None:
        self._hellos = 0
        self._greet()

    def _on_link_down(self, _: LinkDown) -> None:
        self.outcome.append(DropInFlight())
        self.state = Phase.OFFLINE

    def _pass_time(self, tick: Tick) -> None:
        self._now_at = tick.now_at

    def _on_tick_greeting(self, tick: Tick) -> None:
        self._now_at = tick.now_at
        if self._now_at >= self._hello_at:
            self._greet()

    def _on_tick_paused(self, tick: Tick) -> None:
        self._now_at = tick.now_at
        if self._now_at >= self._paused_until_at:
            self._greet()

    def _on_tick_streaming(self, tick: Tick) -> None:
        self._now_at = tick.now_at
        doublings = min(self.consecutive_losses, _DOUBLINGS_MAX)
        if self._now_at - self._heard_at > self._settings.silence_s * 2**doublings:
            self._back_off("the target is silent")
        elif self._now_at >= self._ping_at:
            self._ping_at = self._now_at + self._settings.ping_s
            self.outcome.append(SendPing())

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.attempt != self.attempt:
            return
        self.state = Phase.STREAMING
        self.refused = None
        self._is_confirming = False
        self.epoch = welcome.epoch
        self._hellos = 0
        self._ping_at = self._now_at + self._settings.ping_s
        self.outcome.append(SessionBegan(welcome))

    def _on_bad_welcome(self, bad: BadWelcome) -> None:
        self._fail(Failed(bad.error))

    def _on_refused(self, refused: Refused) -> None:
        if refused.attempt != self.attempt:
            return
        if refused.reason.is_permanent:
            text = f"the target refused volume {self._volume}: {refused.text}"
            self._fail(Failed(RefusedError(text)))
            return
        is_greeting = self.state in (Phase.GREETING, Phase.STREAMING)
        if refused.nonce and not self._is_confirming:
            # Of a late HELLO, perhaps: only one that brings the nonce back is of now.
            if is_greeting:
                self._is_confirming = True
                self._greet()
            return
        self.refused = refused
        if is_greeting:
            self._is_confirming = False
            self._pause(f"the target refused for now: {refused.text}")

    def _on_other_history(self, other: OtherHistory) -> None:
        text = (
            "a batch that the target has of this stream is not what the ring holds there: "
            "this source was reverted or cloned; `bdr demote --give-up` on the target's host "
            "gives up what only the target has"
        )
        self.refused = Refused(self.attempt, RefusedReason.TWO_HISTORIES, 0, text)
        self.outcome.append(Send(Disown(other.epoch)))
        self._pause(text)

    def _on_rewind(self, rewind: Rewind) -> None:
        if rewind.epoch == self.epoch:
            self._back_off(rewind.text)

    def _on_lost(self, lost: Lost) -> None:
        self._back_off(lost.why)

    def _fail(self, failed: Failed) -> None:
        self.outcome += [DropInFlight(), Stop(failed.error)]
        self.state = Phase.STOPPED

    # Steps.

    def _greet(self) -> None:
        self.attempt += 1
        # Doubles, so that the answer to an earlier attempt can arrive first.
        self._hello_at = self._now_at + min(
            self._settings.hello_s * 2 ** min(self._hellos, _DOUBLINGS_MAX),
            self._settings.hello_max_s,
        )
        self._hellos += 1
        self.outcome += [DropInFlight(), SendHello(self.attempt)]
        self.state = Phase.GREETING

    def _back_off(self, why: str) -> None:
        """Sends HELLO again, after increasing pauses while nothing becomes durable."""
        if self.consecutive_losses == 0:
            self.consecutive_losses = 1
            self.outcome.append(Announce("rewind", {"epoch": self.epoch, "reason": why}))
            self._greet()
        else:
            self._pause(why)

    def _pause(self, why: str) -> None:
        pause_s = min(
            self._settings.pause_min_s * 2 ** min(self.consecutive_losses, _DOUBLINGS_MAX),
            self._settings.pause_max_s,
        )
        self.consecutive_losses += 1
        self._paused_until_at = self._now_at + pause_s
        facts: Facts = {
            "epoch": self.epoch,
            "reason": why,
            "pause_ms": int(pause_s * 1000),
        }
        self.outcome += [DropInFlight(), Announce("pause", facts)]
        self.state = Phase.PAUSED

    TABLE: ClassVar[Table[Phase]] = {
        Phase.OFFLINE: {
            Tick: stays(_pass_time),
            LinkUp: goes(_on_link_up, Phase.GREETING),
            LinkDown: stays(_on_link_down),
            Welcome: IGNORED,
            BadWelcome: IGNORED,
            OtherHistory: IGNORED,
            Refused: goes(_on_refused, Phase.OFFLINE, Phase.STOPPED),
            Rewind: IGNORED,
            Failed: goes(_fail, Phase.STOPPED),
        },
        Phase.GREETING: {
            Tick: stays(_on_tick_greeting),
            LinkUp: stays(_on_link_up),
            LinkDown: goes(_on_link_down, Phase.OFFLINE),
            Welcome: goes(_on_welcome, Phase.GREETING, Phase.STREAMING),
            BadWelcome: goes(_on_bad_welcome, Phase.STOPPED),
            OtherHistory: goes(_on_other_history, Phase.PAUSED),
            Refused: goes(_on_refused, Phase.GREETING, Phase.PAUSED, Phase.STOPPED),
            Rewind: IGNORED,
            Failed: goes(_fail, Phase.STOPPED),
        },
        Phase.STREAMING: {
            Tick: goes(_on_tick_streaming, Phase.STREAMING, Phase.GREETING, Phase.PAUSED),
            LinkUp: goes(_on_link_up, Phase.GREETING),
            LinkDown: goes(_on_link_down, Phase.OFFLINE),
            Welcome: IGNORED,
            BadWelcome: IGNORED,
            OtherHistory: IGNORED,
            Refused: goes(
                _on_refused, Phase.STREAMING, Phase.GREETING, Phase.PAUSED, Phase.STOPPED
            ),
            Rewind: goes(_on_rewind, Phase.STREAMING, Phase.GREETING, Phase.PAUSED),
            Lost: goes(_on_lost, Phase.GREETING, Phase.PAUSED),
            Failed: goes(_fail, Phase.STOPPED),
        },
        Phase.PAUSED: {
            Tick: goes(_on_tick_paused, Phase.PAUSED, Phase.GREETING),
            LinkUp: goes(_on_link_up, Phase.GREETING),
            LinkDown: goes(_on_link_down, Phase.OFFLINE),
            Welcome: IGNORED,
            BadWelcome: IGNORED,
            OtherHistory: IGNORED,
            Refused: goes(_on_refused, Phase.PAUSED, Phase.STOPPED),
            Rewind: IGNORED,
            Failed: goes(_fail, Phase.STOPPED),
        },
        # The node takes no more events.
        Phase.STOPPED: {},
    }
