# SPDX-License-Identifier: GPL-2.0-only
"""A host with several addresses is reached by any; a port of another kind is tried seldom."""

from __future__ import annotations

import socket as system
import time
from collections.abc import Iterator

import pytest
import zmq

from bdr.services.runtime import dialer as dialers
from bdr.services.runtime import sockets
from bdr.services.runtime.dialer import Dialer
from bdr.services.runtime.loop import Loop, Socket, nothing

DEADLINE_S = 20.0


class Desk:
    """A loop with a sender's socket, and what its dialer said."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ups = self.downs = 0
        self.servers: list[Socket] = []

    def serve(self, server: Socket, address: str = "127.0.0.1") -> int:
        """Binds to a free port, and returns it."""
        self.servers.append(server)
        port = server.bind_to_random_port(f"tcp://{address}", min_port=20000, max_port=32000)
        return int(port)

    def dial(self, endpoint: str) -> Dialer:
        dialer = Dialer(self.loop, endpoint)
        dialer.dial(sockets.data_sender(self.loop.context), up=self._up, down=self._down)
        return dialer

    def _up(self) -> None:
        self.ups += 1
        self.loop.stop()

    def _down(self) -> None:
        self.downs += 1

    def run(self, seconds: float) -> None:
        """Until it is up, but no longer than this."""
        end_at = time.monotonic() + seconds

        def tick(now_at: float) -> None:
            if now_at >= end_at:
                self.loop.stop()

        self.loop.run(tick=tick, tick_ms=50, after=nothing)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.loop.close()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str] | OSError) -> list[str]:
    """Has names resolve to these, one after the other; returns the names that were asked for."""
    real, asked, left = system.getaddrinfo, [], list(answers)

    def getaddrinfo(host: str, port: object, *more: int, **flags: int) -> object:
        if "test" not in host or flags.get("flags") == system.AI_NUMERICHOST:
            return real(host, port, *more, **flags)  # type: ignore[arg-type]
        asked.append(host)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, OSError):
            raise answer
        return [(0, 0, 0, "", (address, 0)) for address in answer]

    monkeypatch.setattr(system, "getaddrinfo", getaddrinfo)
    return asked


def test_name_with_ipv6_and_ipv4_that_is_served_on_ipv4_only_is_reached(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolves_to(monkeypatch, ["::1", "127.0.0.1"])
    port = desk.serve(sockets.data_receiver(desk.loop.context))
    desk.dial(f"tcp://target.test:{port}")
    desk.run(DEADLINE_S)
    assert desk.ups == 1
    assert asked == ["target.test"]


def test_address_that_answers_nothing_is_left_for_the_next(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialers, "ATTEMPT_S", 0.3)
    resolves_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    port = desk.serve(sockets.data_receiver(desk.loop.context))
    with system.create_server(("127.0.0.2", port)):  # accepts, and says nothing
        desk.dial(f"tcp://target.test:{port}")
        desk.run(DEADLINE_S)
    assert desk.ups == 1


def test_name_that_is_not_known_yet_or_moves_is_asked_for_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = system.gaierror(system.EAI_NONAME, "not known")
    asked = resolves_to(monkeypatch, unknown, ["127.0.0.3"], ["127.0.0.1"])
    port = desk.serve(sockets.data_receiver(desk.loop.context))
    desk.dial(f"tcp://target.test:{port}")
    desk.run(DEADLINE_S)
    assert desk.ups == 1
    assert len(asked) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_number_is_not_resolved(desk: Desk, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    asked = resolves_to(monkeypatch, ["127.0.0.9"])
    port = desk.serve(sockets.data_receiver(desk.loop.context), host)
    desk.dial(f"tcp://{host}:{port}")
    desk.run(DEADLINE_S)
    assert desk.ups == 1
    assert asked == []


def test_port_of_another_kind_is_tried_seldom_and_said(desk: Desk) -> None:
    """As when the two ports are swapped."""
    port = desk.serve(sockets.control_server(desk.loop.context))
    dialer = desk.dial(f"tcp://127.0.0.1:{port}")
    desk.run(3.0)
    assert (desk.ups, desk.downs) == (0, 0)
    assert 0 < desk.loop.links.disconnects <= 6
    assert dialer.trouble is not None


def test_port_that_becomes_the_right_one_is_found_and_the_trouble_is_over(desk: Desk) -> None:
    wrong = sockets.control_server(desk.loop.context)
    port = desk.serve(wrong)
    dialer = desk.dial(f"tcp://127.0.0.1:{port}")
    desk.run(1.0)
    assert dialer.trouble is not None
    wrong.close(linger=0)
    right = sockets.data_receiver(desk.loop.context)
    desk.servers.append(right)
    end_at = time.monotonic() + DEADLINE_S
    while True:
        try:
            right.bind(f"tcp://127.0.0.1:{port}")
            break
        except zmq.ZMQError:
            assert time.monotonic() < end_at
    desk.loop._is_stopping = False
    desk.run(DEADLINE_S)
    assert desk.ups == 1
    assert dialer.trouble is None
