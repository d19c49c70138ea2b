# SPDX-License-Identifier: GPL-2.0-only
"""The yardstick: bytes from memory over one loopback TCP socket into pwrite(2).

Two processes, as few system calls as Python allows, no checks, no order, no
acknowledgement but one at the end.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import time

CHUNK_BYTES = 1 << 20


def _receive(listener: socket.socket, path: str, file_bytes: int, total_bytes: int) -> None:
    connection, _ = listener.accept()
    fd = os.open(path, os.O_RDWR)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    done = 0
    while done < total_bytes:
        filled = 0
        while filled < CHUNK_BYTES:
            filled += connection.recv_into(buffer[filled:])
        os.pwrite(fd, buffer, done % file_bytes)
        done += CHUNK_BYTES
    os.fdatasync(fd)
    connection.sendall(b"!")
    connection.close()


def measure(path: str, *, file_bytes: int, total_bytes: int) -> float:
    """Bytes a second.

    Args:
        path: an existing file to write to.
        file_bytes: its size; the writes go round it.
        total_bytes: how much to move, a multiple of `CHUNK_BYTES`.
    """
    source = mmap.mmap(-1, 128 << 20)
    source[:] = os.urandom(1 << 20) * 128
    view = memoryview(source)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = multiprocessing.get_context("fork").Process(
            target=_receive, args=(listener, path, file_bytes, total_bytes)
        )
        receiver.start()
        with socket.create_connection(listener.getsockname()) as connection:
            began_at = time.perf_counter()
            for at in range(0, total_bytes, CHUNK_BYTES):
                place = at % len(source)
                connection.sendall(view[place : place + CHUNK_BYTES])
            assert connection.recv(1) == b"!"
            took_s = time.perf_counter() - began_at
        receiver.join()
    return total_bytes / took_s
