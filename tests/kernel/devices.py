# SPDX-License-Identifier: GPL-2.0-only
"""Block devices for the tests: each a context manager that removes what it made."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = ROOT / "build/vm/tools"
SECTOR = 512


def run(*words: str | os.PathLike[str], timeout_s: float = 200) -> str:
    """Runs a command; its output is in the error if it fails."""
    command = subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = command.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{words} has not ended within {timeout_s} s; processes:\n{stacks()}")
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, f"{words} ended with {command.returncode}: {output[-3000:]}"
    return output


def stacks() -> str:
    """State and kernel stack of each process of user space, one a line."""
    found = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            stack = (process / "stack").read_text()
        except OSError:
            continue  # it has ended
        if words:
            calls = " < ".join(line.split()[-1].partition("+")[0] for line in stack.splitlines())
            found.append(f"{process.name} {state} {words.strip()[:120]}: {calls}")
    return "\n".join(found)


def fails(*words: str | os.PathLike[str]) -> bool:
    """Whether a command fails."""
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True)
    return done.returncode != 0


def wait_for(fact: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Waits until `fact` holds."""
    deadline_s = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def start(call: Callable[[], object]) -> threading.Thread:
    """Has a thread of its own make the call; an error in it fails the test."""
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def have_module(name: str) -> bool:
    """Whether the running kernel has a module or brings it built in."""
    if Path(f"/sys/module/{name.replace('-', '_')}").exists() or not fails("modprobe", name):
        return True
    # A target that is built in is no module, and modprobe may not know of it.
    targets = run("dmsetup", "targets").splitlines()
    return name.startswith("dm-") and name[3:] in [line.split()[0] for line in targets]


def sectors_of(path: str) -> int:
    """Size of a block device."""
    return int(run("blockdev", "--getsz", path))


# Every device-mapper device of the tests is made, changed and removed here. dmsetup returns
# when udev has handled the event (a cookie that udev gives back), and makes the nodes itself
# where no udev runs. `--noudevsync` or DM_DISABLE_UDEV would leave udev with the device open
# while the test goes on. What is not waited for is udev's look at a device that a writer has
# closed: a removal in that moment is EBUSY, hence `--retry`.


def create_mapped(name: str, table: str) -> None:
    """Creates a dm device; its nodes are there on return."""
    run("dmsetup", "create", name, "--table", table)


def resume_mapped(name: str) -> None:
    """Makes the loaded table, if any, the live one, and lets the device go on."""
    run("dmsetup", "resume", name)


def remove_mapped(name: str) -> None:
    """Removes a dm device, also one that udev has open for a moment."""
    deadline_s = time.monotonic() + 30
    # dmsetup's own retries last 5 s, which are few for udev in an emulated machine.
    while fails("dmsetup", "remove", "--retry", name):
        assert time.monotonic() < deadline_s, run("dmsetup", "info", name)


@contextmanager
def null_block_device(*parameters: str) -> Iterator[str]:
    """null_blk in memory, with these module parameters."""
    words = ["nr_devices=1", "gb=1", "memory_backed=1", "queue_mode=2", *parameters]
    if fails("modprobe", "null_blk", *words):
        pytest.skip("this kernel has no null_blk")
    path = "/dev/nullb0"
    try:
        wait_for(lambda: Path(path).exists(), path)
        yield path
    finally:
        wait_for(lambda: not fails("rmmod", "null_blk"), "the end of null_blk")


