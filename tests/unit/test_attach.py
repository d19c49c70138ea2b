# SPDX-License-Identifier: GPL-2.0-only
"""Attaching refuses what cannot go well, and says what to do, before it changes anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.errors import BdrError, DeviceError, UsageError
from bdr.common.host.attach import Attachment, attach, attached, detach, writes_of_bytes
from bdr.common.host.underlying import users

WANTED = Attachment(name="data", underlying="/dev/vdb", chardev="bdr-data", capacity=16352)


class FakeHost:
    """A host with one disk of 1 GiB, /dev/vdb (254:16), that has a partition."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.targets = "bdr              v1.0.0\nlinear           v1.4.0\n"
        self.nodes = {"/dev/vdb": "254:16", "/dev/vdb1": "254:17"}
        self.paths = {"/sys/dev/block/254:16/vdb1/partition"}
        self.directories = {"/sys/dev/block/254:16": ["size", "vdb1"]}
        self.files = {
            "/sys/dev/block/254:16/size": "2097152\n",
            "/sys/dev/block/254:16/vdb1/dev": "254:17\n",
            "/sys/dev/block/254:17/uevent": "MAJOR=254\nDEVNAME=vdb1\n",
            "/sys/dev/block/254:16/uevent": "MAJOR=254\nDEVNAME=vdb\n",
        }
        self.tables: dict[str, str] = {}
        self.is_udev_busy = False
        self.open_by: dict[str, list[str]] = {}
        self.busy = 0
        """How often a removal fails."""
        self.status = "0 2097152 bdr STREAM 0/16352 5 5 5 - 0 0 0 0 0 0 0 ab"

    def run(self, *words: str) -> str:
        command = " ".join(words)
        self.commands.append(command)
        if command == "dmsetup targets":
            return self.targets
        if command == "modprobe bdr":
            raise DeviceError("modprobe: Module bdr not found")
        if words[0] == "udevadm" and self.is_udev_busy:
            raise DeviceError("udevadm settle: ended with 1")
        if command == "dmsetup ls":
            return "".join(f"{name}\t(252:0)\n" for name in self.tables) or "No devices found\n"
        if command == "dmsetup table --target bdr":
            return "".join(f"{name}: {table}\n" for name, table in self.tables.items())
        if command.startswith("dmsetup table "):
            return self.tables[words[-1]]
        if command.startswith("dmsetup status "):
            return self.status
        if command.startswith("dmsetup info "):
            return "252:0\n"
        if command.startswith("dmsetup create "):
            self.tables[words[2]] = words[4]
            self.paths.add(f"/dev/{words[4].split()[4]}")
        if command.startswith("dmsetup remove ") and self.busy:
            self.busy -= 1
            self.on_busy()
            raise DeviceError("dmsetup remove: Device or resource busy")
        if command.startswith("dmsetup remove "):
            self.paths.discard(f"/dev/{self.tables.pop(words[-1]).split()[4]}")
        return ""

    def on_busy(self) -> None:
        """Something else happens meanwhile."""

    def writers(self, number: str) -> list[str]:
        return self.open_by.get(number, [])

    def number(self, path: str) -> str | None:
        return self.nodes.get(path)

    def exists(self, path: str) -> bool:
        return path in self.paths

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def names(self, path: str) -> list[str]:
        return self.directories.get(path, [])


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


def refusal(host: FakeHost, wanted: Attachment = WANTED) -> str:
    """Why an attach is refused; nothing may have been created."""
    with pytest.raises(BdrError) as error:
        attach(host, wanted)
    assert not any(command.startswith("dmsetup create") for command in host.commands)
    return str(error.value)


def test_attach_free_device_creates_the_target(host: FakeHost) -> None:
    attach(host, WANTED)
    table = "0 2097152 bdr /dev/vdb bdr-data 16352 6 region_sectors 128 stable copy discard zero"
    assert host.commands[-1] == f"dmsetup create data --table {table} --uuid BDR-data"


def test_attach_module_missing_says_how_to_get_it(host: FakeHost) -> None:
    host.targets = "linear           v1.4.0\n"
    assert "make module-install" in refusal(host)
    assert "nbdkit" in refusal(host)


def test_attach_no_device_refused(host: FakeHost) -> None:
    assert "no block device" in refusal(host, Attachment("data", "/dev/vdz", "bdr-data", 64))


def test_attach_mounted_device_refused(host: FakeHost) -> None:
    host.files["/proc/self/mountinfo"] = "29 1 254:16 / /srv rw - ext4 /dev/vdb rw\n"
    assert "mounted at /srv" in refusal(host)


