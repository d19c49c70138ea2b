# SPDX-License-Identifier: GPL-2.0-only
"""Client of a volume's reader: progress of a scan, and marking of ranges."""

from __future__ import annotations

import time
from dataclasses import dataclass

import zmq

from bdr.common.errors import BdrError, UsageError
from bdr.common.host.config import Config
from bdr.common.host.tables import Source
from bdr.common.scan.plan import Chunk
from bdr.common.wire.scan import (
    Query,
    Remembered,
    Resync,
    ResyncStatus,
    VerifyFound,
    decode_answer,
    encode_request,
)
from bdr.services.cli import options as cli_options
from bdr.services.runtime import sockets
from bdr.services.runtime.loop import Socket

ANSWER_S = 5.0
"""Timeout for an answer of the reader."""


class NoPeerError(BdrError):
    """The reader or the target does not answer."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Devices and addresses of a volume's source."""

    volume: str
    chardev: str
    underdev: str | None
    address: str
    port: int
    run_dir: str


def location_of(config: Config, name: str | None) -> SourceLocation:
    """The source of this name, or the only one.

    Raises:
        UsageError: there is none of that name, or it is a target.
    """
    sources = [key for key, volume in config.volume.items() if isinstance(volume, Source)]
    if name is None and len(sources) != 1:
        raise UsageError(f"found {len(sources)} sources in the configuration; name one of them")
    name = cli_options.chosen(config, name or sources[0])
    volume = config.volume[name]
    if not isinstance(volume, Source):
        raise UsageError(f"volume {name}: found a target; run this on its source host")
    return SourceLocation(
        name,
        volume.chardev,
        volume.underdev,
        volume.address,
        volume.port,
        config.run_dir_of(name),
    )


class ReaderClient:
    """A socket to the reader; not thread-safe."""

    def __init__(self, location: SourceLocation) -> None:
        self._place = location
        self._context: zmq.Context[Socket] = zmq.Context()
        self._reader = sockets.request_client(self._context)
        self._reader.connect(sockets.endpoint(location.run_dir, "requests"))
        self._number = 0

    def close(self) -> None:
        """Closes the socket."""
        self._context.destroy(linger=0)

    def report(self) -> ResyncStatus:
        """The progress of the scan.

        Raises:
            NoPeerError: no reader runs.
        """
        answer = self._request(Query(self._next_number()))
        assert isinstance(answer, ResyncStatus)
        return answer

    def mark(self, ranges: list[Chunk]) -> ResyncStatus:
        """Marks these ranges to be repaired, an empty list means everything; returns the progress.

        Raises:
            NoPeerError: no reader runs.
        """
        self._request(Resync(self._next_number(), ranges))
        return self.report()

    def remember(
        self,
        *,
        ended_utc: int,
        covered: list[Chunk],
        ignored: list[Chunk],
        differing: list[Chunk],
        compared_bytes: int,
        differing_bytes: int,
    ) -> None:
        """Has the source remember what a verification has found; it is durable then.

        Raises:
            NoPeerError: no reader runs.
        """
        number = self._next_number()
        self._request(
            VerifyFound(
                number, ended_utc, covered, ignored, differing, compared_bytes, differing_bytes
            )
        )

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _request(self, request: Query | Resync | VerifyFound) -> ResyncStatus | Remembered:
        deadline_at = time.monotonic() + ANSWER_S
        if not self._wait(zmq.POLLOUT, deadline_at):
            raise NoPeerError(
                f"volume {self._place.volume}: no reader answers in {self._place.run_dir}; "
                "is the volume running? See `bdr status`"
            )
        self._reader.send(encode_request(request))
        while self._wait(zmq.POLLIN, deadline_at):
            answer = decode_answer(self._reader.recv())
            if isinstance(answer, ResyncStatus | Remembered) and answer.request == request.request:
                return answer
        raise NoPeerError(
            f"volume {self._place.volume}: the reader has no answer within {ANSWER_S:g} s; see "
            "`bdr status`"
        )

    def _wait(self, events: int, deadline_at: float) -> bool:
        left_ms = max(0, int((deadline_at - time.monotonic()) * 1000))
        return bool(self._reader.poll(left_ms, events))
