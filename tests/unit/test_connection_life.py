# SPDX-License-Identifier: GPL-2.0-only
"""A connection lives while its bytes move, however long a frame takes; a dead one is noticed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from bdr.common.wire.connection import Life, LifeSettings, TcpInfo
from bdr.services.runtime.connections import EVERY_S, STANDSTILL_S, Connections

LIMITS = LifeSettings(silent_s=30.0, stuck_s=120.0)


def info(*, is_waiting: bool = True, heard_s: float = 0.0, acked: int = 0) -> TcpInfo:
    return TcpInfo(is_waiting=is_waiting, heard_s=heard_s, acked_bytes=acked, received_bytes=0)


def test_connection_whose_bytes_move_lives_though_something_always_waits() -> None:
    life = Life(LIMITS)
    assert not any(life.is_dead(info(acked=at, heard_s=29.0), at) for at in range(5000))


def test_peer_that_answers_nothing_is_dead_in_a_bounded_time() -> None:
    life = Life(LIMITS)
    assert next(at for at in range(100) if life.is_dead(info(heard_s=1000.0 + at), at)) == 30


def test_peer_that_answers_and_takes_nothing_is_dead_in_a_bounded_time() -> None:
    life = Life(LIMITS)
    assert next(at for at in range(300) if life.is_dead(info(), at)) == 120


def test_connection_with_nothing_to_send_is_not_judged() -> None:
    life = Life(LIMITS)
    idle = info(is_waiting=False, heard_s=1000.0)
    assert not any(life.is_dead(idle, at) for at in range(1000))
    assert not life.is_dead(info(heard_s=1000.0), 1000.0)
    assert not life.is_dead(info(heard_s=1029.0), 1029.0)
    assert life.is_dead(info(heard_s=1030.0), 1030.0)


def test_own_pause_is_not_counted() -> None:
    life = Life(LIMITS)
    assert not life.is_dead(info(heard_s=1.0), 0.0)
    life.postpone(500.0)
    assert not life.is_dead(info(heard_s=501.0), 500.0)
    assert life.is_dead(info(heard_s=531.0), 530.0)


# With the kernel's connections.


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    with one, two:
        yield one, two


def filled(sender: socket.socket) -> None:
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 16))


def test_received_bytes_are_counted_beyond_the_end_of_a_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, two = pair
    connections = Connections()
    connections.opened("data", two.fileno())
    one.sendall(bytes(1000))
    two.recv(1000, socket.MSG_WAITALL)
    connections.examine(1.0)
    assert connections.received_bytes("data") == 1000
    connections.closed("data", two.fileno())
    assert connections.received_bytes("data") == 1000
    assert connections.received_bytes("control") == 0


def test_connection_of_a_peer_that_takes_nothing_is_shut_down(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, _ = pair
    connections = Connections(LifeSettings(silent_s=1e9, stuck_s=10.0))
    connections.opened("data", one.fileno())
    filled(one)
    connections.examine(1.0)
    connections.examine(1.0 + STANDSTILL_S)
    with pytest.raises(BlockingIOError):
        one.send(b"x")
    connections.examine(6.0 + STANDSTILL_S)
    with pytest.raises(BrokenPipeError):
        one.send(b"x")


def test_connection_that_takes_bytes_is_left_alone(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, two = pair
    connections = Connections(LifeSettings(silent_s=3.0, stuck_s=3.0))
    connections.opened("data", one.fileno())
    for second in range(1, 20):
        filled(one)
        connections.examine(second * EVERY_S)
        two.recv(1 << 20)
    filled(one)
    with pytest.raises(BlockingIOError):
        one.send(b"x")


def test_descriptor_that_is_another_connection_by_now_is_not_touched(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, two = pair
    connections = Connections(LifeSettings(silent_s=0.0, stuck_s=0.0))
    number = one.fileno()
    connections.opened("data", number)
    one.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        with other, server.accept()[0]:
            assert other.fileno() == number
            filled(other)
            connections.examine(1.0)
            with pytest.raises(BlockingIOError):
                other.send(b"x")
    assert two.recv(1) == b""