def test_attach_device_with_mounted_partition_refused(host: FakeHost) -> None:
    host.files["/proc/self/mountinfo"] = "29 1 254:17 / /srv rw - ext4 /dev/vdb1 rw\n"
    assert "/dev/vdb1 is mounted at /srv" in refusal(host)


def test_attach_btrfs_mount_found_by_its_source(host: FakeHost) -> None:
    host.files["/proc/self/mountinfo"] = "29 1 0:45 /sub /srv rw shared:1 - btrfs /dev/vdb rw\n"
    assert "mounted at /srv" in refusal(host)


def test_attach_swap_refused(host: FakeHost) -> None:
    host.files["/proc/swaps"] = "Filename Type\n/dev/vdb1 partition 100 0 -2\n"
    assert "swapoff" in refusal(host)


def test_attach_held_device_refused(host: FakeHost) -> None:
    host.directories["/sys/dev/block/254:16/holders"] = ["md0"]
    assert "in use by md0" in refusal(host)


def test_attach_device_that_lvm_has_activated_refused(host: FakeHost) -> None:
    host.directories["/sys/dev/block/254:17/holders"] = ["dm-3"]
    host.files["/sys/class/block/dm-3/dm/name"] = "vg-root\n"
    host.files["/sys/class/block/dm-3/dm/uuid"] = "LVM-abc\n"
    assert "dm-3 (LVM volume vg-root)" in refusal(host)


def test_attach_device_that_a_process_may_write_to_refused(host: FakeHost) -> None:
    host.open_by["254:17"] = ["process 7 (qemu)"]
    assert "process 7 (qemu)" in refusal(host)


def test_users_of_an_attached_device_are_those_besides_the_capture(host: FakeHost) -> None:
    host.directories["/sys/dev/block/254:16/holders"] = ["dm-0", "dm-1"]
    for number, name in enumerate(("data", "vg-db")):
        host.files[f"/sys/class/block/dm-{number}/dm/name"] = f"{name}\n"
    assert users(host, "254:16", besides="data") == ["dm-1 (vg-db)"]


def with_thin(host: FakeHost, *features: str) -> None:
    """The disk is a thin volume of device-mapper."""
    host.files["/sys/dev/block/254:16/dm/name"] = "vg-db\n"
    host.files["/sys/dev/block/252:9/dm/name"] = "vg-pool-tpool\n"
    host.tables["vg-db"] = "0 2097152 thin 252:9 1"
    words = ("0 2097152 thin-pool 252:7 252:8 128 0", str(len(features)), *features)
    host.tables["vg-pool-tpool"] = " ".join(words)


PASS = replace(WANTED, discard="pass")


def test_attach_discard_pass_takes_a_thin_volume_only(host: FakeHost) -> None:
    assert "--discard zero" in refusal(host, PASS)
    host.files["/sys/dev/block/254:16/dm/name"] = "vg-db\n"
    host.tables["vg-db"] = "0 1 thin 252:9 1\n1 2097151 linear 8:0 0"
    assert "--discard zero" in refusal(host, PASS)
    with_thin(host)
    attach(host, PASS)
    assert host.tables["data"].endswith("discard pass")


@pytest.mark.parametrize("wanted", [WANTED, PASS])
def test_attach_thin_volume_of_a_pool_that_does_not_zero_refused(
    host: FakeHost, wanted: Attachment
) -> None:
    with_thin(host, "skip_block_zeroing")
    assert "lvchange --zero y" in refusal(host, wanted)


def test_attach_twice_refused(host: FakeHost) -> None:
    host.tables["old"] = "0 2097152 bdr 254:16 bdr-old 64 4 region_sectors 128 stable copy"
    assert "already attached as /dev/mapper/old with /dev/bdr-old" in refusal(host)


@pytest.mark.parametrize("path", ["/dev/mapper/data", "/dev/bdr-data"])
def test_attach_name_collision_refused(host: FakeHost, path: str) -> None:
    host.paths.add(path)
    assert f"{path}: exists already" in refusal(host)


def test_attach_name_of_a_mapped_device_refused(host: FakeHost) -> None:
    host.tables["data"] = "0 8 linear 8:0 0"
    assert "choose another" in refusal(host)


