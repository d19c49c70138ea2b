# SPDX-License-Identifier: GPL-2.0-only
"""A slow line between two network namespaces: rate, delay, loss, and a queue that fills up.

Two TUN devices, and a process between them that shapes what passes: netem is a module that
many hosts lack. `python -m tests.pipeline.line SOURCE TARGET RATE DELAY LOSS QUEUE` is that
process; `Line` starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from deploy.command import run
from deploy.namespaces import Namespaces

SOURCE_ADDRESS, TARGET_ADDRESS = "10.213.8.1", "10.213.8.2"
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_CLONE_NEWNET = 0x40000000
_PACKET_BYTES = 2000
_BURST_PACKETS = 300


@dataclass(frozen=True)
class Shape:
    """Of each direction.

    Attributes:
        rate: bytes a second.
        delay_s: one way.
        loss: share of the packets.
        queue_bytes: more than this is dropped.
    """

    rate: float
    delay_s: float = 0.05
    loss: float = 0.0
    queue_bytes: int = 256 << 10


class Line:
    """Exists for the duration of the `with` block, between two namespaces."""

    def __init__(self, net: Namespaces, shape: Shape) -> None:
        names = net.names
        numbers = (shape.rate, shape.delay_s, shape.loss, shape.queue_bytes)
        self._words = [sys.executable, "-m", __name__, *names, *map(str, numbers)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"
        return self

    @contextlib.contextmanager
    def swallowing(self) -> Iterator[None]:
        """Nothing passes, and no end of a connection is noticed by that."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


class _Way:
    """One direction: packets that are under way, with the times at which they arrive."""

    def __init__(self, source: int, target: int, shape: Shape) -> None:
        self.source, self.target = source, target
        self.under_way: deque[tuple[float, bytes]] = deque()
        self._shape = shape
        self._free_at = 0.0
        self._rng = random.Random(source)

    def take(self, now_at: float) -> None:
        """What its source has sent."""
        shape = self._shape
        for _ in range(_BURST_PACKETS):
            try:
                packet = os.read(self.source, _PACKET_BYTES)
            except BlockingIOError:
                return
            begin_at = max(now_at, self._free_at)
            if (begin_at - now_at) * shape.rate > shape.queue_bytes:
                continue  # the queue is full
            self._free_at = begin_at + len(packet) / shape.rate
            if self._rng.random() >= shape.loss:
                self.under_way.append((self._free_at + shape.delay_s, packet))

    def deliver(self, now_at: float) -> float:
        """What has arrived; returns when the next does."""
        while self.under_way and self.under_way[0][0] <= now_at:
            os.write(self.target, self.under_way.popleft()[1])
        return self.under_way[0][0] if self.under_way else now_at + 1.0


def _device(namespace: str, address: str) -> int:
    """A TUN device in that namespace, which this process enters."""
    namespace_fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    assert not ctypes.CDLL(None, use_errno=True).setns(namespace_fd, _CLONE_NEWNET)
    os.close(namespace_fd)
    made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH", b"line", _TUN_WITHOUT_HEADER))
    run("ip", "address", "add", f"{address}/30", "dev", "line")
    run("ip", "link", "set", "line", "mtu", "1500", "txqueuelen", "2000", "up")
    return made


def main(source: str, target: str, *numbers: str) -> None:
    """Shapes until it is ended."""
    rate, delay_s, loss, queue_bytes = map(float, numbers)
    shape = Shape(rate, delay_s, loss, int(queue_bytes))
    one, two = _device(source, SOURCE_ADDRESS), _device(target, TARGET_ADDRESS)
    poller = select.poll()
    for device in (one, two):
        poller.register(device, select.POLLIN)
    ways = (_Way(one, two, shape), _Way(two, one, shape))
    print("up", flush=True)
    while True:
        next_at = min(way.deliver(time.monotonic()) for way in ways)
        poller.poll(max(0, int((next_at - time.monotonic()) * 1000)))
        for way in ways:
            way.take(time.monotonic())


if __name__ == "__main__":
    main(*sys.argv[1:])
