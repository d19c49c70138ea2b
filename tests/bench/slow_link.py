# SPDX-License-Identifier: GPL-2.0-only
"""What a slow, lossy link carries, against a bare TCP connection over the same line.

python -m tests.bench.slow_link          1 Mbit/s, 300 ms, 1 % loss; 1 and 4 senders; writes, scan
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.command import wait_for
from deploy.demo import on
from deploy.namespaces import Namespaces
from deploy.stack import target_programs
from tests.pipeline.line import TARGET_ADDRESS, Line, Shape
from tests.pipeline.pair import SMALL_JOURNAL, VOLUME, Pair
from tests.pipeline.scanned import ScannedPair

SHAPE = Shape(rate=125_000, delay_s=0.15, loss=0.01, queue_bytes=512 << 10)
SHARE_MIN = 0.8
DEADLINE_S = 600.0
WRITE_BYTES = 64 << 10
_BARE_PORT = 9000
_RECEIVER = f"""
import socket, sys, time
connection, _ = socket.create_server(("0.0.0.0", {_BARE_PORT})).accept()
end_at, got = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end_at:
    got += len(connection.recv(65536))
print(got)
"""
_SENDER = f"""
import socket, sys, time
while True:
    try:
        connection = socket.create_connection((sys.argv[1], {_BARE_PORT}))
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
try:
    while True:
        connection.sendall(bytes(65536))
except OSError:
    pass
"""


@dataclass(frozen=True)
class Measured:
    """Result of a run.

    Attributes:
        rate: payload, in bytes a second.
        bare: what a bare TCP connection carried over the same line.
        lost: connections.
        sessions: of source and target.
    """

    rate: float
    bare: float
    lost: int
    sessions: int

    @property
    def share(self) -> float:
        """Of what a bare connection carries."""
        return self.rate / self.bare


def bare_rate(net: Namespaces, seconds: float) -> float:
    """Bytes a second of one TCP connection."""
    words = [sys.executable, "-c"]
    with subprocess.Popen(
        [*net.target, *words, _RECEIVER, str(seconds)], stdout=subprocess.PIPE
    ) as receiver:
        sender = subprocess.Popen([*net.source, *words, _SENDER, TARGET_ADDRESS])
        try:
            got = int(receiver.communicate(timeout=seconds + 60)[0])
        finally:
            sender.kill()
            sender.wait()
    return got / seconds


def start_over(net: Namespaces, pair: Pair) -> None:
    """Starts a pair whose sides are in two namespaces, with a `Line` between them."""
    pair.address = TARGET_ADDRESS
    programs = target_programs(
        VOLUME,
        target=str(pair.target),
        state=pair.state,
        address=TARGET_ADDRESS,
        port=pair.port,
        options=SMALL_JOURNAL,
    )
    pair.stack.add([*on(net.target, programs), *on(net.source, pair.source_programs)])
    pair.wait_logged("v-applier", "event=welcome")


def measure(
    directory: Path, shape: Shape, *, kind: str, senders: int, payload_bytes: int, bare_s: float
) -> Measured:
    """Replicates so much, as `live` writes or by a `scan`, which compares equal data besides."""
    make: Callable[..., Pair] = ScannedPair if kind == "scan" else Pair
    pair = make(directory, size=4 * payload_bytes, writes=65536, senders=senders)
    rng = random.Random(1)
    if kind == "scan":
        with pair.source.open("r+b") as file:
            file.write(rng.randbytes(payload_bytes))
    with Namespaces() as net, Line(net, shape):
        bare = bare_rate(net, bare_s)
        with pair:
            start_over(net, pair)
            begun_at = time.monotonic()
            if kind == "live":
                for at in range(0, payload_bytes, WRITE_BYTES):
                    pair.client.write(at, rng.randbytes(WRITE_BYTES))
            wait_for(lambda: _is_done(pair, kind), what="all of it", timeout_s=DEADLINE_S)
            took_s = time.monotonic() - begun_at
            logs = "\n".join(pair.stack.log(program.name) for program in pair.source_programs)
            return Measured(
                rate=payload_bytes / took_s,
                bare=bare,
                lost=len(re.findall("event=connection-lost", logs)),
                sessions=len(re.findall("event=streaming", logs)),
            )


def _is_done(pair: Pair, kind: str) -> bool:
    status = pair.status()
    is_clean = not status.resync_regions and not status.active_regions
    return (
        status.tail == status.head and is_clean
        if kind == "live"
        else is_clean and ("condition=CONSISTENT" in pair.stack.log("v-applier"))
    )


def main() -> int:
    """Exit code 1 if a run carried too little, or lost a connection."""
    failed = False
    for kind in ("live", "scan"):
        for senders in (1, 4):
            with tempfile.TemporaryDirectory(prefix="bdr-slow-") as directory:
                measured = measure(
                    Path(directory),
                    SHAPE,
                    kind=kind,
                    senders=senders,
                    payload_bytes=12 << 20,
                    bare_s=30.0,
                )
            print(f"{kind}, {senders} senders: {measured}, share {measured.share:.2f}", flush=True)
            failed |= measured.lost > 0 or measured.share < SHARE_MIN
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