@pytest.mark.parametrize("name", ["", "a b", "../x", "%s", "-x", "n" * 64])
def test_attach_impossible_name_refused(host: FakeHost, name: str) -> None:
    with pytest.raises(UsageError):
        attach(host, Attachment(name, "/dev/vdb", "bdr-data", 64))
    with pytest.raises(UsageError):
        attach(host, Attachment("data", "/dev/vdb", name, 64))


@pytest.mark.parametrize(
    "wanted",
    [
        Attachment("data", "/dev/vdb", "bdr-data", 7),
        Attachment("data", "/dev/vdb", "bdr-data", 1 << 29),
        Attachment("data", "/dev/vdb", "bdr-data", 64, region_sectors=100),
        Attachment("data", "/dev/vdb", "bdr-data", 64, region_sectors=4),
        Attachment("data", "/dev/vdb", "bdr-data", 64, stable="maybe"),
        Attachment("data", "/dev/vdb", "bdr-data", 64, discard="maybe"),
    ],
)
def test_attach_impossible_numbers_refused(host: FakeHost, wanted: Attachment) -> None:
    with pytest.raises(UsageError):
        attach(host, wanted)


def test_detach_idle_target_removes_it(host: FakeHost) -> None:
    attach(host, WANTED)
    assert attached(host) == [("data", "/dev/vdb", "/dev/bdr-data", 16352)]
    detach(host, "data")
    assert host.tables == {}


@pytest.mark.parametrize("is_busy", [False, True])
def test_detach_with_udev_waits_for_its_queue_before_the_checks(
    host: FakeHost, is_busy: bool
) -> None:
    attach(host, WANTED)
    host.paths.add("/run/udev/control")
    host.is_udev_busy = is_busy
    detach(host, "data")
    assert host.tables == {}
    verbs = [command.split()[:2] for command in host.commands]
    settled = verbs.index(["udevadm", "settle"])
    assert settled < verbs.index(["dmsetup", "status"])
    assert host.commands[-1] == "dmsetup remove data"


def test_detach_without_udev_does_not_call_udevadm(host: FakeHost) -> None:
    attach(host, WANTED)
    detach(host, "data")
    assert not any(command.startswith("udevadm") for command in host.commands)


IDLE = "STREAM 0/16352 5 5 5 - 0 0"


@pytest.mark.parametrize(
    "state",
    [
        "STREAM 3/16352 5 5 5 - 0 0",
        "OVERFLOW 0/16352 5 5 5 - 0 0",
        "STREAM 0/16352 5 5 5 - 1 0",
        "STREAM 0/16352 5 5 5 - 0 16384",
    ],
)
def test_detach_target_ahead_of_its_replica_needs_force(host: FakeHost, state: str) -> None:
    attach(host, WANTED)
    assert IDLE in host.status
    host.status = host.status.replace(IDLE, state)
    with pytest.raises(DeviceError, match="--force"):
        detach(host, "data")
    detach(host, "data", force=True)
    assert host.tables == {}


def test_detach_looks_again_when_the_removal_had_to_wait(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        host.status = host.status.replace("STREAM 0/", "STREAM 1/")

    attach(host, WANTED)
    host.busy = 1
    detach(host, "data")
    attach(host, WANTED)
    host.busy = 1
    monkeypatch.setattr(host, "on_busy", write)
    with pytest.raises(DeviceError, match="--force"):
        detach(host, "data")
    assert "data" in host.tables


def test_detach_mounted_target_refused(host: FakeHost) -> None:
    attach(host, WANTED)
    host.files["/proc/self/mountinfo"] = "29 1 252:0 / /srv rw - ext4 /dev/mapper/data rw\n"
    with pytest.raises(DeviceError, match="mounted at /srv"):
        detach(host, "data", force=True)


def test_detach_of_something_else_refused(host: FakeHost) -> None:
    host.tables["other"] = "0 8 linear 8:0 0"
    with pytest.raises(DeviceError, match="not one of bdr's"):
        detach(host, "other")
    with pytest.raises(DeviceError, match="not attached"):
        detach(host, "absent")


@pytest.mark.parametrize(
    ("size_bytes", "writes"), [(4104 * 8, 8), (64 << 20, 16352), (4104 * 9 - 1, 8)]
)
def test_buffer_bytes_become_writes_of_4104(size_bytes: int, writes: int) -> None:
    assert writes_of_bytes(size_bytes) == writes


@pytest.mark.parametrize("size_bytes", [0, 4104 * 8 - 1, 1 << 62])
def test_buffer_outside_the_limits_refused(size_bytes: int) -> None:
    with pytest.raises(UsageError, match="wanted 8 to"):
        writes_of_bytes(size_bytes)
