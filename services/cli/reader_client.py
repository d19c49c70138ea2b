# SPDX-License-Identifier: GPL-2.0-only
"""Asking a volume's reader on a user's behalf: how far a scan is, and what to compare."""

from __future__ import annotations

import time
from dataclasses import dataclass

import zmq

from bdr.common.errors import BdrError, UsageError
from bdr.common.host.config import Config, Source
from bdr.common.source import scheduler
from bdr.common.wire import control as wire
from bdr.services.cli import options as cli_options
from bdr.services.runtime import options, sockets
from bdr.services.runtime.loop import Socket

ANSWER_S = 5.0
"""A reader answers what it knows within this."""


class NoPeerError(BdrError):
    """Reader or target do not answer."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Where a volume's source side is."""

    volume: str
    chardev: str
    underdev: str | None
    address: str
    port: int
    run_dir: str


def place_of(config: Config, name: str | None) -> SourcePlace:
    """The source that is meant: the only one, without a name.

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
    return SourcePlace(
        name,
        volume.chardev,
        volume.underdev,
        volume.address,
        volume.port,
        config.run_dir_of(name),
    )


class OfficeClient:
    """One socket to the reader and one to the target; for one thread."""

    def __init__(self, place: SourcePlace) -> None:
        self._place = place
        self._context: zmq.Context[Socket] = zmq.Context()
        self._office = sockets.ticket_client(self._context)
        self._office.connect(sockets.endpoint(place.run_dir, "requests"))
        self._control = sockets.control_client(self._context)
        self._control.connect(options.tcp(place.address, place.port + 1))
        self._number = 0

    def close(self) -> None:
        """Also makes calls in other threads end."""
        self._context.destroy(linger=0)

    def number(self) -> int:
        """Another one each time."""
        self._number += 1
        return self._number

    def report(self) -> scheduler.Reported:
        """How far the scan is.

        Raises:
            NoPeerError: no reader runs.
        """
        answer = self.ask(scheduler.Report(self.number()))
        assert isinstance(answer, scheduler.Reported)
        return answer

    def mark(self, ranges: list[tuple[int, int]]) -> scheduler.Reported:
        """Has these ranges repaired; none means everything. Returns how far it is then."""
        self.ask(scheduler.MarkDirty(self.number(), wire.encode_ranges(ranges)))
        return self.report()

    def ask(self, request: scheduler.Request, timeout_s: float = ANSWER_S) -> scheduler.Answer:
        """Sends a request and waits for its answer.

        Raises:
            NoPeerError: there is none in time.
        """
        deadline_s = time.monotonic() + timeout_s
        wanted = request.ticket if isinstance(request, scheduler.Conclude) else _ask_of(request)
        if not self._wait(self._office, zmq.POLLOUT, deadline_s):
            raise NoPeerError(
                f"volume {self._place.volume}: no reader answers in {self._place.run_dir}; "
                "is the volume running? See `bdr status`"
            )
        self._office.send(scheduler.encode(request))
        while self._wait(self._office, zmq.POLLIN, deadline_s):
            answer = scheduler.decode_answer(self._office.recv())
            match answer:
                case scheduler.Concluded(ticket=number) | scheduler.Dropped(ticket=number):
                    is_mine = isinstance(request, scheduler.Conclude) and number == wanted
                case scheduler.Work(ask=number) | scheduler.Reported(ask=number):
                    is_mine = not isinstance(request, scheduler.Conclude) and number == wanted
                case _:
                    is_mine = False
            if is_mine:
                return answer
        raise NoPeerError(
            f"volume {self._place.volume}: the reader has no answer within {timeout_s:g} s; is the "
            "target connected? See `bdr status`"
        )

    def send_checksums(self, message: wire.Checksums) -> None:
        """Asks the target; `receive_digests` gets the answer.

        Raises:
            NoPeerError: it is not connected.
        """
        if not self._wait(self._control, zmq.POLLOUT, time.monotonic() + ANSWER_S):
            raise NoPeerError(
                f"volume {self._place.volume}: no connection to the target "
                f"{self._place.address}, port {self._place.port + 1}"
            )
        self._control.send(wire.encode_message(message))

    def receive_digests(self, request: int, timeout_s: float = 30.0) -> wire.Digests:
        """The target's answer to this request.

        Raises:
            NoPeerError: there is none in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._wait(self._control, zmq.POLLIN, deadline_s):
            answer = wire.decode_message(self._control.recv())
            if isinstance(answer, wire.Digests) and answer.request == request:
                return answer
        raise NoPeerError(f"volume {self._place.volume}: the target sends no checksums")

    def _wait(self, socket: Socket, events: int, deadline_s: float) -> bool:
        return bool(socket.poll(max(0, int((deadline_s - time.monotonic()) * 1000)), events))


def _ask_of(request: scheduler.Request) -> int:
    assert isinstance(request, scheduler.Examine | scheduler.MarkDirty | scheduler.Report)
    return request.ask