class Loop:
    """A loop device over a sparse file."""

    def __init__(self, file: Path, *, megabytes: int, sector_size: int = 512) -> None:
        self.file = file
        self._megabytes = megabytes
        self._sector_size = sector_size
        self.path = ""

    def __enter__(self) -> Self:
        with self.file.open("wb") as file:
            file.truncate(self._megabytes << 20)
        self.path = run(
            "losetup", "--find", "--show", "--sector-size", str(self._sector_size), self.file
        ).strip()
        return self

    def grow(self, megabytes: int) -> None:
        """Makes file and device bigger."""
        os.truncate(self.file, megabytes << 20)
        run("losetup", "--set-capacity", self.path)

    def __exit__(self, *_: object) -> None:
        run("losetup", "--detach", self.path)
        # The kernel detaches when the last opener is gone, which may be udev.
        backing = Path(f"/sys/block/{Path(self.path).name}/loop/backing_file")
        wait_for(lambda: not backing.exists(), f"the end of {self.path}")
        self.file.unlink()


class Mapped:
    """Any device-mapper device."""

    def __init__(self, name: str, table: str) -> None:
        self.name = name
        self.table = table
        self.path = f"/dev/mapper/{name}"

    def __enter__(self) -> Self:
        create_mapped(self.name, self.table)
        return self

    def __exit__(self, *_: object) -> None:
        remove_mapped(self.name)

    def reload(self, table: str) -> None:
        """Replaces the table of the live device."""
        run("dmsetup", "suspend", self.name)
        run("dmsetup", "load", self.name, "--table", table)
        resume_mapped(self.name)
        self.table = table

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Holds every bio that comes in until the block ends."""
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        try:
            yield
        finally:
            resume_mapped(self.name)


@dataclass(frozen=True)
class Status:
    """`dmsetup status` of a `bdr` target."""

    mode: str
    used: str
    head: int
    tail: int
    unpublished: int
    gap: str
    active: int
    resync: int
    unlogged: int
    overflows: int
    missed: int
    failed: int
    serialised: int
    stream: str


class Bdr(Mapped):
    """A `bdr` target over a whole device."""

    def __init__(
        self,
        name: str,
        lower: str,
        *,
        capacity: int,
        options: str = "",
        sectors: int | None = None,
    ) -> None:
        self.lower = lower
        self.chardev = f"bdr-{name}"
        self.device = f"/dev/{self.chardev}"
        self.capacity = capacity
        self.options = options
        super().__init__(name, self.line(sectors or sectors_of(lower)))

    def line(self, sectors: int, *, lower: str | None = None) -> str:
        """A table line of this device for another size."""
        head = f"0 {sectors} bdr {lower or self.lower} {self.chardev} {self.capacity}"
        return f"{head} {self.options}".strip()

    def status(self) -> Status:
        """The target's status line, taken apart."""
        words = run("dmsetup", "status", self.name).split()[3:]
        mode, used, head, tail, unpublished, gap, *counts, stream = words
        active, resync, unlogged, overflows, missed, failed, serialised = map(int, counts)
        return Status(
            mode,
            used,
            int(head),
            int(tail),
            int(unpublished),
            gap,
            active,
            resync,
            unlogged,
            overflows,
            missed,
            failed,
            serialised,
            stream,
        )

    def message(self, text: str) -> None:
        """Sends the target a message."""
        run("dmsetup", "message", self.name, "0", text)


class Direct:
    """O_DIRECT access to a device with Python's own buffers."""

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        self.fd = os.open(path, flags | os.O_DIRECT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def write(self, data: bytes, offset: int) -> None:
        """Writes all of `data`, a whole number of sectors."""
        with mmap.mmap(-1, max(len(data), mmap.PAGESIZE)) as buffer:
            buffer[: len(data)] = data
            with memoryview(buffer)[: len(data)] as view:
                assert os.pwritev(self.fd, [view], offset) == len(data)

    def read(self, count: int, offset: int) -> bytes:
        """Reads `count` bytes, a whole number of sectors."""
        with mmap.mmap(-1, max(count, mmap.PAGESIZE)) as buffer:
            with memoryview(buffer)[:count] as view:
                assert os.preadv(self.fd, [view], offset) == count
            return buffer[:count]


def write(path: str, data: bytes, offset: int) -> None:
    """Writes `data`, a whole number of sectors, past the page cache."""
    with Direct(path) as disk:
        disk.write(data, offset)
