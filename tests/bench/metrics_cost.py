# SPDX-License-Identifier: GPL-2.0-only
"""What reporting costs the data path: `python -m tests.bench.metrics_cost`.

The round of a loop that has nothing to report, a report with a monitor that takes
it, one with a monitor that does not, and the same without a monitor. Then the whole
pipeline with a monitor and without, turn by turn: its throughput, which a busy host
blurs, and the processor time of sender, applier and reader, which it blurs less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import zmq

from bdr.services.runtime.loop import Loop
from bdr.services.runtime.reports import Reporter
from tests.bench.rig import Rig, cpu_seconds
from tests.unit.statuses import READER

ROUNDS = 5
BYTES = 1 << 30


def main() -> None:
    """Prints both."""
    with tempfile.TemporaryDirectory(prefix="bdr-", dir="/dev/shm") as directory:
        endpoint = f"ipc://{directory}/metrics.sock"
        loop = Loop()
        reporter = Reporter(loop, endpoint, stage="reader", values=lambda: READER)
        print(f"report without a monitor      {_us(lambda: _report(reporter)):8.2f} us")
        print(f"round without a report        {_us(lambda: reporter.tick(-1.0)):8.2f} us")
        pull = loop.context.socket(zmq.PULL)
        pull.bind(endpoint)
        _wait_connected(reporter, pull)
        stop = threading.Event()
        reading = threading.Thread(target=_drain, args=(pull, stop))
        reading.start()
        print(f"report to a monitor           {_us(lambda: _report(reporter), 5000):8.2f} us")
        stop.set()
        reading.join()
        print(f"report to one that hangs      {_us(lambda: _report(reporter)):8.2f} us")
        loop.close()
    rates: dict[bool, list[float]] = {False: [], True: []}
    used: dict[bool, list[float]] = {False: [], True: []}
    with ExitStack() as stack:
        target_dir = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bdr-", dir="/dev/shm", ignore_cleanup_errors=True)
        )
        rig = stack.enter_context(Rig(applier_options=["--run-dir", target_dir]))
        pids = [os.getpid(), rig.applier.pid, *(sender.pid for sender in rig.senders)]
        for at in range(ROUNDS):
            # The order turns too: what grows with time must not count for one of them.
            for is_watched in (False, True) if at % 2 else (True, False):
                places = [str(rig.directory / "run"), target_dir] if is_watched else []
                monitors = [_monitor(place) for place in places]
                began_at, began_cpu_s = time.perf_counter(), sum(map(cpu_seconds, pids))
                rig.write_sequential(BYTES)
                rates[is_watched].append(BYTES / (time.perf_counter() - began_at) / 1e6)
                used[is_watched].append(sum(map(cpu_seconds, pids)) - began_cpu_s)
                for monitor in monitors:
                    monitor.terminate()
                    monitor.wait()
    for is_watched, found in rates.items():
        print(
            f"pipeline {'with' if is_watched else 'without':7} a monitor    "
            f"{statistics.median(found):8.0f} MB/s  ({min(found):.0f} - {max(found):.0f}), "
            f"{statistics.median(used[is_watched]):.2f} s of processor a GiB "
            f"({min(used[is_watched]):.2f} - {max(used[is_watched]):.2f})"
        )
    print(f"load average {os.getloadavg()[0]:.1f}")


def _monitor(run_dir: str) -> subprocess.Popen[bytes]:
    # As a target's: the in-memory ring is not there for observers.
    words = ["--volume", "bench", "--role", "target", "--run-dir", run_dir, "--noprint"]
    process = subprocess.Popen([sys.executable, "-m", "bdr.services.monitor", *words])
    while not Path(run_dir, "status.sock").exists():
        time.sleep(0.01)
    return process


def _report(reporter: Reporter) -> None:
    reporter.tick(float("inf"))
    reporter._due_at = 0.0


def _wait_connected(reporter: Reporter, pull: zmq.Socket[bytes]) -> None:
    while not pull.poll(10):
        _report(reporter)


def _drain(pull: zmq.Socket[bytes], stop: threading.Event) -> None:
    while not stop.is_set():
        if pull.poll(10):
            pull.recv()


def _us(call: Callable[[], None], count: int = 20000) -> float:
    began_at = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began_at) / count * 1e6


if __name__ == "__main__":
    main()
