# SPDX-License-Identifier: GPL-2.0-only
"""Runs nbdkit with the plugin, and replays what its ring records."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from bdr.common.capture.api import Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Op
from bdr.common.ring.slots import decode, published_count, slots_at

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "build" / "nbdkit" / "bdr.so"
DEADLINE_S = 20.0


def build_plugin(out: Path | None = None, *settings: str) -> Path:
    """Builds the plugin (again only if a source changed); returns its path."""
    command = ["make", "-s", "-C", str(ROOT / "kern" / "nbdkit"), *settings]
    if out is not None:
        command.append(f"OUT={out}")
    subprocess.run(command, check=True)
    return (out / "bdr.so") if out is not None else PLUGIN


def wait_until(fact: Callable[[], object], *, deadline_at: float = DEADLINE_S) -> None:
    """Waits for a fact, and fails when it does not come true in time."""
    end = time.monotonic() + deadline_at
    while not fact():
        assert time.monotonic() < end, f"not true within {deadline_at} s: {fact}"
        time.sleep(0.002)


def readable(capture: NbdCapture, timeout_s: float = 0) -> bool:
    """Whether there is a wake-up, or comes one in this time."""
    poller = select.poll()
    poller.register(capture.fileno(), select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


IDLE_THREADS = 2


class Server:
    """nbdkit in the foreground, serving `file`; ends with the `with` block.

    Args:
        wrapper: a command that runs the server, such as `env NAME=VALUE`.

    Attributes:
        nbd: path of the NBD socket.
        ring: path of the control socket.
    """

    def __init__(
        self,
        directory: Path,
        file: Path,
        *parameters: str,
        plugin: Path = PLUGIN,
        options: tuple[str, ...] = (),
        wrapper: tuple[str, ...] = (),
    ) -> None:
        self.nbd = str(directory / "nbd")
        self.ring = str(directory / "ring")
        self.file = file
        self._log = directory / "nbdkit.log"
        self._pid_file = directory / "pid"
        # SIGXFSZ is ignored so that a limit on the file's size is an error, not an end;
        # sanitizers want addresses that are not too random.
        self._command = ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh"]
        self._command += ["setarch", "-R", *wrapper, "nbdkit", "-f"]
        self._command += [*options, "-P", str(self._pid_file), "-U", self.nbd, str(plugin)]
        self._command += [f"file={file}", f"ring={self.ring}", *parameters]
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        for leftover in (self._pid_file, Path(self.nbd)):
            leftover.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=log)
        try:
            wait_until(lambda: self._pid_file.exists() or self.process.poll() is not None)
            assert self.process.poll() is None, self.log()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def wait_idle(self, *, others: int = 0) -> None:
        """Waits until its threads are those of a server without a client: nbdkit's, and the
        plugin's for control sockets. A connection's thread ends some time after its client.

        Args:
            others: threads that a sanitizer has.
        """
        tasks = f"/proc/{self.process.pid}/task"
        wait_until(lambda: len(os.listdir(tasks)) == IDLE_THREADS + others)

    def stop(self) -> None:
        """Ends the server as supervisord would; it must take it well."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert self.process.returncode == 0, self.log()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        """What the server has written to its standard error."""
        return self._log.read_text(errors="replace")

    def consumer(self) -> NbdCapture:
        return NbdCapture(self.ring, Role.CONSUMER)

    def observer(self) -> NbdCapture:
        return NbdCapture(self.ring, Role.OBSERVER)


class Replay:
    """Applies what a ring records to a copy of the file, slot by slot.

    It shares no code with the applier: what it gets wrong shows as a difference.
    """

    def __init__(self, capture: NbdCapture, image: bytearray) -> None:
        self.image = image
        self.cursor = capture.status().tail
        self.ops: list[int] = []
        self.writes = 0
        self._capture = capture

    def consume(self, limit: int = 1024) -> int:
        """Applies the published prefix and releases it; returns the slots applied."""
        count = published_count(self._capture.headers, cursor=self.cursor, limit=limit)
        if count:
            self._apply(count)
        self.cursor += count
        self._capture.release(tail=self.cursor, cursor=self.cursor)
        return count

    def drain(self) -> None:
        """Consumes until nothing is left; no write may be in flight."""
        while self.consume():
            pass
        status = self._capture.status()
        assert status.head == status.tail == self.cursor, status

    def _apply(self, count: int) -> None:
        # A copy first: what is applied is what the ring held at one time.
        headers = np.array(slots_at(self._capture.headers, first=self.cursor, count=count))
        payload = bytes(self._capture.payload(self.cursor, count))
        columns = decode(headers)
        for i in range(count):
            op = Op(int(columns.op[i]))
            start = int(columns.sector[i]) * SECTOR_BYTES
            data = payload[i * PAYLOAD_BYTES : (i + 1) * PAYLOAD_BYTES]
            if op is Op.WRITE:
                length = int(columns.sectors[i]) * SECTOR_BYTES
                self.image[start : start + length] = data[:length]
            elif op in (Op.DISCARD, Op.WRITE_ZEROES):
                length = int.from_bytes(data[:8], "little") * SECTOR_BYTES
                self.image[start : start + length] = bytes(length)
            self.ops.append(op)
            self.writes += int(columns.last[i])
        assert columns.last[-1], "a batch that ends within a write"
