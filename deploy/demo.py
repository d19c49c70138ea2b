# SPDX-License-Identifier: GPL-2.0-only
"""`make demo`: a real file system on a real block device, and its replica.

Makes two backing files, captures one of them as a block device, starts the
pipeline under a supervisord of its own, works on an ext4 file system, and then
proves that both devices are identical. Removes everything that it made.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.host.programs import Program
from bdr.common.ring.layout import PAYLOAD_BYTES
from deploy.command import SetupError, run, wait_for
from deploy.dm_source import DmSource, dm_source, load_module
from deploy.namespaces import Namespaces
from deploy.nbd_source import NbdSource, loop_device, mounted, nbd_source
from deploy.stack import Stack, source_programs, target_programs

VOLUME = "demo"
DEVICE_BYTES = 1 << 30
RING_WRITES = 65536
FILES_MAX = int(os.environ.get("BDR_DEMO_FILES", "4000"))
FILES_BYTES_MAX = 160 << 20
SETTLE_TIMEOUT_S = float(os.environ.get("BDR_DEMO_TIMEOUT_S", "120"))
_MIB = 1 << 20


def say(text: str) -> None:
    """Prints a line."""
    print(f"demo: {text}", flush=True)


def check_host() -> None:
    """Raises SetupError if the demonstration cannot run on this host."""
    if os.geteuid() != 0:
        raise SetupError("needs root, for loop devices and mounts; run it with sudo")
    if not os.path.exists("/dev/loop-control"):
        raise SetupError(
            "needs /dev/loop-control: this host offers no loop devices (modprobe loop; in a "
            "container: --privileged)"
        )
    _check_tools("mkfs.ext4", "e2fsck", "losetup", "fstrim")


def _check_tools(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise SetupError(f"needs {tool}, which is not installed; run `make setup`")


@contextlib.contextmanager
def captured(
    backing: str, directory: Path, *, writes: int = RING_WRITES
) -> Iterator[DmSource | NbdSource]:
    """A captured device over `backing`: by the module if it can be loaded, else by nbdkit."""
    why_not = load_module()
    if why_not is None:
        say("capture: the kernel module, device-mapper target `bdr`")
        name = f"bdr-demo-{os.getpid()}"
        with dm_source(backing, name=name, writes=writes) as source:
            yield source
        return
    say(f"capture: nbdkit plugin, nbdfuse and a loop device; no kernel module: {why_not}")
    if not os.path.exists("/dev/fuse"):
        raise SetupError(
            "needs /dev/fuse: this host offers no FUSE (modprobe fuse; in a container: "
            "--device /dev/fuse)"
        )
    _check_tools("nbdkit", "nbdfuse")
    with nbd_source(backing, directory, writes=writes) as nbd:
        yield nbd


def free_port() -> int:
    """A free port; the next one is free too."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + 1))
            return port


