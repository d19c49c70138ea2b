# SPDX-License-Identifier: GPL-2.0-only
"""`bdr promote` and `bdr demote`: a replica becomes a usable device, and a replica again.

This is persistent in the state file: no applier opens a promoted device, even if it is started.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click

from bdr.common.errors import StateError, UsageError
from bdr.common.host import config
from bdr.common.host.config import Config
from bdr.common.host.tables import Target
from bdr.common.journal.superblock_choice import BLANK_BYTES, choose
from bdr.common.storage.journal_file import JournalFile
from bdr.common.storage.record_file import RecordFile, utc
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord, demoted
from bdr.common.wire.codec import STREAM_BYTES
from bdr.common.wire.condition import Condition
from bdr.services.cli import options as cli_options
from bdr.services.supervise.supervisord import Supervision
from bdr.services.target.opening import journal_path, open_store


@click.command(params=[cli_options.config_path(), cli_options.volume()])
@click.option("--force", is_flag=True, help="Even if the replica is not consistent.")
def promote(config_path: str, force: bool, volume: str) -> None:
    """Makes the replica of VOLUME a usable device, on the target.

    Stops its applier, applies everything that was acknowledged to the device, and prevents appliers
    from opening it afterwards. Then fsck and mount it.
    """
    found, target = _target(config_path, volume)
    supervision, applier = Supervision(found.host.run_dir), f"{volume}-applier"
    ran = supervision.is_running() and supervision.stop(applier)
    try:
        record = _complete(found, volume, target)
        if record.condition is not Condition.CONSISTENT and not force:
            raise StateError(
                f"volume {volume}: found a replica that is {record.condition.words}; wanted a "
                "consistent one: let its source finish, or take it as it is with --force"
            )
        with _record(found, volume, target) as (file, remembered):
            file.save(replace(remembered, promoted_utc=int(time.time())))
    except BaseException:
        if ran:
            supervision.start(applier)
        raise
    click.echo(
        f"{volume}: promoted: {target.target} can be used; {record.condition.words}, "
        f"at slot {record.slot}"
        + (f", as of {utc(record.accepted_utc)}" if record.accepted_utc else "")
    )


@click.command(params=[cli_options.config_path(), cli_options.volume()])
def demote(config_path: str, volume: str) -> None:
    """Makes the device of VOLUME a replica again, on the target.

    Writes to the device since its promotion, and the content of its journal, are discarded: when
    its applier runs again, everything is compared, and differences are repaired from the source.
    Also for a disk that was replaced, or restored from a backup.
    """
    found, target = _target(config_path, volume)
    with _record(found, volume, target) as (file, remembered):
        if remembered.journal != NO_JOURNAL:
            _give_up(journal_path(target.journal, state=file.path), remembered.journal)
        stream = secrets.token_bytes(STREAM_BYTES)
        file.save(demoted(remembered, stream=stream, now_utc=int(time.time())))
    click.echo(f"{volume}: a replica again; now: bdr ctl start {volume}-applier")


def _target(config_path: str, volume: str) -> tuple[Config, Target]:
    found = config.load(config_path)
    target = found.volume[cli_options.chosen(found, volume)]
    if not isinstance(target, Target):
        raise UsageError(f"volume {volume}: found a source; wanted a target, which has a replica")
    return found, target


def _complete(found: Config, volume: str, target: Target) -> ReplicaRecord:
    """Applies everything that was acknowledged to the device, as an applier does."""
    device = TargetDevice(target.target)
    record_file = RecordFile(found.state_of(volume, target))
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


def _give_up(path: str, journal_id: bytes) -> None:
    """Blanks this journal. If this process is killed afterwards, the state file still names the
    journal: repeat the command."""
    file = JournalFile(path)
    try:
        found, _ = choose(file.read, where=path)
        if found is not None:
            if found.journal != journal_id:
                raise StateError(
                    f"journal {path}: found journal {found.journal.hex()}, wanted "
                    f"{journal_id.hex()}, which the state file names"
                )
            file.write(0, [bytes(BLANK_BYTES)])
            file.sync()
    finally:
        file.close()


@contextmanager
def _record(
    found: Config, volume: str, target: Target
) -> Iterator[tuple[RecordFile, ReplicaRecord]]:
    """The state file and its record; the device is locked meanwhile."""
    device = TargetDevice(target.target)
    try:
        file = RecordFile(found.state_of(volume, target))
        try:
            record = file.load(
                volume=volume,
                device_sectors=device.sectors,
                device=device.identity,
                allow_foreign=True,
            )
            yield file, record
        finally:
            file.close()
    finally:
        device.close()
