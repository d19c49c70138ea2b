# SPDX-License-Identifier: GPL-2.0-only
"""Opens the store for a target's configuration."""

from __future__ import annotations

from bdr.common.host.tables import WITHOUT_JOURNAL
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import ReplicaRecord
from bdr.services.target.journal_store import check_no_journal, open_journal
from bdr.services.target.recognition import recognised
from bdr.services.target.store import DirectStore, Store


def journal_path(journal: str | None, *, state: str) -> str:
    """Path of the journal: the configured one, or the default, also if there is to be none."""
    return f"{state}.journal" if journal in (None, WITHOUT_JOURNAL) else journal


def open_store(
    *,
    journal: str | None,
    journal_size: int | None,
    device: TargetDevice,
    record_file: RecordFile,
    volume: str,
) -> tuple[Store, ReplicaRecord]:
    """The store, and the replica's record at start.

    Raises:
        WrongDeviceError: the device is another one than the record's; nothing was written to it.
        StateError: state file and journal do not match, or one of them is damaged.
    """
    if journal == WITHOUT_JOURNAL:
        record = record_file.load(
            volume=volume, device_sectors=device.sectors, device=device.identity
        )
        check_no_journal(record, state=record_file.path)
        record, witness = recognised(device, record, record_file.witness)
        return DirectStore(device, record_file, witness), record
    return open_journal(
        path=journal_path(journal, state=record_file.path),
        size_bytes=journal_size,
        device=device,
        record_file=record_file,
        volume=volume,
    )
