# SPDX-License-Identifier: GPL-2.0-only
"""`make demo-resync`: initial sync of a blank target, and repair after an overflow.

The source has data before the target exists, and is written to throughout. Then the
target is stopped until the ring has overflowed and long after; when it comes back only
what has changed is moved. In the end `bdr verify` and a byte-by-byte comparison agree.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.ring.layout import Mode
from bdr.common.wire.scan import ResyncStatus
from bdr.services.cli.reader_client import NoPeerError, ReaderClient, SourceLocation
from deploy.command import SetupError, run, wait_for
from deploy.demo import (
    SETTLE_TIMEOUT_S,
    backing_devices,
    captured,
    different_bytes,
    free_port,
    say,
    show,
)
from deploy.stack import Stack, source_programs, target_programs

VOLUME = "demo"
DATA_BYTES = 192 << 20
RING_WRITES = 8192
_MIB = 1 << 20


class Writer:
    """Writes blocks of various sizes at random positions until it is closed.

    Attributes:
        changed: bytes written so far.
    """

    def __init__(self, device: str, *, seed: int) -> None:
        self.changed = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, count: int) -> None:
        """Makes this many writes, then a flush."""
        chosen = self._random
        with self._lock:
            for _ in range(count):
                size = chosen.choice((4096, 4096, 8192, 65536))
                at = chosen.randrange((self._size - size) // 4096) * 4096
                os.pwrite(self._fd, chosen.randbytes(size), at)
                self.changed += size
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Ends the background writes; idempotent."""
        if not self._done.is_set():
            self._done.set()
            self._thread.join()
            os.close(self._fd)

    def _run(self) -> None:
        while not self._done.wait(0.02):
            self.write(4)


def wait_consistent(client: ReaderClient, capture: Capture, *, what: str) -> ResyncStatus:
    """Waits for the scan, and prints its progress."""
    last_at = time.monotonic()
    began_at = last_at
    while True:
        report = ask(client)
        if report.condition == "CONSISTENT" and not report.dirty_regions:
            return report
        now_at = time.monotonic()
        if now_at - began_at > SETTLE_TIMEOUT_S:
            raise SetupError(f"{what}: not within {SETTLE_TIMEOUT_S:g} s: {report}")
        if now_at - last_at >= 1:
            last_at = now_at
            left = report.dirty_regions * report.region_bytes // _MIB
            behind = capture.status().head - capture.status().tail
            say(f"    {what}: {left} MiB left to compare, {behind} slots behind")
        time.sleep(0.05)


def wait_drained(capture: Capture) -> None:
    """Waits until nothing is outstanding."""
    wait_for(
        lambda: capture.status().tail == capture.status().head,
        what="the ring",
        timeout_s=SETTLE_TIMEOUT_S,
    )


def ask(client: ReaderClient) -> ResyncStatus:
    """The progress of the scan; retries, since a reader may be slow to start on a busy host."""
    deadline_at = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            return client.report()
        except NoPeerError:
            if time.monotonic() > deadline_at:
                raise


def demonstrate(stack: contextlib.ExitStack) -> list[str]:
    """Runs the demonstration; returns the differences at its end."""
    directory = Path(tempfile.mkdtemp(prefix="bdr-demo-"))
    stack.callback(shutil.rmtree, directory)
    source_backing, replica_backing = backing_devices(directory)
    chosen = random.Random(1)
    with open(source_backing, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        places = {chosen.randrange(size // _MIB) for _ in range(DATA_BYTES // _MIB)}
        for megabyte in sorted(places):
            file.seek(megabyte * _MIB)
            file.write(chosen.randbytes(_MIB))
        file.flush()
        os.fsync(file.fileno())
    say(f"source {size // _MIB} MiB, {len(places)} MiB of data; the replica is blank")

    with contextlib.ExitStack() as running:
        source = running.enter_context(captured(source_backing, directory, writes=RING_WRITES))
        port = free_port()
        run_dir = directory / "run" / VOLUME
        programs = running.enter_context(Stack(directory / "run"))
        programs.add(
            target_programs(
                VOLUME,
                target=replica_backing,
                state=directory / "replica.state",
                address="127.0.0.1",
                port=port,
            )
        )
        writer = Writer(source.device, seed=2)
        running.callback(writer.close)
        began_at = time.monotonic()
        programs.add(
            source_programs(
                VOLUME,
                chardev=source.ring,
                address="127.0.0.1",
                port=port,
                run_dir=run_dir,
                senders=1,
                scanners=2,
            )
        )
        say(f"pipeline up: reader, sender, 2 scanners, applier; writes continue on {source.device}")
        capture = open_capture(source.ring, Role.OBSERVER)
        running.callback(capture.close)
        place = SourceLocation(VOLUME, source.ring, None, "127.0.0.1", port, str(run_dir))
        client = ReaderClient(place)
        running.callback(client.close)
        report = wait_consistent(client, capture, what="first copy")
        say(
            f"replica consistent after {time.monotonic() - began_at:.1f} s: compared "
            f"{report.compared_bytes // _MIB} MiB, moved {report.repaired_bytes // _MIB} MiB; "
            f"written meanwhile {writer.changed // _MIB} MiB"
        )
        wait_drained(capture)

        miss_writes(programs, capture, client, writer)
        found = verify(place)
        say("no more writes; waiting for the last of them")
        writer.close()
        run("blockdev", "--flushbufs", source.device)
        wait_consistent(client, capture, what="the last writes")
        wait_drained(capture)
        found += verify(place)
    return found + different_bytes(source_backing, replica_backing)


def miss_writes(programs: Stack, capture: Capture, client: ReaderClient, writer: Writer) -> None:
    """Stops the target until after the ring has overflowed, and starts it again."""
    say("stopping the target; writes continue until after the ring overflows")
    programs.stop(f"{VOLUME}-applier")
    while capture.status().mode is Mode.STREAM:
        writer.write(50)
    for _ in range(20):
        writer.write(50)
    status = capture.status()
    report = ask(client)
    size = report.region_bytes
    say(
        f"overflowed: {status.head - status.tail} slots in the ring, {status.missed_writes} "
        f"missed writes, in {status.active_regions} regions: "
        f"{status.active_regions * size // _MIB} MiB, "
        f"{status.active_regions / report.regions:.1%} of the device"
    )
    began_at, before = time.monotonic(), ask(client)
    programs.start(f"{VOLUME}-applier")
    say("the target runs again")
    wait_for(
        lambda: capture.status().mode is Mode.STREAM,
        what="the drained ring",
        timeout_s=SETTLE_TIMEOUT_S,
    )
    report = wait_consistent(client, capture, what="resync")
    say(
        f"replica consistent after {time.monotonic() - began_at:.1f} s: compared "
        f"{(report.compared_bytes - before.compared_bytes) // _MIB} MiB, moved "
        f"{(report.repaired_bytes - before.repaired_bytes) // _MIB} MiB beside the ring"
    )


def verify(place: SourceLocation) -> list[str]:
    """Differences found by `bdr verify`."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bdr", "verify"),
            *("--run-dir", place.run_dir, "--chardev", place.chardev),
            *("--address", place.address, "--port", str(place.port), place.volume),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    say(f"bdr verify: {(done.stdout + done.stderr).strip()}")
    return [] if done.returncode == 0 else [f"verify ended with {done.returncode}"]


if __name__ == "__main__":
    sys.exit(show(demonstrate))