class Progress:
    """Prints the progress of replication until it is closed."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._done = threading.Event()
        self._line_every_s = 0.2 if sys.stdout.isatty() else 2.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def line(self) -> str:
        """written, replicated, behind."""
        status = self._capture.status()
        return (
            f"written {status.head * PAYLOAD_BYTES // _MIB:5d} MiB   "
            f"replicated {status.tail * PAYLOAD_BYTES // _MIB:5d} MiB   "
            f"behind {(status.head - status.tail) * PAYLOAD_BYTES / _MIB:6.1f} MiB"
        )

    def close(self) -> None:
        """Stops printing."""
        self._done.set()
        self._thread.join()
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")

    def _run(self) -> None:
        while not self._done.wait(self._line_every_s):
            if sys.stdout.isatty():
                print(f"\r\x1b[K      {self.line()}", end="", flush=True)
            else:
                print(f"      {self.line()}", flush=True)


def real_files() -> Iterator[Path]:
    """Some thousand files of this host, of various sizes."""
    count = size = 0
    for top in (Path(sysconfig.get_paths()["purelib"]), Path("/usr/share"), Path("/usr/lib")):
        for path in sorted(top.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            count += 1
            size += path.stat().st_size
            if count > FILES_MAX or size > FILES_BYTES_MAX:
                return
            yield path


def work(top: Path) -> None:
    """Copies, changes, deletes, preallocates, punches and trims."""
    chosen = random.Random(1)
    copies = []
    for number, path in enumerate(real_files()):
        copy = top / f"tree{number % 16}" / f"{number:05d}-{path.name[:100]}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
        copies.append(copy)
    say(f"copied {len(copies)} files, {sum(c.stat().st_size for c in copies) // _MIB} MiB")
    os.sync()

    changed = chosen.sample(copies, len(copies) // 5)
    for copy in changed:
        with copy.open("r+b") as file:
            file.seek(chosen.randrange(copy.stat().st_size + 1))
            file.write(chosen.randbytes(chosen.randrange(1, 20000)))
    deleted = set(chosen.sample(copies, len(copies) // 4))
    for copy in deleted:
        copy.unlink()
    for copy in chosen.sample([c for c in copies if c not in deleted], len(copies) // 10):
        copy.rename(copy.with_name(f"renamed-{copy.name}"))
    say(f"changed {len(changed)}, deleted {len(deleted)}, renamed {len(copies) // 10}")

    big = top / "preallocated"
    run("fallocate", "--length", str(64 * _MIB), str(big))
    with big.open("r+b") as file:
        for _ in range(200):
            file.seek(chosen.randrange(64 * _MIB - 8192))
            file.write(chosen.randbytes(8192))
        os.fsync(file.fileno())
    run(
        "fallocate", "--punch-hole", "--offset", str(8 * _MIB), "--length", str(16 * _MIB), str(big)
    )
    os.sync()
    say(f"fallocate, punch-hole, fstrim: {run('fstrim', '--verbose', str(top)).strip()}")


def wait_replicated(capture: Capture) -> float:
    """Waits until nothing is outstanding; returns the duration in seconds."""
    began_at = time.monotonic()

    def is_idle() -> bool:
        status = capture.status()
        if status.gap is not None or status.dirty_regions:
            raise SetupError(
                f"the ring overflowed {status.overflows} times: the target was too slow"
            )
        return status.tail == status.head

    wait_for(is_idle, what="the replica's last batch", timeout_s=SETTLE_TIMEOUT_S)
    return time.monotonic() - began_at


def different_bytes(source: str, replica: str) -> list[str]:
    """Differences between the two devices, by cmp."""
    say("comparing both devices byte by byte")
    compared = subprocess.run(["cmp", source, replica], check=False, capture_output=True, text=True)
    return [f"cmp: {(compared.stdout + compared.stderr).strip()}"] if compared.returncode else []


def differences(source: str, replica: str, directory: Path) -> list[str]:
    """Differences between the two devices, by cmp, fsck and diff."""
    found = different_bytes(source, replica)
    say("checking the replica's file system: e2fsck -fn")
    with loop_device(replica, read_only=True) as replica_device:
        checked = subprocess.run(
            ["e2fsck", "-fn", replica_device], check=False, capture_output=True, text=True
        )
        if checked.returncode:
            found.append(f"e2fsck ended with {checked.returncode}: {checked.stdout.strip()}")
        say("mounting both read-only: diff -r")
        with (
            loop_device(source, read_only=True) as source_device,
            mounted(source_device, directory / "a", "-o", "ro,noload") as one,
            mounted(replica_device, directory / "b", "-o", "ro,noload") as two,
        ):
            compared = subprocess.run(
                ["diff", "-r", "--brief", str(one), str(two)],
                check=False,
                capture_output=True,
                text=True,
            )
            if compared.returncode:
                found.append(f"diff -r: {(compared.stdout + compared.stderr).strip()}")
    return found


def backing_devices(directory: Path) -> tuple[str, str]:
    """The source's and the replica's backing device: two files by default."""
    paths = []
    for side in ("source", "replica"):
        path = os.environ.get(f"BDR_DEMO_{side.upper()}")
        if path is None:
            path = str(directory / f"{side}.img")
            with open(path, "wb") as file:
                file.truncate(DEVICE_BYTES)
        paths.append(path)
    return paths[0], paths[1]


def on(prefix: list[str], programs: list[Program]) -> list[Program]:
    """The same programs, with `prefix` before their command."""
    return [replace(program, command=[*prefix, *program.command]) for program in programs]


def demonstrate(stack: contextlib.ExitStack) -> list[str]:
    """Runs the demonstration; returns the differences at its end."""
    directory = Path(tempfile.mkdtemp(prefix="bdr-demo-"))
    stack.callback(shutil.rmtree, directory)
    source_backing, replica_backing = backing_devices(directory)

    with contextlib.ExitStack() as running:
        source = running.enter_context(captured(source_backing, directory))
        say(f"source {source.device} over {source_backing}; replica {replica_backing}")

        port, address = free_port(), "127.0.0.1"
        source_host: list[str] = []
        target_host: list[str] = []
        if os.environ.get("BDR_DEMO_NAMESPACES"):
            hosts = running.enter_context(Namespaces())
            address, source_host, target_host = hosts.address, hosts.source, hosts.target
            say("source and target in two network namespaces")
        programs = running.enter_context(Stack(directory / "run"))
        state = directory / "replica.state"
        target_side = target_programs(
            VOLUME, target=replica_backing, state=state, address=address, port=port
        )
        programs.add(on(target_host, target_side))
        source_side = source_programs(
            VOLUME,
            chardev=source.ring,
            address=address,
            port=port,
            run_dir=directory / "run" / VOLUME,
            assume_clean=True,
        )
        programs.add(on(source_host, source_side))
        say("pipeline up under supervisord: reader, 2 senders, applier")

        capture = open_capture(source.ring, Role.OBSERVER)
        running.callback(capture.close)
        progress = Progress(capture)
        running.callback(progress.close)
        say("mkfs.ext4")
        run("mkfs.ext4", "-q", "-F", source.device)
        with mounted(source.device, directory / "mount") as top:
            work(top)
            say("unmounting")
        run("blockdev", "--flushbufs", source.device)
        waited_s = wait_replicated(capture)
        say(f"nothing outstanding after {waited_s:.2f} s: {progress.line()}")
    return differences(source_backing, replica_backing, directory)


def show(demonstration: Callable[[contextlib.ExitStack], list[str]]) -> int:
    """Runs a demonstration, and removes its devices and processes.

    Args:
        demonstration: returns the differences at its end.

    Returns:
        Exit code 0 if the replica is identical, 1 if it differs, 2 if the host cannot
        show it, 130 if it was interrupted.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    began_at = time.monotonic()
    try:
        check_host()
        with contextlib.ExitStack() as stack:
            found = demonstration(stack)
    except SetupError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything that it made is removed", file=sys.stderr)
        return 130
    for difference in found:
        print(f"demo: DIFFERENT: {difference}", file=sys.stderr)
    if found:
        return 1
    say(f"took {time.monotonic() - began_at:.0f} s")
    print("replica is identical")
    return 0


if __name__ == "__main__":
    sys.exit(show(demonstrate))
