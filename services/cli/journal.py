# SPDX-License-Identifier: GPL-2.0-only
"""`bdr journal PATH`: content and integrity of a journal, and what to do.

Read-only.
"""

from __future__ import annotations

import sys

import click

from bdr.common.errors import BdrError, RetryableError, StateDiskError
from bdr.common.journal.recovery import Recovery, recover
from bdr.common.journal.superblock import VERSION, Superblock
from bdr.common.journal.superblock_choice import choose
from bdr.common.storage.journal_file import JournalFile


class JournalInUseError(RetryableError):
    """An applier writes to the journal, so its log cannot be read."""


@click.command()
@click.argument("path", type=click.Path())
def main(path: str) -> None:
    """Prints the content of the journal at PATH, and whether it is intact.

    Exits with 0 if it is intact, with 72 if not, and with 75 while an applier uses it.
    """
    try:
        _inspect(path)
    except BdrError as error:
        is_unknown = isinstance(error, JournalInUseError | StateDiskError)
        _row("sound", "not known" if is_unknown else "no")
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)


def _inspect(path: str) -> None:
    file = JournalFile(path, is_read_only=True)
    try:
        superblock, copies = choose(file.read, where=path)
        if superblock is None:
            _row("sound", "yes: blank, nothing was written yet")
            return
        _print_superblock(superblock)
        _row("superblock", ", ".join(f"copy {at} {copy.value}" for at, copy in enumerate(copies)))
        if file.is_in_use:
            raise JournalInUseError(
                f"journal {path}: found it in use; stop the applier to inspect the log"
            )
        found = recover(
            file.read,
            where=path,
            size_bytes=file.size_bytes,
            volume=superblock.record.volume,
            device_sectors=superblock.record.device_sectors,
        )
        if found is not None:
            _print_log(found)
    finally:
        file.close()


def _print_superblock(superblock: Superblock) -> None:
    record, checkpoint = superblock.record, superblock.checkpoint
    _row("journal", f"{superblock.journal.hex()}, format version {VERSION}")
    _row("volume", f"{record.volume}, {record.device_sectors} sectors of 512 bytes")
    _row("log", f"{superblock.log_bytes} bytes")
    _row("written by", f"run {superblock.run}, superblock {superblock.generation}")
    _row("stream", record.stream.hex())
    _row(
        "checkpoint",
        f"sequence {checkpoint.sequence}, position {checkpoint.position}: slot {record.slot}, "
        f"epoch {record.epoch}, {record.condition.name}",
    )


def _print_log(found: Recovery) -> None:
    record = found.record
    _row("holds", f"{found.jobs} jobs of {found.slots} slots, {found.log_bytes_used} bytes")
    _row(
        "end",
        f"sequence {found.end.sequence}, position {found.end.position}: slot {record.slot}, "
        f"epoch {record.epoch}, {record.condition.name}",
    )
    _row("ended by", found.ended_by.value)
    _row("sound", "yes")
    if found.superblock.is_closed:
        _row("to do", "nothing: it was closed, and the state file has the record")
    elif found.jobs:
        _row("to do", "start the applier: it applies what the journal holds, then goes on")
    else:
        _row("to do", "start the applier: everything is on the device already")


def _row(name: str, value: str) -> None:
    click.echo(f"{name:12}{value}")


if __name__ == "__main__":
    main()
