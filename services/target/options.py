# SPDX-License-Identifier: GPL-2.0-only
"""The applier's options --journal and --journal-size, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import ReplicaRecord
from bdr.services.target.journal_store import check_no_journal, open_journal
from bdr.services.target.store import DirectStore, Store

NO_JOURNAL_NAME = "none"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes, or a number with K, M, G or T."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(i?B)?", value, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(
            f"found {value!r}; wanted bytes, or a number with K, M, G or T", context, parameter
        )
    return int(match[1]) * _UNITS[match[2].upper()]


def journal(command: Callable[..., Any]) -> Callable[..., Any]:
    """--journal and --journal-size."""
    command = click.option(
        "--journal-size",
        metavar="SIZE",
        callback=_size,
        help="Size of the journal. Default: what it has; 1G for a new one.",
    )(command)
    return click.option(
        "--journal",
        type=click.Path(dir_okay=False),
        help="File or block device of the write-ahead journal, or `none`. Default: a file beside "
        "the state file.",
    )(command)


def open_store(
    *,
    journal: str | None,
    journal_size: int | None,
    device: TargetDevice,
    record_file: RecordFile,
    volume: str,
) -> tuple[Store, ReplicaRecord]:
    """The store that the options ask for, and the replica's record at start.

    Raises:
        StateError: state file and journal do not fit, or one of them is damaged.
    """
    if journal == NO_JOURNAL_NAME:
        record = record_file.load(
            volume=volume, device_sectors=device.sectors, device=device.identity
        )
        check_no_journal(record, state=record_file.path)
        return DirectStore(device, record_file), record
    return open_journal(
        path=journal or f"{record_file.path}.journal",
        size_bytes=journal_size,
        device=device,
        record_file=record_file,
        volume=volume,
    )
