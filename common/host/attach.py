# SPDX-License-Identifier: GPL-2.0-only
"""Stacks the device-mapper target `bdr` on a device, and removes it.

Everything is checked before anything is changed, and each refusal states what to do. The host's
state is read through `Host`, so the checks can be tested with a fake; the kernel makes the final
check when it opens the device exclusively.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bdr.common.errors import DeviceError, UsageError
from bdr.common.host.keys import keys_of
from bdr.common.host.tables import MAPPED_NAME, Source
from bdr.common.host.underlying import Looking, check_discard, family, users
from bdr.common.ring.layout import CAPACITY_MAX, CAPACITY_MIN, SLOT_BYTES

_NODE_TIMEOUT_S = 10.0
_UDEV_CONTROL = "/run/udev/control"
"""There while udevd runs; dmsetup looks for it too."""
_UDEV_TIMEOUT_S = 10
_REMOVE_TIMEOUT_S = 5.0
_UUID_PREFIX = "BDR-"


@dataclass(frozen=True, slots=True)
class Attachment:
    """Parameters of the device-mapper target."""

    name: str
    """The application's device will be /dev/mapper/NAME."""
    underlying: str
    """Path of the device that holds the data."""
    chardev: str
    """The control device will be /dev/CHARDEV."""
    capacity: int
    """Slots: writes of at most 4096 bytes."""
    region_sectors: int = Source.region_sectors
    stable: str = Source.stable
    discard: str = Source.discard

    def table(self, device_sectors: int) -> str:
        """The device-mapper table."""
        # The kernel splits it at blanks that no backslash precedes.
        underlying = re.sub(r"([\s\\])", r"\\\1", self.underlying)
        return (
            f"0 {device_sectors} bdr {underlying} {self.chardev} {self.capacity} "
            f"6 region_sectors {self.region_sectors} stable {self.stable} discard {self.discard}"
        )


class Host(Looking, Protocol):
    """Host state and commands that attaching needs."""

    def number(self, path: str) -> str | None:
        """ "MAJOR:MINOR" of the block device at `path`, None if there is no such device."""
        ...


def writes_of_bytes(size_bytes: int) -> int:
    """Capacity in writes of a buffer of so many bytes; a write takes 4104.

    Raises:
        UsageError: fewer or more than a ring may have.
    """
    writes = size_bytes // SLOT_BYTES
    if not CAPACITY_MIN <= writes <= CAPACITY_MAX:
        raise UsageError(
            f"buffer of {size_bytes} bytes: found room for {writes} writes of {SLOT_BYTES} bytes, "
            f"wanted {CAPACITY_MIN} to {CAPACITY_MAX}"
        )
    return writes


def attach(host: Host, wanted: Attachment) -> None:
    """Creates /dev/mapper/NAME over the device.

    Raises:
        UsageError: a name or number is not possible.
        DeviceError: the module, the device or a name is not available.
    """
    _check_arguments(wanted)
    _check_module(host)
    sectors = _check_device(host, wanted)
    for path in (f"/dev/mapper/{wanted.name}", f"/dev/{wanted.chardev}"):
        if host.exists(path):
            raise DeviceError(f"{path}: exists already; choose another name")
    if wanted.name in _mapped_names(host):
        raise DeviceError(f"{wanted.name}: a device-mapper device has this name; choose another")
    _create(host, wanted.name, wanted.table(sectors))
    _wait_for_node(lambda: host.exists(f"/dev/{wanted.chardev}"), f"/dev/{wanted.chardev}")


def detach(host: Host, name: str, *, force: bool = False) -> None:
    """Removes /dev/mapper/NAME; the underlying device keeps every write.

    Args:
        force: also if the replica lacks writes, in the ring or in regions that the bitmaps mark.
            The next attach starts with a resync in any case.

    Raises:
        DeviceError: NAME is no `bdr` device, is in use, or holds such writes.
    """
    # Before the checks: what holds up the removal after them makes them old.
    _wait_for_udev(host)
    table = _bdr_table(host, name)
    mounted = _mounts(host, _mapped_number(host, name))
    if mounted:
        raise DeviceError(f"/dev/mapper/{name}: mounted at {mounted[0]}; unmount it first")
    _remove(host, name, force=force)
    chardev = f"/dev/{table[4]}"
    _wait_for_node(lambda: not host.exists(chardev), f"the end of {chardev}")


