# SPDX-License-Identifier: GPL-2.0-only
"""`bdr resync` and `bdr verify`, on the source host."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bdr.common.errors import BdrError
from bdr.common.host.sizes import show_size
from bdr.common.host.tables import Source
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.plan import Chunk
from bdr.common.scan.verifier import Findings
from bdr.common.wire.scan import ResyncStatus
from bdr.services.cli import options as cli_options
from bdr.services.cli.reader_client import NoPeerError, ReaderClient, SourceLocation, location_of
from bdr.services.cli.remembered import compared
from bdr.services.cli.verifier import Verification
from bdr.services.runtime import options

COULD_NOT = 2
POLL_S = 0.2
SCANNER_S = 10.0
"""Timeout for a scanner or the target to connect."""
_RANGES_PER_MESSAGE = 1024


def _options(*own: click.Option) -> list[click.Parameter]:
    """Options for the volume: from bdr.toml, from a run directory, or all given explicitly."""
    location = options.of(Source, "scanner", optional=["address", "chardev"])
    return [*cli_options.location(), *location, *own]


def _location(
    volume: str | None, *, config_path: str, run_dir: str | None, **location: Any
) -> SourceLocation:
    is_given = [location["address"] is not None, location["chardev"] is not None]
    if run_dir and all(is_given):
        return SourceLocation(
            volume=volume or cli_options.FOREGROUND_VOLUME, run_dir=run_dir, **location
        )
    if any(is_given):
        raise click.UsageError("--chardev and --address belong together, and with --run-dir")
    if run_dir:
        return location_of(cli_options.foreground_config(run_dir), volume)
    return location_of(cli_options.load(config_path), volume)


class _Bar:
    """A progress bar if standard error is a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task: TaskID = self._progress.add_task(what, total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reach(self, done: int) -> None:
        self._progress.update(self._task, completed=done)


@options.command(
    _options(
        click.Option(["--full"], is_flag=True, help="Compare everything, not only marked regions."),
    )
)
def resync(volume: str | None, full: bool, **location_options: Any) -> None:
    """Repairs VOLUME's replica, and waits for it.

    Scanners do so automatically; this command shows their progress. With --full everything is
    compared, as at the first contact.

    A volume that bdr.toml does not have is named by --run-dir: alone that of a `bdr client`;
    with --address and --chardev, the directory of the volume's sockets.

    \b
    Exit code:
      0  the replica is consistent, and nothing is marked
      1  parts of the source are unreadable: they are listed
      2  the resync failed
    """
    location = _location(volume, **location_options)
    client = ReaderClient(location)
    try:
        before = report = _ready(client, location)
        if full:
            report = client.mark([])
        report = _wait_repaired(client, location, report)
    except BdrError as error:
        click.echo(f"bdr: {error}", err=True)
        sys.exit(COULD_NOT)
    finally:
        client.close()
    compared = report.compared_bytes - before.compared_bytes
    repaired = report.repaired_bytes - before.repaired_bytes
    unreadable = report.unreadable
    for chunk in unreadable:
        click.echo(f"{location.volume}: the source cannot be read: {_range(chunk)}")
    click.echo(
        f"{location.volume}: compared {show_size(compared)}, repaired {show_size(repaired)}; "
        f"{report.condition}, {report.dirty_regions} regions marked"
    )
    sys.exit(bool(unreadable))


@options.command(
    _options(
        click.Option(
            ["--repair"], is_flag=True, help="Repair differences, and compare them again."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON object."),
    )
)
def verify(volume: str | None, repair: bool, as_json: bool, **location_options: Any) -> None:
    """Compares VOLUME with its replica by checksums, while it is in use.

    Blocks that are written continuously, or await a resync, are not compared.

    A volume that bdr.toml does not have is named by --run-dir: alone that of a `bdr client`;
    with --address and --chardev, the directory of the volume's sockets.

    \b
    Exit code:
      0  equal; with --repair, after the repair
      1  different: the ranges are listed
      2  unknown
    """
    location = _location(volume, **location_options)
    client = ReaderClient(location)
    try:
        _ready(client, location)
        verifier = Verification(location)
        try:
            began_at = time.monotonic()
            with _Bar("comparing", verifier.sectors * SECTOR_BYTES) as bar:
                found = compared(client, verifier, progress=bar.advance)
            took_s = time.monotonic() - began_at
            left = found.differing
            if repair and found.differing:
                left = _repair(client, location, verifier, found)
        finally:
            verifier.close()
        report = client.report()
    except BdrError as error:
        click.echo(f"bdr: {error}", err=True)
        sys.exit(COULD_NOT)
    finally:
        client.close()
    # Blocks that the application writes are ignored; those that await a resync are not equal.
    is_unknown = bool(found.unreadable or (found.busy and report.dirty_regions))
    is_equal = False if left else None if is_unknown else True
    if as_json:
        click.echo(json.dumps({"is_equal": is_equal, **_facts(location, found, left, took_s)}))
    else:
        _print(location, found, left, took_s, was_repaired=repair)
    sys.exit({True: 0, False: 1, None: COULD_NOT}[is_equal])


def _ready(client: ReaderClient, location: SourceLocation) -> ResyncStatus:
    """Waits until the session is streaming."""
    deadline_at = time.monotonic() + SCANNER_S
    while (report := client.report()).phase != "STREAMING":
        if time.monotonic() > deadline_at:
            raise NoPeerError(
                f"volume {location.volume}: the reader is {report.phase}: the target does not "
                "answer; see `bdr status`"
            )
        time.sleep(POLL_S)
    return report


def _wait_repaired(
    client: ReaderClient, location: SourceLocation, report: ResyncStatus
) -> ResyncStatus:
    """Waits until nothing is marked and the target is consistent, or only unreadable regions
    remain."""
    total = max(1, report.dirty_regions)
    deadline_at = time.monotonic() + SCANNER_S
    size = report.region_bytes
    with _Bar("resync", total * size) as bar:
        while report.dirty_regions or report.condition != "CONSISTENT":
            total = max(total, report.dirty_regions)
            bar.reach((total - report.dirty_regions) * size)
            if report.dirty_regions and report.dirty_regions <= report.unreadable_regions:
                return report
            if report.scanners or report.phase != "STREAMING":
                deadline_at = time.monotonic() + SCANNER_S
            elif report.dirty_regions and time.monotonic() > deadline_at:
                raise NoPeerError(
                    f"volume {location.volume}: {report.dirty_regions} regions await a resync, but "
                    "no scanner is running; see `bdr status`"
                )
            time.sleep(POLL_S)
            report = client.report()
        bar.reach(total * size)
    return report


def _repair(
    client: ReaderClient, location: SourceLocation, verifier: Verification, found: Findings
) -> list[Chunk]:
    """Repairs the ranges; returns the remaining differences."""
    report = client.report()
    for at in range(0, len(found.differing), _RANGES_PER_MESSAGE):
        report = client.mark(found.differing[at : at + _RANGES_PER_MESSAGE])
    _wait_repaired(client, location, report)
    return compared(client, verifier, found.differing).differing


def _facts(
    location: SourceLocation, found: Findings, left: list[Chunk], took_s: float
) -> dict[str, Any]:
    return {
        "volume": location.volume,
        "differing": found.differing,
        "still_differing": left,
        "unreadable": found.unreadable,
        "busy": found.busy,
        "compared_bytes": found.compared_bytes,
        "seconds": round(took_s, 3),
    }


def _print(
    location: SourceLocation,
    found: Findings,
    left: list[Chunk],
    took_s: float,
    *,
    was_repaired: bool,
) -> None:
    for chunk in found.differing:
        click.echo(f"{location.volume}: differs: {_range(chunk)}")
    for chunk in found.unreadable:
        click.echo(f"{location.volume}: cannot be read: {_range(chunk)}")
    for reason in sorted(found.reasons):
        click.echo(f"{location.volume}: {reason}")
    rate = found.compared_bytes / max(took_s, 1e-3)
    words = [f"compared {show_size(found.compared_bytes)} in {took_s:.1f} s, {show_size(rate)}/s"]
    if found.busy:
        words.append(f"{_blocks(found.busy)} blocks in use or awaiting a resync were ignored")
    if not found.differing:
        words.append("no difference")
    else:
        words.append(f"{_blocks(found.differing)} blocks of 4 KiB differ")
    if found.differing and was_repaired:
        words.append(f"{_blocks(left)} after the repair")
    click.echo(f"{location.volume}: {'; '.join(words)}")


def _blocks(ranges: list[Chunk]) -> int:
    return sum(-(-sectors // 8) for _, sectors in ranges)


def _range(chunk: Chunk) -> str:
    sector, sectors = chunk
    return (
        f"sectors {sector} to {sector + sectors - 1}: {sectors * SECTOR_BYTES} bytes at "
        f"{sector * SECTOR_BYTES}"
    )
