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
from pathlib import Path

from common.capture import Role
from common.capture_nbd import NbdCapture
from common.ring import Mode, published_count
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
def device(directory: Path, plugin: str, *parameters: str) -> Iterator[str]:
    """A loop device over nbdfuse over nbdkit with `plugin`."""
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
        yield stack.enter_context(loop_device(str(file)))


def fio(path: str, job: tuple[str, ...], seconds: int) -> tuple[float, float]:
    """(MB/s, writes/s) of one run."""
    command = ["fio", "--name=bench", f"--filename={path}", "--ioengine=libaio", "--direct=1"]
    command += [f"--runtime={seconds}", "--time_based", "--output-format=json", *job]
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    write = report["jobs"][0]["write"]
    return write["bw_bytes"] / 1e6, write["iops"]


def run(kind: str, seconds: int) -> dict[str, tuple[float, float]]:
    """Every job's result on a fresh device."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        directory = Path(name)
        disk = directory / "disk.img"
        with disk.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        ring = str(directory / "ring")
        if kind == "bdr":
            settings = (str(build_plugin()), f"file={disk}", f"ring={ring}", f"writes={CAPACITY}")
        else:
            settings = ("file", str(disk))
        path = stack.enter_context(device(directory, *settings))
        stack.enter_context(Follower(ring) if kind == "bdr" else nullcontext())
        # Every page once, so that no run pays for the file's first allocation.
        fio(path, ("--rw=write", "--bs=1M", "--iodepth=4", f"--size={DEVICE_BYTES}"), seconds)
        return {name: fio(path, job, seconds) for name, job in JOBS.items()}


def main() -> int:
    if os.geteuid() != 0:
        print("needs root, for a loop device")
        return 1
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds):
        for kind in ("file", "bdr") if number % 2 == 0 else ("bdr", "file"):
            for job, result in run(kind, seconds).items():
                results.setdefault((job, kind), []).append(result)
                print(f"  {job}, {kind}: {result[0]:.0f} MB/s, {result[1]:.0f}/s", flush=True)
    for job in JOBS:
        rates = {
            kind: statistics.median(rate for rate, _ in results[job, kind])
            for kind in ("file", "bdr")
        }
        ratio = rates["bdr"] / rates["file"]
        print(f"{job}: file {rates['file']:.0f} MB/s, bdr {rates['bdr']:.0f} MB/s: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
