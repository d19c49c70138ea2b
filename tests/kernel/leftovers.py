# SPDX-License-Identifier: GPL-2.0-only
"""Finds, names and removes what a test has left on the machine.

Only for the virtual machine of the tests: whatever appears there during a test belongs to
the test, except for udev's processes. A test that fails may leave a process in a mount on a
mapped device over another one, suspended, over a loop device. `remove` works in rounds,
from the top of such a stack: a device cannot be removed before its users are.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PATIENCE_S = 3.0
"""For what ends without help: a process that was killed, a loop device that udev has open."""
_FORCE_AFTER_S = 10.0
"""From then on the table of a mapped device is replaced by one that fails all I/O."""
_REMOVE_S = 40.0
_COMMAND_S = 15.0
_KTHREADD = 2
_MISC_MAJOR = 10
_MODULES = ("null_blk",)
"""Modules with parameters of one test: the next test must load them again."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_MAP_FIXED = 0x10

# linux/dm-ioctl.h: struct dm_ioctl as far as it matters here, and struct dm_name_list.
_DM_HEAD = struct.Struct("=5I292s")
_DM_NAME = struct.Struct("=QI")
_DM_BUFFER_BYTES = _DM_HEAD.size + (1 << 16)
_DM_LIST_DEVICES = 3 << 30 | _DM_HEAD.size << 16 | 0xFD << 8 | 2


class Kind(enum.Enum):
    """What a test can leave, in the order in which it is removed."""

    FILE = "open file of the test process"
    MAPPING = "mapping of the test process"
    PROCESS = "process"
    MOUNT = "mount"
    MAPPED = "device-mapper device"
    LOOP = "loop device"
    MODULE = "kernel module"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One of them.

    Attributes:
        name: its identity: a descriptor, an address range, a pid with its start time, a
            mount point, the name of a device or module.
        detail: for the message only.
    """

    kind: Kind
    name: str
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}" + (f" ({self.detail})" if self.detail else "")


def found() -> list[Leftover]:
    """Everything of these kinds that the machine has now, users before what they use."""
    return [
        *_files(),
        *_mappings(),
        *_processes(),
        *reversed(list(_mounts())),
        *_mapped(),
        *_loops(),
        *(Leftover(Kind.MODULE, name) for name in _MODULES if Path("/sys/module", name).exists()),
    ]


def left_since(before: Iterable[Leftover]) -> list[Leftover]:
    """What is not in `before`, and does not end within a moment."""
    known = set(before)
    deadline_s = time.monotonic() + _PATIENCE_S
    while left := [one for one in found() if one not in known]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return left


def remove(before: Iterable[Leftover]) -> list[Leftover]:
    """Removes what is not in `before`; returns what could not be removed."""
    known = set(before)
    began_s = time.monotonic()
    while left := [one for one in found() if one not in known]:
        elapsed_s = time.monotonic() - began_s
        if elapsed_s > _REMOVE_S:
            break
        # A process, a mount or a removal may wait for I/O that a suspended device holds.
        for one in left:
            if one.kind is Kind.MAPPED and _is_suspended(one.detail):
                _try("dmsetup", "resume", "--noudevsync", one.name)
        for one in left:
            _REMOVERS[one.kind](one.name, elapsed_s > _FORCE_AFTER_S)
        time.sleep(0.1)
    return left


def _files() -> Iterator[Leftover]:
    """Block devices, and control devices as the module's."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(entry))
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor of the listing
        is_control = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _MISC_MAJOR
        if stat.S_ISBLK(status.st_mode) or is_control:
            yield Leftover(Kind.FILE, f"{entry}:{target}")


def _mappings() -> Iterator[Leftover]:
    """Of control devices, which hold their module."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/dev/") and "/shm/" not in words[5]:
            yield Leftover(Kind.MAPPING, words[0], words[5])


def _processes() -> Iterator[Leftover]:
    """Of user space, without this one and those of udev, which start and end at any time."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    started: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        words = rest.split()
        if words[0] in "ZX":
            continue
        pid = int(entry)
        parents[pid], names[pid], started[pid] = int(words[1]), name, words[19]

    def line_of(pid: int) -> Iterator[int]:
        while pid:
            yield pid
            pid = parents.get(pid, 0)

    for pid in parents:
        line = list(line_of(pid))
        is_udev = any("udev" in names.get(one, "") for one in line)
        if pid not in (1, os.getpid()) and _KTHREADD not in line and not is_udev:
            yield Leftover(Kind.PROCESS, f"{pid}@{started[pid]}", _command(pid) or names[pid])


def _command(pid: int) -> str:
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()[:200]


def _mounts() -> Iterator[Leftover]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        source = words[words.index("-") + 2]
        yield Leftover(Kind.MOUNT, words[4].encode().decode("unicode_escape"), source)


def _mapped() -> Iterator[Leftover]:
    """From the kernel's list: /sys does not have a device whose table was never live."""
    buffer = bytearray(
        _DM_HEAD.pack(4, 0, 0, _DM_BUFFER_BYTES, _DM_HEAD.size, b"") + bytes(1 << 16)
    )
    try:
        control = os.open("/dev/mapper/control", os.O_RDWR)
    except OSError:
        return  # no device-mapper, no devices
    try:
        fcntl.ioctl(control, _DM_LIST_DEVICES, buffer)
    finally:
        os.close(control)
    at = int.from_bytes(buffer[16:20], sys.byteorder)
    while True:
        device, step = _DM_NAME.unpack_from(buffer, at)
        if not device:
            return
        name = buffer[at + _DM_NAME.size : buffer.index(0, at + _DM_NAME.size)].decode()
        yield Leftover(Kind.MAPPED, name, f"dm-{os.minor(device)}")
        if not step:
            return
        at += step


def _loops() -> Iterator[Leftover]:
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            text = backing.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        yield Leftover(Kind.LOOP, f"/dev/{backing.parts[3]}", text)


def _is_suspended(device: str) -> bool:
    try:
        return Path("/sys/block", device, "dm/suspended").read_text().strip() == "1"
    except OSError:
        return False


def _try(*words: str) -> None:
    """Runs a command that may fail, or hang in this round."""
    try:
        subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S
        )
    except subprocess.TimeoutExpired:
        return


def _close(name: str, _force: bool) -> None:
    """Puts /dev/null in its place: an object may still close the number."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, int(name.partition(":")[0]))
    os.close(null)


def _unmap(name: str, _force: bool) -> None:
    """Puts inaccessible memory in its place: an object may still unmap the range."""
    first, last = (int(address, 16) for address in name.split("-"))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    _libc.mmap(first, last - first, 0, flags, -1, 0)


def _kill(name: str, _force: bool) -> None:
    try:
        os.kill(int(name.partition("@")[0]), signal.SIGKILL)
    except ProcessLookupError:
        return


def _unmount(name: str, force: bool) -> None:
    _try("umount", *(["--lazy"] if force else []), name)


def _remove_mapped(name: str, force: bool) -> None:
    _try("dmsetup", "remove", *(["--force"] if force else []), name)


_REMOVERS: dict[Kind, Callable[[str, bool], None]] = {
    Kind.FILE: _close,
    Kind.MAPPING: _unmap,
    Kind.PROCESS: _kill,
    Kind.MOUNT: _unmount,
    Kind.MAPPED: _remove_mapped,
    Kind.LOOP: lambda name, _: _try("losetup", "--detach", name),
    Kind.MODULE: lambda name, _: _try("rmmod", name),
}
