# SPDX-License-Identifier: GPL-2.0-only
"""The plugin's capture in Python: payload, memory, descriptors, errors at opening."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from bdr.common.capture.api import Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.capture.opening import open_capture
from bdr.common.errors import CaptureError
from tests.nbdkit.client import NbdClient
from tests.nbdkit.server import Server
from tests.support.refusals import refused


def test_payload_is_contiguous_across_the_wrap(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(60 * 4096))
    capture.release(tail=60, cursor=60)
    data = os.urandom(10 * 4096)
    client.write(0, data)
    view = capture.payload(60, 10)
    assert view.readonly
    assert bytes(view) == data


def test_forget_drops_pages_and_keeps_the_data(client: NbdClient, capture: NbdCapture) -> None:
    def resident_kib() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssShmem:"):
                return int(line.split()[1])
        raise AssertionError("no RssShmem in /proc/self/status")

    data = os.urandom(64 * 4096)
    client.write(0, data)
    before = resident_kib()
    assert bytes(capture.payload(0, 64)) == data
    touched = resident_kib()
    assert touched - before >= 200
    capture.drop_pages(0, 64)
    assert resident_kib() <= touched - 200
    assert bytes(capture.payload(0, 64)) == data


def test_open_capture_finds_the_plugin_by_its_socket(server: Server) -> None:
    capture = open_capture(server.ring, Role.OBSERVER)
    assert isinstance(capture, NbdCapture)
    capture.close()


def test_opening_a_dead_socket_says_what_was_wanted(server: Server) -> None:
    server.kill()
    assert refused(server.observer) == errno.ECONNREFUSED


def test_opening_a_foreign_socket_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "foreign")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as foreign:
        foreign.bind(path)
        foreign.listen()

        def answer() -> None:
            peer, _ = foreign.accept()
            with peer:
                peer.recv(100)
                peer.send(b"hi")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CaptureError, match="is not a BDR packet"):
            NbdCapture(path, Role.OBSERVER)
        thread.join()


def test_closed_capture_leaks_no_descriptor(server: Server) -> None:
    server.observer().close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        capture = server.consumer()
        assert refused(server.consumer) == errno.EBUSY
        capture.close()
    assert len(os.listdir("/proc/self/fd")) == before
