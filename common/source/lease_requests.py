# SPDX-License-Identifier: GPL-2.0-only
"""Pending requests for leases, in order.

A scanner repeats its request until it is answered, so requests may be dropped. A command sends its
request once.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdr.common.source.events import Peer
from bdr.common.wire.scan import Acquire, VerifyBegin

SCANNER_SEEN_S = 5.0
"""A scanner whose last request is younger counts as connected."""

LeaseRequest = Acquire | VerifyBegin


class LeaseRequests:
    """See the module's docstring. A repeated request keeps its position."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Peer, int, type], LeaseRequest] = {}
        self._seen_at: dict[Peer, float] = {}

    def __iter__(self) -> Iterator[tuple[Peer, LeaseRequest]]:
        return iter([(peer, request) for (peer, *_), request in self._waiting.items()])

    def put(self, peer: Peer, request: LeaseRequest, *, now_at: float) -> None:
        """Adds a request, unless it is a repetition."""
        if isinstance(request, Acquire):
            self._seen_at[peer] = now_at
        self._waiting.setdefault(_key(peer, request), request)

    def put_back(self, peer: Peer, request: VerifyBegin) -> None:
        """Its lease was closed before it was granted: the request is pending again."""
        self._waiting[_key(peer, request)] = request

    def remove(self, peer: Peer, request: LeaseRequest) -> None:
        """Removes an answered request."""
        del self._waiting[_key(peer, request)]

    def forget_scanners(self) -> None:
        """An unidentified scanner was lost; live ones repeat their requests."""
        self._waiting = {
            key: request
            for key, request in self._waiting.items()
            if isinstance(request, VerifyBegin)
        }
        self._seen_at.clear()

    def scanners(self, now_at: float) -> int:
        """Number of connected scanners."""
        return sum(now_at - seen_at < SCANNER_SEEN_S for seen_at in self._seen_at.values())


def _key(peer: Peer, request: LeaseRequest) -> tuple[Peer, int, type]:
    return peer, request.request, type(request)
