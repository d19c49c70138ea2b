# SPDX-License-Identifier: GPL-2.0-only
"""`make bench-kernel`: what capturing costs the application, by the clock.

fio on /dev/mapper/x against the bare device below it, in one boot, each several
times in turn, so that a slow moment of the host hits all of them. dm-linear shows
what device-mapper itself costs. The ring is drained by a consumer that only
releases: the cost is the module's, not the network's. Prints the medians, and
fails if the median of a round's ratios is below its floor.

| disk | what it is | floor |
|---|---|---|
| brd | memory: the time of a write is the processor's | 0.5 |
| fast | virtio, as fast as the host lets it be | 0.8; none if emulated |
| paced | virtio, held to so many requests and bytes a second | 0.8 |

An emulated processor is 10 to 20 times slower than the host's, and the disk `fast`
is not: beside it the processor is all that is measured, as on no machine that there
is. `paced` is slower by as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdr.common.capture.api import Role
from bdr.common.capture.dm import DmCapture
from bdr.common.ring.layout import Mode
from tests.kernel.conftest import MODULE
from tests.kernel.devices import Bdr, Mapped, have_module, run, sectors_of

JOBS = [
    ("4 KiB random, depth 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4 KiB random, depth 16", ["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
    ("1 MiB sequential, depth 4", ["--rw=write", "--bs=1M", "--iodepth=4"]),
]
FLOORS = {"brd": 0.5, "fast": 0.8, "paced": 0.8}
CAPACITY = 65536
DRAIN_S = 0.05


def is_emulated() -> bool:
    """Whether QEMU interprets this machine's instructions."""
    return "TCG" in Path("/proc/cpuinfo").read_text()


def throughput(path: str, job: list[str], *, seconds: int) -> float:
    """MiB/s of one run."""
    words = ["fio", "--name=b", f"--filename={path}", "--ioengine=libaio", "--direct=1",
             "--size=192M", "--time_based", f"--runtime={seconds}", "--output-format=json",
             "--randrepeat=0", "--norandommap", *job]  # fmt: skip
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
        while not stop.wait(DRAIN_S):
            status = capture.status()
            capture.release(tail=status.unpublished, cursor=status.unpublished)
            if status.mode is Mode.OVERFLOW:
                overflows[0] += 1
                capture.resume()

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield overflows
    finally:
        stop.set()
        thread.join()
        capture.close()


def measure(kind: str, lower: str, *, stable: str, rounds: int, seconds: int) -> Iterator[str]:
    """Prints a line for each job; yields what is below its floor."""
    floor = None if kind == "fast" and is_emulated() else FLOORS[kind]
    for title, job in JOBS:
        runs = []
        overflows = 0
        for _ in range(rounds):
            bare = throughput(lower, job, seconds=seconds)
            with Mapped("plain", f"0 {sectors_of(lower)} linear {lower} 0") as plain:
                linear = throughput(plain.path, job, seconds=seconds)
            with (
                Bdr("bench", lower, capacity=CAPACITY, options=f"2 stable {stable}") as bdr,
                drained(bdr) as full,
            ):
                runs.append((bare, linear, throughput(bdr.path, job, seconds=seconds)))
            overflows += full[0]
        ratio = statistics.median(captured / bare for bare, _, captured in runs)
        medians = "".join(f"{statistics.median(column):9.1f}" for column in zip(*runs, strict=True))
        print(
            f"{kind + ' ' + stable:12} {title:26}{medians}{ratio:7.2f} {floor or '-':>6} "
            f"{overflows:9d}",
            flush=True,
        )
        if floor and ratio < floor:
            yield f"{kind} {stable}, {title}: {ratio:.2f}, wanted {floor}"


def disks() -> dict[str, str]:
    """The devices to measure on, by their names in `FLOORS`."""
    found = {"brd": "/dev/ram0"} if Path("/dev/ram0").exists() else {}
    for serial in sorted(Path("/sys/block").glob("vd*/serial")):
        found[serial.read_text().strip()] = f"/dev/{serial.parent.name}"
    return {kind: path for kind, path in found.items() if kind in FLOORS}


def main() -> int:
    """Exit code 1 if a ratio is below its floor."""
    parser = argparse.ArgumentParser(prog="tests.kernel.bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--stable", default="copy", help="copy, hint or copy,hint")
    options = parser.parse_args()

    have_module("loop")
    subprocess.run(["modprobe", "-q", "brd", "rd_nr=1", "rd_size=262144"], check=False)
    if not Path("/sys/module/bdr").exists():
        run("insmod", MODULE)
    print(f"{options.rounds} runs of {options.seconds} s each, medians, MiB/s")
    print(
        f"{'disk':12} {'job':26}{'bare':>9}{'linear':>9}{'captured':>9}{'ratio':>7} {'floor':>6} "
        f"{'overflows':>9}"
    )
    low: list[str] = []
    for kind, path in disks().items():
        # Every block written once: no run meets holes of the disk's file.
        run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=192", "oflag=direct")
        for stable in options.stable.split(","):
            low += measure(
                kind, path, stable=stable, rounds=options.rounds, seconds=options.seconds
            )
    for line in low:
        print(f"bench-kernel: below its floor: {line}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
