# SPDX-License-Identifier: GPL-2.0-only
"""`bdr adopt`: what a target holds may be overwritten.

By a source that it does not know; or, on a device that is not the one that has the replica,
by its own source too: the device becomes the replica's then.
"""

from __future__ import annotations

import time
from dataclasses import replace

import click

from bdr.common.errors import UsageError, WrongDeviceError
from bdr.common.host.tables import Target
from bdr.common.storage.record_file import RecordFile
from bdr.common.target.record import ANY_SOURCE, NO_SOURCE, ReplicaRecord, demoted
from bdr.common.wire.codec import ID_BYTES
from bdr.services.cli import options as cli_options
from bdr.services.cli.replica import (
    complete,
    give_up_journal,
    newest,
    opened,
    target_of,
    without_applier,
)


@click.command(params=cli_options.location(is_required=True))
@click.option(
    "--source",
    metavar="ID",
    help="The source that may, as its refusal names it; without it, the next that connects.",
)
def main(config_path: str, run_dir: str | None, source: str | None, volume: str) -> None:
    """Lets a source that VOLUME does not know overwrite what its target holds, once.

    For a target that is not blank when its first source connects, or is the replica of another
    source; and for a device that is not the one that had the replica. Everything is compared,
    and what differs is made as the source has it.
    """
    found, target = target_of(config_path, run_dir, volume)
    adopted = source_id(source)
    with without_applier(found, volume):
        adopt(volume, target, state=found.state_of(volume, target), source=adopted)
    who = "the next source that connects" if source is None else f"source {source}"
    click.echo(f"{volume}: {who} may overwrite {target.target}, once")


def adopt_first(volume: str, target: Target, *, state: str) -> None:
    """The same as a setting that stays: of interest to a target that has had no source."""
    record = _peek(volume, state)
    if record is None or (record.source == NO_SOURCE and not record.promoted_utc):
        adopt(volume, target, state=state, only_first=True)


def adopt(
    volume: str,
    target: Target,
    *,
    state: str,
    source: bytes = ANY_SOURCE,
    only_first: bool = False,
) -> None:
    """Remembers that this source, or the next one, may overwrite what the target holds.

    Args:
        only_first: unless it is the replica of a source.

    Raises:
        StateError: the device was promoted.
    """
    is_other_device = False
    if _peek(volume, state) is not None:
        try:
            # After a kill the journal has the record that counts, and the state file's is ignored.
            complete(volume, target, state=state)
        except WrongDeviceError:
            is_other_device = True
    with opened(volume, target, state=state, allow_foreign=is_other_device) as (file, record):
        if is_other_device:
            # What is remembered of the device is not believed of this one.
            known = newest(target, state=file.path, was=record)
            give_up_journal(target, state=file.path, was=record)
            given_up = demoted(known or record, now_utc=int(time.time()))
            file.save(replace(given_up, adopts=source))
        elif record.source == NO_SOURCE or not only_first:
            file.save(replace(record, adopts=source), file.witness)


def _peek(volume: str, state: str) -> ReplicaRecord | None:
    file = RecordFile(state)
    try:
        return file.peek(volume=volume)
    finally:
        file.close()


def source_id(text: str | None) -> bytes:
    """The id that a user has given, or what stands for any.

    Raises:
        UsageError: none of a source.
    """
    if text is None:
        return ANY_SOURCE
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != ID_BYTES:
        raise UsageError(f"--source: found {text!r}, wanted {2 * ID_BYTES} hexadecimal digits")
    return found
