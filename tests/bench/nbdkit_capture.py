# SPDX-License-Identifier: GPL-2.0-only
"""What capturing costs: nbdkit's own `file` plugin beside `bdr`, in the same run.

Both behind nbdfuse and a loop device, over a file on tmpfs, turn by turn since
machines are noisy. A follower releases every slot, as a reader would at best.

    python -m tests.bench.nbdkit_capture [SECONDS [ROUNDS]]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bdr.common.capture.api import Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import Mode
from bdr.common.ring.slots import published_count
from deploy.nbd_source import loop_device
from tests.nbdkit.server import DEADLINE_S, build_plugin, wait_until

DEVICE_BYTES = 1 << 30
CAPACITY = 65536
JOBS = {
    "4 KiB random": ("--rw=randwrite", "--bs=4k", "--iodepth=16"),
    "1 MiB sequential": ("--rw=write", "--bs=1M", "--iodepth=4"),
}


class Follower:
    """Releases what is published, at once."""

    def __init__(self, ring: str) -> None:
        self._capture = NbdCapture(ring, Role.CONSUMER)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        status = self._capture.status()
        self._capture.close()
        if status.mode is not Mode.STREAM:
            print("  the ring overflowed: the follower was too slow for this disk")

    def _follow(self) -> None:
        cursor = 0
        while not self._stop.wait(0.002):
            cursor += published_count(self._capture.headers, cursor=cursor, limit=CAPACITY)
            self._capture.release(tail=cursor, cursor=cursor)


@contextmanager
def device(directory: Path, plugin: str, *parameters: str) -> Iterator[tuple[str, int]]:
    """A loop device over nbdfuse over nbdkit with `plugin`, and the server's process id."""
    socket, pid, mount = directory / "nbd", directory / "pid", directory / "fuse"
    mount.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(["nbdkit", "-f", "-U", socket, "-P", pid, plugin, *parameters])
        )
        stack.callback(server.terminate)
        wait_until(lambda: pid.exists() or server.poll() is not None)
        file = mount / "nbd"
        fuse = stack.enter_context(subprocess.Popen(["nbdfuse", file, "--unix", socket]))
        stack.callback(fuse.wait, DEADLINE_S)
        stack.callback(subprocess.run, ["fusermount3", "-u", str(mount)], check=True)
        wait_until(lambda: file.exists() or fuse.poll() is not None)
        yield stack.enter_context(loop_device(str(file))), server.pid


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Result:
    mb_per_s: float
    cpu_us_per_write: float
    """Of the server: what is left to compare when other work shares the processors."""


def fio(path: str, pid: int, job: tuple[str, ...], seconds: int) -> Result:
    command = ["fio", "--name=bench", f"--filename={path}", "--ioengine=libaio", "--direct=1"]
    command += [f"--runtime={seconds}", "--time_based", "--output-format=json", *job]
    before = cpu_seconds(pid)
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    used = cpu_seconds(pid) - before
    write = report["jobs"][0]["write"]
    return Result(write["bw_bytes"] / 1e6, used * 1e6 / write["total_ios"])


def run(kind: str, seconds: int) -> dict[str, Result]:
    """Every job's result on a fresh device."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        directory = Path(name)
        disk = directory / "disk.img"
        with disk.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        ring = str(directory / "ring")
        settings: tuple[str, ...]
        if kind == "bdr":
            settings = (str(build_plugin()), f"file={disk}", f"ring={ring}", f"writes={CAPACITY}")
        else:
            settings = ("file", str(disk))
        path, pid = stack.enter_context(device(directory, *settings))
        stack.enter_context(Follower(ring) if kind == "bdr" else nullcontext())
        # Every page once, so that no run pays for the file's first allocation.
        fio(path, pid, ("--rw=write", "--bs=1M", "--iodepth=4"), seconds)
        return {name: fio(path, pid, job, seconds) for name, job in JOBS.items()}


def main() -> int:
    if os.geteuid() != 0:
        print("needs root, for a loop device")
        return 1
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    results: dict[tuple[str, str], list[Result]] = {}
    for number in range(rounds):
        for kind in ("file", "bdr") if number % 2 == 0 else ("bdr", "file"):
            for job, result in run(kind, seconds).items():
                results.setdefault((job, kind), []).append(result)
                rate, cpu = result.mb_per_s, result.cpu_us_per_write
                print(f"  {job}, {kind}: {rate:.0f} MB/s, {cpu:.0f} us of CPU a write", flush=True)
    for job in JOBS:
        file, bdr = (
            Result(
                statistics.median(result.mb_per_s for result in results[job, kind]),
                statistics.median(result.cpu_us_per_write for result in results[job, kind]),
            )
            for kind in ("file", "bdr")
        )
        print(
            f"{job}: file {file.mb_per_s:.0f} MB/s, bdr {bdr.mb_per_s:.0f} MB/s, "
            f"ratio {bdr.mb_per_s / file.mb_per_s:.2f}; server's CPU a write "
            f"{file.cpu_us_per_write:.0f} and {bdr.cpu_us_per_write:.0f} us"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