def attached(host: Host) -> list[tuple[str, str, str, int]]:
    """(name, underlying device's number, control device's path, capacity) of each target."""
    found = []
    for line in host.run("dmsetup", "table", "--target", "bdr").splitlines():
        name, _, table = line.partition(": ")
        words = table.split()
        if len(words) >= 6 and words[2] == "bdr":
            found.append((name, words[3], f"/dev/{words[4]}", int(words[5])))
    return found


def _create(host: Host, name: str, table: str) -> None:
    """Creates a mapped device.

    dmsetup waits for udev by a cookie, which udev gives back when its rules for the new
    device have run: on return it is not open and has its links. Where no udev runs,
    dmsetup makes the node itself. By the prefix of its UUID udev, lsblk and LVM can tell it
    from other mapped devices.
    """
    host.run("dmsetup", "create", name, "--table", table, "--uuid", f"{_UUID_PREFIX}{name}")


def _wait_for_udev(host: Host) -> None:
    """Waits until udev has handled the events that it has, if it runs here."""
    if host.exists(_UDEV_CONTROL):
        # Other devices' events may keep it busy: that is no reason not to go on.
        with contextlib.suppress(DeviceError):
            host.run("udevadm", "settle", f"--timeout={_UDEV_TIMEOUT_S}")


def _remove(host: Host, name: str, *, force: bool) -> None:
    """Removes a mapped device that no application has open, and whose replica lacks nothing.

    udev opens a device once more when a process that could write to it has closed it, as
    umount does. No cookie says when it has looked; a removal in that moment is EBUSY. So
    it is tried again for 5 s, as lvm2 and cryptsetup do, and checked again each time: an
    application may have it open as well, and write to it.
    """
    deadline_at = time.monotonic() + _REMOVE_TIMEOUT_S
    while True:
        if not force:
            _check_level(host, name)
        try:
            host.run("dmsetup", "remove", name)
        except DeviceError:
            if time.monotonic() > deadline_at:
                raise
            time.sleep(0.1)
        else:
            return


def _check_arguments(wanted: Attachment) -> None:
    keys = keys_of(Source)
    for what, kind, value in (
        ("name", MAPPED_NAME, wanted.name),
        ("control device", MAPPED_NAME, wanted.chardev),
        ("buffer in writes", keys["buffer_writes"].kind, wanted.capacity),
        ("region_sectors", keys["region_sectors"].kind, wanted.region_sectors),
        ("stable", keys["stable"].kind, wanted.stable),
        ("discard", keys["discard"].kind, wanted.discard),
    ):
        try:
            kind.check(value)
        except ValueError:
            raise UsageError(f"{what}: found {value!r}; wanted {kind.wanted}") from None


def _check_module(host: Host) -> None:
    if is_target_known(host):
        return
    try:
        host.run("modprobe", "bdr")
    except DeviceError as error:
        raise DeviceError(
            f"the kernel module bdr is not loaded and cannot be ({error}); build it with `make "
            "module-install`, or capture with the nbdkit plugin where modules cannot be loaded"
        ) from error
    if not is_target_known(host):
        raise DeviceError("modprobe bdr succeeded, but device-mapper has no target `bdr`")


def is_target_known(host: Host) -> bool:
    """Whether device-mapper has the target `bdr`: the module is loaded."""
    targets = host.run("dmsetup", "targets").splitlines()
    return any(line.split()[:1] == ["bdr"] for line in targets)


def _check_level(host: Host, name: str) -> None:
    """Refuses while the replica lacks something, as far as the capture knows."""
    words = host.run("dmsetup", "status", name).split()
    mode, used, regions = words[3], words[4].split("/")[0], int(words[9]) + int(words[10])
    if mode == "STREAM" and used == "0" and not regions:
        return
    raise DeviceError(
        f"/dev/mapper/{name}: the replica lacks {used} writes of the ring, and writes to "
        f"{regions} regions; wait, or use --force"
    )


