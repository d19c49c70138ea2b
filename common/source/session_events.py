# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a source's session, and what it asks of its node."""

from __future__ import annotations

from dataclasses import dataclass

from bdr.common.errors import BdrError
from bdr.common.source.events import Announce, Send, Stop
from bdr.common.wire.control import Welcome


@dataclass(frozen=True, slots=True)
class Lost:
    """Batches in flight may be lost."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A permanent error."""

    error: BdrError


@dataclass(frozen=True, slots=True)
class BadWelcome:
    """A WELCOME to the last HELLO that is invalid for this source."""

    error: BdrError


@dataclass(frozen=True, slots=True)
class OtherHistory:
    """A WELCOME to the last HELLO, to a history that is not this source's: a batch of it is
    another one."""

    epoch: int


# What the node is to do, besides actions of its own.


@dataclass(frozen=True, slots=True)
class DropInFlight:
    """Batches in flight may be lost."""


@dataclass(frozen=True, slots=True)
class SendHello:
    """Send a HELLO."""

    attempt: int


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send a PING."""


@dataclass(frozen=True, slots=True)
class SessionBegan:
    """Batches may be sent, from the position in this WELCOME."""

    welcome: Welcome


Outcome = DropInFlight | SendHello | SendPing | SessionBegan | Announce | Send | Stop
