# SPDX-License-Identifier: GPL-2.0-only
"""When a connection between two hosts is dead: no byte of it moves any more.

How long a frame or an answer takes says nothing, since both share the line with what is queued
before them; libzmq's heartbeats would end a connection within a frame that takes longer than their
timeout, and what is sent again takes as long. Without anything to send nothing is judged: the
kernel's keepalive probes do that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LifeSettings:
    """Limits."""

    silent_s: float = 30.0
    """The peer's TCP has answered nothing at all to what was sent."""
    stuck_s: float = 120.0
    """It answers, and takes no byte: its process is stopped, or a proxy has lost its other side."""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What TCP has of a connection.

    Attributes:
        is_waiting: something was not sent yet, or not acknowledged.
        heard_s: time since anything arrived from the peer, data or a mere acknowledgement.
        acked_bytes: since the connection began.
        received_bytes: the same.
    """

    is_waiting: bool
    heard_s: float
    acked_bytes: int
    received_bytes: int


class Life:
    """Judges one connection, by what TCP has of it from time to time."""

    def __init__(self, settings: LifeSettings) -> None:
        self.received_bytes = 0
        self._settings = settings
        self._acked_bytes = 0
        self._waiting_since_at: float | None = None
        """Since when something waits for an acknowledgement; None: nothing does."""
        self._moved_at = 0.0
        """When something was acknowledged last, or began to wait."""

    def postpone(self, stood_still_s: float) -> None:
        """The process that judges was suspended: its own pause does not count."""
        self._moved_at += stood_still_s
        if self._waiting_since_at is not None:
            self._waiting_since_at += stood_still_s

    def is_dead(self, info: TcpInfo, now_at: float) -> bool:
        """Whether nothing can be expected of it any more."""
        self.received_bytes = info.received_bytes
        if not info.is_waiting:
            self._waiting_since_at = None
            return False
        if self._waiting_since_at is None:
            self._waiting_since_at = self._moved_at = now_at
        if info.acked_bytes != self._acked_bytes:
            self._moved_at = now_at
        self._acked_bytes = info.acked_bytes
        silent_s = min(info.heard_s, now_at - self._waiting_since_at)
        return (
            silent_s >= self._settings.silent_s or now_at - self._moved_at >= self._settings.stuck_s
        )