def _check_device(host: Host, wanted: Attachment) -> int:
    """Size in sectors of a device that is not in use."""
    path = wanted.underlying
    number = host.number(path)
    if number is None:
        raise DeviceError(f"{path}: no block device; give the device that holds the data")
    for member in family(host, number):
        mounted = _mounts(host, member)
        if mounted:
            raise DeviceError(
                f"{path}: {_kernel_name(host, member)} is mounted at {mounted[0]}; unmount it, "
                "and mount /dev/mapper/NAME instead"
            )
        for line in host.read("/proc/swaps").splitlines()[1:]:
            if host.number(line.split()[0]) == member:
                raise DeviceError(f"{path}: {line.split()[0]} is swap; swapoff it first")
        for name, lower, chardev, _ in attached(host):
            if lower == member:
                raise DeviceError(f"{path}: already attached as /dev/mapper/{name} with {chardev}")
    others = users(host, number)
    if others:
        raise DeviceError(
            f"{path}: in use by {', '.join(others)}; what they write is not captured. Have them "
            "use /dev/mapper/NAME instead (LVM: vgchange -an, and filter the underlying device)"
        )
    check_discard(host, path, number, discard=wanted.discard)
    # /sys counts in sectors of 512 bytes, independent of the device's own.
    sectors = int(host.read(f"/sys/dev/block/{number}/size") or 0)
    if not sectors:
        raise DeviceError(f"{path}: it has no size")
    return sectors


def _kernel_name(host: Host, number: str) -> str:
    for line in host.read(f"/sys/dev/block/{number}/uevent").splitlines():
        if line.startswith("DEVNAME="):
            return f"/dev/{line.removeprefix('DEVNAME=')}"
    return number


def _mounts(host: Host, number: str) -> list[str]:
    """Where the device is mounted."""
    fields = (line.split() for line in host.read("/proc/self/mountinfo").splitlines())
    found = []
    for words in fields:
        # btrfs shows an anonymous device number, but names the device as its source.
        source = words[words.index("-") + 2] if "-" in words else ""
        if words[2] == number or (source.startswith("/dev/") and host.number(source) == number):
            found.append(words[4])
    return found


def _mapped_names(host: Host) -> list[str]:
    lines = host.run("dmsetup", "ls").splitlines()
    return [line.split()[0] for line in lines if "\t" in line or "(" in line]


def _mapped_number(host: Host, name: str) -> str:
    return host.run(
        "dmsetup", "info", "-c", "--noheadings", "--separator", ":", "-o", "major,minor", name
    ).strip()


def _bdr_table(host: Host, name: str) -> list[str]:
    if name not in _mapped_names(host):
        raise DeviceError(f"/dev/mapper/{name}: not attached")
    lines = host.run("dmsetup", "table", name).splitlines()
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) < 6 or words[2] != "bdr":
        raise DeviceError(f"/dev/mapper/{name}: a device-mapper device, but not one of bdr's")
    return words


def _wait_for_node(fact: Callable[[], bool], what: str) -> None:
    deadline_at = time.monotonic() + _NODE_TIMEOUT_S
    while not fact():
        if time.monotonic() > deadline_at:
            raise DeviceError(f"{what}: not within {_NODE_TIMEOUT_S:g} s; is devtmpfs at /dev?")
        time.sleep(0.02)


class LinuxHost:
    """This host."""

    def run(self, *words: str) -> str:
        try:
            done = subprocess.run(
                words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise DeviceError(f"{words[0]}: not installed") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"ended with {done.returncode}"
            hint = "; dmesg says why" if words[:2] == ("dmsetup", "create") else ""
            if "kernel device-mapper driver" in said:
                said = said.splitlines()[0]
                hint = "; wanted device-mapper in this kernel: modprobe dm_mod"
            raise DeviceError(f"{' '.join(words[:3])}: {said}{hint}")
        return done.stdout

    def number(self, path: str) -> str | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def read(self, path: str) -> str:
        try:
            return Path(path).read_text()
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def writers(self, number: str) -> list[str]:
        found = []
        for process in filter(str.isdigit, self.names("/proc")):
            for descriptor in self.names(f"/proc/{process}/fd"):
                if self._is_writer(f"/proc/{process}", descriptor, number):
                    name = self.read(f"/proc/{process}/comm").strip()
                    found.append(f"process {process} ({name})")
                    break
        return found

    def _is_writer(self, process: str, descriptor: str, number: str) -> bool:
        try:
            # By name first: to ask a file of a dead network file system would hang.
            if not os.readlink(f"{process}/fd/{descriptor}").startswith("/dev/"):
                return False
        except OSError:
            return False
        if self.number(f"{process}/fd/{descriptor}") != number:
            return False
        lines = self.read(f"{process}/fdinfo/{descriptor}").splitlines()
        flags = [int(line.split()[1], 8) for line in lines if line.startswith("flags:")]
        return any(each & os.O_ACCMODE != os.O_RDONLY for each in flags)
