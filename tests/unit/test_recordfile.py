# SPDX-License-Identifier: GPL-2.0-only
"""The state file: what is believed of it at a start."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bdr.common.copies import COPY_BYTES
from bdr.common.errors import StateDiskError, StateError, WrongDeviceError
from bdr.common.storage import device_identity
from bdr.common.storage.record_file import RecordFile
from bdr.common.target.record import (
    COPIES,
    NO_TARGET,
    RECORD_BYTES_MAX,
    ReplicaRecord,
    encode_record,
    values_of,
)
from bdr.common.target.witness import Witness
from tests.unit.test_record import LARGEST

TARGET = b"target-of-tests!"
RECORD = ReplicaRecord(volume="v", device_sectors=64, slot=7, target=TARGET)


def load(path: Path) -> ReplicaRecord:
    return RecordFile(str(path)).load(volume="v", device_sectors=64)


def test_new_file_gives_a_blank_record_with_an_id_of_its_own(tmp_path: Path) -> None:
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    assert replace(one, target=NO_TARGET) == ReplicaRecord(volume="v", device_sectors=64)
    assert len({one.target, other.target, NO_TARGET}) == 3


def test_id_of_the_target_is_kept(tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path / "state"))
    record = file.load(volume="v", device_sectors=64)
    file.save(record)
    file.close()
    assert load(tmp_path / "state").target == record.target


def test_record_of_another_version_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(COPIES.encode(values_of(RECORD) | {"future": 1}, 2) + bytes(COPY_BYTES))
    with pytest.raises(StateError, match="future"):
        load(path)


def test_state_file_of_the_version_before_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes((b"BDRREC01" + bytes(range(100))).ljust(COPY_BYTES, b"\0") * 2)
    with pytest.raises(StateError, match="BDRREC02"):
        load(path)


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
    path.write_bytes(COPIES.encode(values_of(RECORD), 2) + bytes(COPY_BYTES))
    calls: list[str] = []
    sync, sync_name, read = os.fdatasync, os.fsync, os.pread

    def note_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    def note_sync_of_name(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), tmp_path.stat())
        calls.append("sync of the name")
        sync_name(fd)

    def note_read(fd: int, size: int, at: int) -> bytes:
        calls.append("read")
        return read(fd, size, at)

    monkeypatch.setattr(os, "fdatasync", note_sync)
    monkeypatch.setattr(os, "fsync", note_sync_of_name)
    monkeypatch.setattr(os, "pread", note_read)
    assert load(path) == RECORD
    assert calls == ["sync", "sync of the name", "read"]


def test_disk_that_cannot_sync_the_record_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StateDiskError, match="Input/output error"):
        load(tmp_path / "state")


@pytest.mark.parametrize("call", ["pread", "pwrite", "fsync"])
def test_disk_that_fails_is_an_error_of_the_state_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StateDiskError, match="Input/output error"):
        save_and_load(tmp_path / "state")


def test_record_that_is_written_in_part_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a file size limit, or in the last block of a full file system."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    with pytest.raises(StateDiskError, match="No space left"):
        save_and_load(tmp_path / "state")


def save_and_load(path: Path) -> None:
    file = RecordFile(str(path))
    try:
        file.load(volume=RECORD.volume, device_sectors=RECORD.device_sectors)
        file.save(RECORD)
        file.load(volume=RECORD.volume, device_sectors=RECORD.device_sectors)
    finally:
        file.close()


def test_device_that_is_another_one_or_has_no_identity_any_more_is_refused(
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

    assert load_for("").device == ""
    assert load_for("serial 1").device == "serial 1"
    assert load_for("serial 1").device == "serial 1"
    for other in ("serial 2", ""):
        with pytest.raises(WrongDeviceError):
            load_for(other)
    assert load_for("serial 2", allow_foreign=True).device == "serial 2"
    assert load_for("serial 2").device == "serial 2"
    assert load_for("", allow_foreign=True).device == ""
    assert load_for("").device == ""
    assert load_for("serial 1").device == "serial 1"


def test_smaller_device_is_another_one_unless_it_is_allowed(tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path / "state"))
    file.save(file.load(volume="v", device_sectors=64))
    with pytest.raises(WrongDeviceError):
        file.load(volume="v", device_sectors=63)
    assert file.load(volume="v", device_sectors=63, allow_foreign=True).device_sectors == 63
    file.close()


def test_witness_is_kept_with_the_record_and_dropped_by_default(tmp_path: Path) -> None:
    witness = Witness()
    witness.recent[7] = 9
    path = str(tmp_path / "state")

    def loaded() -> bytes:
        file = RecordFile(path)
        file.load(volume="v", device_sectors=64)
        file.close()
        return file.witness

    file = RecordFile(path)
    record = file.load(volume="v", device_sectors=64)
    assert file.witness == b""
    file.save(record, witness.encode())
    file.close()
    assert loaded() == witness.encode()
    file = RecordFile(path)
    file.save(file.load(volume="v", device_sectors=64))
    file.close()
    assert loaded() == b""


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
    monkeypatch.setattr(device_identity, "_SYS", tmp_path)
    suffix = ", partition 3" if is_partition and identity else ""
    assert device_identity.identity_of_number(os.makedev(8, 3)) == identity + suffix


@pytest.mark.parametrize("serial", [b"7" * 300, b"\xff" * 300, "\N{EURO SIGN}".encode() * 100])
def test_identity_is_never_longer_than_a_record_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serial: bytes
) -> None:
    """Sysfs hands out what the disk says, in whatever encoding."""
    for partition in (1, 2):
        place = tmp_path / f"disk/{partition}"
        place.mkdir(parents=True)
        (place / "partition").write_text(f"{partition}\n")
        (tmp_path / f"8:{partition}").symlink_to(place)
    (tmp_path / "disk/serial").write_bytes(serial)
    monkeypatch.setattr(device_identity, "_SYS", tmp_path)
    one, other = (device_identity.identity_of_number(os.makedev(8, part)) for part in (1, 2))
    assert one.startswith("serial ")
    assert one != other
    assert len(one.encode()) <= device_identity.LENGTH_MAX_BYTES
    assert len(encode_record(replace(LARGEST, device=one))) <= RECORD_BYTES_MAX
