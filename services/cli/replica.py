# SPDX-License-Identifier: GPL-2.0-only
"""A replica's state file, for the commands that change what the replica is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bdr.common.errors import StateError, UsageError
from bdr.common.host.config import Config
from bdr.common.host.tables import Target
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.recovery import recover
from bdr.common.journal.superblock_choice import BLANK_BYTES, choose
from bdr.common.storage.journal_file import JournalFile
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord
from bdr.services.cli import options as cli_options
from bdr.services.supervise.supervisord import Supervision
from bdr.services.target.opening import journal_path, open_store


def target_of(config_path: str, run_dir: str | None, volume: str) -> tuple[Config, Target]:
    """The configuration, and the target of this name in it.

    Args:
        run_dir: of a `bdr server` that runs, whose options count instead.

    Raises:
        UsageError: there is none.
    """
    found = cli_options.foreground_config(run_dir) if run_dir else cli_options.load(config_path)
    target = found.volume[cli_options.chosen(found, volume)]
    if not isinstance(target, Target):
        raise UsageError(f"volume {volume}: found a source; wanted a target, which has a replica")
    return found, target


@contextmanager
def without_applier(found: Config, volume: str) -> Iterator[bool]:
    """Its applier does not run meanwhile, and runs again afterwards if it ran; whether it did."""
    supervision, applier = Supervision(found.host.run_dir), f"{volume}-applier"
    ran = supervision.is_running() and supervision.stop(applier)
    try:
        yield ran
    finally:
        if ran:
            supervision.start(applier)


@contextmanager
def opened(
    volume: str, target: Target, *, state: str, allow_foreign: bool = False
) -> Iterator[tuple[RecordFile, ReplicaRecord]]:
    """The state file and what it has; the device is not in use meanwhile.

    While a journal is in use, its record is newer.

    Args:
        allow_foreign: also where the device was promoted, or is another one. What is saved then is
            of this one: it must say nothing of what the device holds.

    Raises:
        DeviceError: the device is in use, or cannot be opened.
        StateError: the file is in use, damaged, or of another volume.
    """
    device = TargetDevice(target.target)
    try:
        file = RecordFile(state)
        try:
            record = file.load(
                volume=volume,
                device_sectors=device.sectors,
                device=device.identity,
                allow_foreign=allow_foreign,
            )
            yield file, record
        finally:
            file.close()
    finally:
        device.close()


def complete(volume: str, target: Target, *, state: str) -> ReplicaRecord:
    """Applies everything that was acknowledged to the device, as an applier does.

    The state file has the record afterwards, and no journal is in use.

    Raises:
        WrongDeviceError: the device is not the one that has the replica.
    """
    device = TargetDevice(target.target)
    record_file = RecordFile(state)
    try:
        store, record = open_store(
            journal=target.journal,
            journal_size=target.journal_size,
            device=device,
            record_file=record_file,
            volume=volume,
        )
    except BaseException:
        device.close()
        record_file.close()
        raise
    store.close()
    return record.at_start()


def newest(target: Target, *, state: str, was: ReplicaRecord) -> ReplicaRecord | None:
    """What is remembered: the state file's record, or that of the journal that is in use, which
    may be lost or damaged: None."""
    if was.journal == NO_JOURNAL:
        return was
    path = journal_path(target.journal, state=state)
    file = JournalFile(path)
    try:
        found = recover(
            file.read,
            where=path,
            size_bytes=file.size_bytes,
            volume=was.volume,
            device_sectors=was.device_sectors,
        )
    except JournalRefusedError:
        return None
    finally:
        file.close()
    return found.record if found and found.superblock.journal == was.journal else None


def give_up_journal(target: Target, *, state: str, was: ReplicaRecord) -> None:
    """Blanks the journal that is in use, if one is. If this process is killed afterwards, the state
    file still names the journal: repeat the command."""
    if was.journal == NO_JOURNAL:
        return
    path = journal_path(target.journal, state=state)
    file = JournalFile(path)
    try:
        found, _ = choose(file.read, where=path)
        if found is not None:
            if found.journal != was.journal:
                raise StateError(
                    f"journal {path}: found journal {found.journal.hex()}, wanted "
                    f"{was.journal.hex()}, which the state file names"
                )
            file.write(0, [bytes(BLANK_BYTES)])
            file.sync()
    finally:
        file.close()
