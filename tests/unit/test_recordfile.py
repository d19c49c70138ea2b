# SPDX-License-Identifier: GPL-2.0-only
"""The state file: what is believed of it at a start."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bdr.common.errors import StateError
from bdr.common.storage import target_device
from bdr.common.storage.record_file import RecordFile
from bdr.common.target.record import COPY_BYTES, ReplicaRecord, encode_copy

RECORD = ReplicaRecord(volume="v", device_sectors=64, slot=7)


def load(path: Path) -> ReplicaRecord:
    return RecordFile(str(path)).load(volume="v", device_sectors=64)


def test_new_file_gives_a_blank_record(tmp_path: Path) -> None:
    assert load(tmp_path / "state") == ReplicaRecord(volume="v", device_sectors=64)


def test_saved_records_are_found_again_the_newest_first(tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path / "state"))
    file.load(volume="v", device_sectors=64)
    for slot in range(1, 6):
        file.save(ReplicaRecord(volume="v", device_sectors=64, slot=slot))
    file.close()
    assert load(tmp_path / "state").slot == 5


def test_record_left_by_a_killed_process_is_synced_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between pwrite and fdatasync; a power cut might still take the copy back."""
    path = tmp_path / "state"
    path.write_bytes(encode_copy(RECORD, 2) + bytes(COPY_BYTES))
    calls: list[str] = []
    sync, read = os.fdatasync, os.pread

    def note_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    def note_read(fd: int, size: int, at: int) -> bytes:
        calls.append("read")
        return read(fd, size, at)

    monkeypatch.setattr(os, "fdatasync", note_sync)
    monkeypatch.setattr(os, "pread", note_read)
    assert load(path) == RECORD
    assert calls == ["sync", "read"]


def test_disk_that_cannot_sync_the_record_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StateError, match="Input/output error"):
        load(tmp_path / "state")


@pytest.mark.parametrize("call", ["pread", "pwrite", "fsync"])
def test_disk_that_fails_is_an_error_of_the_state_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StateError, match="Input/output error"):
        save_and_load(tmp_path / "state")


def test_record_that_is_written_in_part_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a file size limit, or in the last block of a full file system."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    with pytest.raises(StateError, match="No space left"):
        save_and_load(tmp_path / "state")


def save_and_load(path: Path) -> None:
    file = RecordFile(str(path))
    try:
        file.load(volume=RECORD.volume, device_sectors=RECORD.device_sectors)
        file.save(RECORD)
        file.load(volume=RECORD.volume, device_sectors=RECORD.device_sectors)
    finally:
        file.close()


def test_device_that_is_another_one_is_refused_and_one_that_does_not_say_is_not(
    tmp_path: Path,
) -> None:
    def load_for(device: str, *, allow_foreign: bool = False) -> ReplicaRecord:
        file = RecordFile(str(tmp_path / "state"))
        try:
            record = file.load(
                volume="v", device_sectors=64, device=device, allow_foreign=allow_foreign
            )
            # As of a store whose journal knows nothing of the device.
            file.save(replace(record, device=""))
            return record
        finally:
            file.close()

    assert load_for("serial 1").device == "serial 1"
    assert load_for("").device == "serial 1"
    assert load_for("serial 1").device == "serial 1"
    with pytest.raises(StateError, match="found the target to be 'serial 2', wanted 'serial 1'"):
        load_for("serial 2")
    assert load_for("serial 2", allow_foreign=True).device == "serial 2"
    assert load_for("serial 2").device == "serial 2"


def test_promoted_device_is_refused(tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path / "state"))
    record = file.load(volume="v", device_sectors=64)
    file.save(replace(record, promoted_utc=1))
    with pytest.raises(StateError, match="promoted, on 1970-01-01 00:00:01 UTC"):
        file.load(volume="v", device_sectors=64)
    assert file.load(volume="v", device_sectors=64, allow_foreign=True).promoted_utc == 1
    file.close()


@pytest.mark.parametrize(
    ("attributes", "identity"),
    [
        ({}, ""),
        ({"serial": " fast\n"}, "serial fast"),
        ({"device/wwid": "t10.ATA  QEMU   1 \n", "device/serial": "1"}, "wwid t10.ATA QEMU 1"),
        ({"dm/uuid": "LVM-abc\n", "wwid": "x"}, "uuid LVM-abc"),
        ({"dm/uuid": "\n"}, ""),
    ],
)
@pytest.mark.parametrize("is_partition", [False, True])
def test_identity_of_a_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attributes: dict[str, str],
    identity: str,
    is_partition: bool,
) -> None:
    """As sysfs shows it: a link to the disk's directory, or to a partition's in that."""
    disk = tmp_path / "devices/disk"
    place = disk / "disk3" if is_partition else disk
    place.mkdir(parents=True)
    for name, value in attributes.items():
        (disk / name).parent.mkdir(exist_ok=True)
        (disk / name).write_text(value)
    if is_partition:
        (place / "partition").write_text("3\n")
    (tmp_path / "8:3").symlink_to(place)
    monkeypatch.setattr(target_device, "_SYS", tmp_path)
    suffix = ", partition 3" if is_partition and identity else ""
    assert target_device._identity(os.makedev(8, 3)) == identity + suffix
