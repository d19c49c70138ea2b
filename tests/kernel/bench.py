# SPDX-License-Identifier: GPL-2.0-only
"""`make bench-kernel`: what capturing costs the application.

fio on /dev/mapper/x against the bare device below it, in one boot, each several
times in turn, so that a slow moment of the host hits all of them. dm-linear shows
what device-mapper itself costs. The ring is drained by a consumer that only
releases: the cost is the module's, not the network's. Prints the medians and
their ratio, and fails below the floors.

In an emulated machine the processor is 10 to 20 times slower and the disk is not:
what a write costs in instructions weighs that much more than on hardware.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.capture import Role
from common.capture_dm import DmCapture
from common.ring import Mode, published_count
from tests.kernel.conftest import MODULE
from tests.kernel.devices import Bdr, Mapped, have_module, run, sectors_of

ROUNDS = int(os.environ.get("BDR_BENCH_ROUNDS", "3"))
RUN_S = int(os.environ.get("BDR_BENCH_S", "3"))
JOBS = [
    ("4 KiB random, depth 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4 KiB random, depth 16", ["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
    ("1 MiB sequential, depth 4", ["--rw=write", "--bs=1M", "--iodepth=4"]),
]
STABLE = os.environ.get("BDR_BENCH_STABLE", "copy").split(",")
FLOORS = {"virtio": 0.8, "brd": 0.5}


def throughput(path: str, options: list[str]) -> float:
    """MiB/s of one run."""
    words = ["fio", "--name=b", f"--filename={path}", "--ioengine=libaio", "--direct=1",
             "--size=192M", "--time_based", f"--runtime={RUN_S}", "--output-format=json",
             "--randrepeat=0", "--norandommap", *options]  # fmt: skip
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])
    return float(result["jobs"][0]["write"]["bw_bytes"]) / (1 << 20)


@contextmanager
def drained(bdr: Bdr) -> Iterator[list[int]]:
    """Releases whatever is published; counts how often the ring was full."""
    capture = DmCapture(bdr.device, Role.CONSUMER)
    stop = threading.Event()
    overflows = [0]

    def drain() -> None:
        cursor = capture.status().tail
        while not stop.is_set():
            count = published_count(capture.headers, cursor=cursor, limit=16384)
            cursor += count
            capture.release(tail=cursor, cursor=cursor)
            if not count and capture.status().mode is Mode.OVERFLOW:
                overflows[0] += 1
                capture.resume()
            stop.wait(0.05)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield overflows
    finally:
        stop.set()
        thread.join()
        capture.close()


def measure(kind: str, lower: str, options: str) -> list[tuple[str, float]]:
    """(job, captured against bare) for each job; prints a line of each."""
    rows = []
    for title, fio in JOBS:
        bare, linear, captured, overflows = [], [], [], 0
        for _ in range(ROUNDS):
            bare.append(throughput(lower, fio))
            with Mapped("plain", f"0 {sectors_of(lower)} linear {lower} 0") as plain:
                linear.append(throughput(plain.path, fio))
            with (
                Bdr("bench", lower, capacity=65536, options=options) as bdr,
                drained(bdr) as full,
            ):
                captured.append(throughput(bdr.path, fio))
            overflows += full[0]
        medians = [statistics.median(runs) for runs in (bare, linear, captured)]
        ratio = medians[2] / medians[0]
        numbers = "".join(f"{median:9.1f} " for median in medians)
        print(f"{kind:12} {title:26}{numbers}{ratio:6.2f} {overflows:9d}", flush=True)
        rows.append((title, ratio))
    return rows


def main() -> int:
    """Exit code 1 if a ratio is below its floor."""
    have_module("loop")
    subprocess.run(["modprobe", "-q", "brd", "rd_nr=1", "rd_size=262144"], check=False)
    if not Path("/sys/module/bdr").exists():
        run("insmod", MODULE)
    disks = {}
    for serial in Path("/sys/block").glob("vd*/serial"):
        if serial.read_text().strip() == "fast":
            disks["virtio"] = f"/dev/{serial.parent.name}"
    if Path("/dev/ram0").exists():
        disks["brd"] = "/dev/ram0"
    for path in disks.values():
        # Every block written once: no run meets holes of the disk's file.
        run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=192", "oflag=direct")

    print(f"{ROUNDS} runs of {RUN_S} s each, medians, MiB/s")
    print(
        f"{'disk':12} {'job':26}{'bare':>9} {'linear':>9} {'captured':>9} {'ratio':>6} "
        f"{'overflows':>9}"
    )
    low = []
    for kind, path in disks.items():
        for stable in STABLE:
            for title, ratio in measure(f"{kind} {stable}", path, f"2 stable {stable}"):
                if stable == "copy" and ratio < FLOORS[kind]:
                    low.append(f"{kind}, {title}: {ratio:.2f}, wanted {FLOORS[kind]}")
    for line in low:
        print(f"bench-kernel: below its floor: {line}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
