# SPDX-License-Identifier: GPL-2.0-only
"""The control socket's wake-ups: what wakes a consumer, and what does not."""

from __future__ import annotations

import os
import threading

import pytest

from bdr.common.capture.nbd import NbdCapture
from bdr.common.errors import CaptureGoneError
from bdr.common.ring.layout import Mode
from tests.nbdkit.client import NbdClient
from tests.nbdkit.server import DEADLINE_S, Server, readable


def test_idle_consumer_is_not_readable(capture: NbdCapture) -> None:
    assert not readable(capture)


def test_publishing_the_cursor_wakes_the_consumer(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(4096))
    assert readable(capture, DEADLINE_S)
    capture.drain_wakeup()
    assert not readable(capture)
    capture.release(tail=0, cursor=1)
    assert not readable(capture)
    client.write(0, bytes(4096))
    assert readable(capture, DEADLINE_S)


def test_release_with_a_published_cursor_wakes_at_once(
    client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, bytes(8192))
    capture.release(tail=0, cursor=2)
    assert not readable(capture)
    capture.release(tail=0, cursor=1)
    assert readable(capture)


def test_new_consumer_is_woken_for_what_was_published_before(
    server: Server, client: NbdClient
) -> None:
    client.write(0, bytes(4096))
    capture = server.consumer()
    assert readable(capture)
    capture.close()


def test_mode_change_wakes_until_status_is_asked(client: NbdClient, capture: NbdCapture) -> None:
    capture.release(tail=0, cursor=0)
    client.write(0, bytes(64 * 4096))
    capture.release(tail=0, cursor=64)
    assert not readable(capture)
    client.write(0, bytes(512))
    assert readable(capture, DEADLINE_S)
    assert capture.status().mode is Mode.OVERFLOW
    assert not readable(capture)
    assert capture.resume() == 64
    # The way back is a change, too; a RESUME that finds STREAM is none.
    assert readable(capture)
    assert capture.status().mode is Mode.STREAM
    assert not readable(capture)
    assert capture.resume() == 64
    assert not readable(capture)


def test_mode_change_while_nobody_consumed_wakes_the_next(
    server: Server, client: NbdClient
) -> None:
    for _ in range(65):
        client.write(0, bytes(512))
    capture = server.consumer()
    capture.release(tail=64, cursor=64)
    assert readable(capture)
    assert capture.status().mode is Mode.OVERFLOW
    assert not readable(capture)
    capture.close()


def test_publishing_makes_no_wakeup_while_the_consumer_does_not_wait(
    client: NbdClient, capture: NbdCapture
) -> None:
    """The eventfd counts its writes: one for the cursor, none for what follows."""
    for _ in range(20):
        client.write(0, bytes(512))
    assert os.eventfd_read(capture._wakeup) == 1


def test_end_of_the_server_wakes_and_is_an_error(server: Server, capture: NbdCapture) -> None:
    server.kill()
    assert readable(capture, DEADLINE_S)
    with pytest.raises(CaptureGoneError, match="gone"):
        capture.drain_wakeup()
    with pytest.raises(CaptureGoneError, match="is its nbdkit running"):
        capture.status()
    # The memory is still there.
    assert bytes(capture.payload(0, 1)) == bytes(4096)


def test_lost_wakeup_never_happens_in_a_ping_pong(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    """Each write is waited for by poll alone; the next is sent when it was seen."""
    seen = threading.Semaphore(0)
    rounds = 3000

    def produce() -> None:
        for _ in range(rounds):
            client.write(0, bytes(512))
            assert seen.acquire(timeout=DEADLINE_S)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for cursor in range(rounds):
            assert readable(capture, DEADLINE_S), f"no wake-up for slot {cursor}"
            capture.release(tail=cursor + 1, cursor=cursor + 1)
            seen.release()
    finally:
        for _ in range(rounds):
            seen.release()
        producer.join()
