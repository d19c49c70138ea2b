# SPDX-License-Identifier: GPL-2.0-only
"""`bdr resync` and `bdr verify`, on the source host."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
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
from bdr.common.host import config
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan.plan import Piece
from bdr.common.source.scheduler import Reported
from bdr.common.wire import control as wire
from bdr.services.cli import options as cli_options
from bdr.services.cli.reader_client import NoPeerError, OfficeClient, SourcePlace, place_of
from bdr.services.cli.verifier import Findings, Verifier

COULD_NOT = 2
POLL_S = 0.2
SCANNER_S = 10.0
"""A scanner that does not come within this is not coming."""
_RANGES_PER_MESSAGE = 1024

_Command = Callable[..., Any]


def _source(command: _Command) -> _Command:
    """The volume, from bdr.toml, or all of it from options."""
    options = [
        cli_options.config_path,
        click.option(
            "--run-dir",
            help="Instead of bdr.toml: the run directory of a `bdr client`; or, together with "
            "the options below, that of the volume's sockets,",
        ),
        click.option("--chardev", help="its capture,"),
        click.option("--underdev", help="the device below, if the capture does not say,"),
        click.option("--address", help="the target's address,"),
        click.option("--port", type=int, default=config.DEFAULT_PORT, help="and port."),
        click.argument("volume", required=False, shell_complete=cli_options.complete_volume),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _place(
    volume: str | None,
    *,
    config_path: str,
    run_dir: str | None,
    chardev: str | None,
    underdev: str | None,
    address: str | None,
    port: int,
) -> SourcePlace:
    given = (run_dir, chardev, address)
    if run_dir and chardev and address:
        return SourcePlace(volume or "bdr", chardev, underdev, address, port, run_dir)
    if run_dir and not any((chardev, address)):
        return place_of(cli_options.side_config(run_dir), volume)
    if any(given):
        raise click.UsageError("--chardev and --address belong together, and with --run-dir")
    return place_of(cli_options.load(config_path), volume)


class _Bar:
    """A progress bar on the terminal; elsewhere nothing."""

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


@click.command()
@_source
@click.option("--full", is_flag=True, help="Everything, not only what is marked.")
def resync(volume: str | None, full: bool, **options: Any) -> None:
    """Has VOLUME's replica made equal, and waits for it.

    Scanners do so by themselves; this shows how far they are. With --full everything is
    compared, as at the first contact.

    \b
    Exit code:
      0  the replica is consistent, and nothing is marked
      1  parts of the source could not be read: they are listed
      2  it could not be done
    """
    place = _place(volume, **options)
    client = OfficeClient(place)
    try:
        before = report = _ready(client, place)
        if full:
            report = client.mark([])
        report = _wait_repaired(client, place, report)
    except BdrError as error:
        click.echo(f"bdr: {error}", err=True)
        sys.exit(COULD_NOT)
    finally:
        client.close()
    compared = report.compared_bytes - before.compared_bytes
    repaired = report.repaired_bytes - before.repaired_bytes
    unreadable = wire.decode_ranges(report.unreadable)
    for piece in unreadable:
        click.echo(f"{place.volume}: the source cannot be read: {_range(piece)}")
    click.echo(
        f"{place.volume}: compared {_mib(compared)}, repaired {_mib(repaired)}; "
        f"{report.condition}, {report.dirty_regions} regions marked"
    )
    sys.exit(bool(unreadable))


@click.command()
@_source
@click.option("--repair", is_flag=True, help="Have what differs repaired, and compare it again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(volume: str | None, repair: bool, as_json: bool, **options: Any) -> None:
    """Compares VOLUME with its replica by checksums, while it is in use.

    Blocks that are written all the time, or await a resync, are not judged.

    \b
    Exit code:
      0  they are equal; with --repair, they are now
      1  they differ: the ranges are listed
      2  it could not be told
    """
    place = _place(volume, **options)
    client = OfficeClient(place)
    try:
        _ready(client, place)
        verifier = Verifier(place)
        try:
            began_s = time.monotonic()
            with _Bar("comparing", verifier.sectors * SECTOR_BYTES) as bar:
                found = verifier.compare(progress=bar.advance)
            took_s = time.monotonic() - began_s
            left = found.differing
            if repair and found.differing:
                left = _repair(client, place, verifier, found)
        finally:
            verifier.close()
        report = client.report()
    except BdrError as error:
        click.echo(f"bdr: {error}", err=True)
        sys.exit(COULD_NOT)
    finally:
        client.close()
    # What is busy with the application's writes is not judged; what awaits a resync is not equal.
    is_unknown = bool(found.unreadable or (found.busy and report.dirty_regions))
    is_equal = False if left else None if is_unknown else True
    if as_json:
        click.echo(json.dumps({"is_equal": is_equal, **_facts(place, found, left, took_s)}))
    else:
        _print(place, found, left, took_s, was_repaired=repair)
    sys.exit({True: 0, False: 1, None: COULD_NOT}[is_equal])


def _ready(client: OfficeClient, place: SourcePlace) -> Reported:
    """Waits a moment for the pair to talk."""
    deadline_s = time.monotonic() + SCANNER_S
    while (report := client.report()).phase != "STREAMING":
        if time.monotonic() > deadline_s:
            raise NoPeerError(
                f"volume {place.volume}: the reader is {report.phase}: the target does not answer; "
                "see `bdr status`"
            )
        time.sleep(POLL_S)
    return report


def _wait_repaired(client: OfficeClient, place: SourcePlace, report: Reported) -> Reported:
    """Until nothing is marked and the target is consistent; or only what cannot be read is."""
    total = max(1, report.dirty_regions)
    deadline_s = time.monotonic() + SCANNER_S
    size = report.region_bytes
    with _Bar("resync", total * size) as bar:
        while report.dirty_regions or report.condition != "CONSISTENT":
            total = max(total, report.dirty_regions)
            bar.reach((total - report.dirty_regions) * size)
            if report.dirty_regions and report.dirty_regions <= report.unreadable_regions:
                return report
            if report.scanners or report.phase != "STREAMING":
                deadline_s = time.monotonic() + SCANNER_S
            elif report.dirty_regions and time.monotonic() > deadline_s:
                raise NoPeerError(
                    f"volume {place.volume}: {report.dirty_regions} regions await a resync, but no "
                    "scanner is at work; see `bdr status`"
                )
            time.sleep(POLL_S)
            report = client.report()
        bar.reach(total * size)
    return report


def _repair(
    client: OfficeClient, place: SourcePlace, verifier: Verifier, found: Findings
) -> list[Piece]:
    """Has the ranges repaired; returns what differs still."""
    report = client.report()
    for at in range(0, len(found.differing), _RANGES_PER_MESSAGE):
        report = client.mark(found.differing[at : at + _RANGES_PER_MESSAGE])
    _wait_repaired(client, place, report)
    return verifier.compare(_cut(found.differing)).differing


def _cut(ranges: list[Piece]) -> list[Piece]:
    """Ranges as pieces of 1 MiB at most."""
    return [
        (at, min(2048, sector + sectors - at))
        for sector, sectors in ranges
        for at in range(sector, sector + sectors, 2048)
    ]


def _facts(place: SourcePlace, found: Findings, left: list[Piece], took_s: float) -> dict[str, Any]:
    return {
        "volume": place.volume,
        "differing": found.differing,
        "still_differing": left,
        "unreadable": found.unreadable,
        "busy": found.busy,
        "compared_bytes": found.compared_bytes,
        "seconds": round(took_s, 3),
    }


def _print(
    place: SourcePlace, found: Findings, left: list[Piece], took_s: float, *, was_repaired: bool
) -> None:
    for piece in found.differing:
        click.echo(f"{place.volume}: differs: {_range(piece)}")
    for piece in found.unreadable:
        click.echo(f"{place.volume}: cannot be read: {_range(piece)}")
    for reason in sorted(found.reasons):
        click.echo(f"{place.volume}: {reason}")
    rate = found.compared_bytes / max(took_s, 1e-3)
    words = [f"compared {_mib(found.compared_bytes)} in {took_s:.1f} s, {_mib(int(rate))}/s"]
    if found.busy:
        words.append(f"{_blocks(found.busy)} blocks too busy to judge, or await a resync")
    if not found.differing:
        words.append("no difference")
    else:
        words.append(f"{_blocks(found.differing)} blocks of 4 KiB differ")
    if found.differing and was_repaired:
        words.append(f"{_blocks(left)} after the repair")
    click.echo(f"{place.volume}: {'; '.join(words)}")


def _blocks(ranges: list[Piece]) -> int:
    return sum(-(-sectors // 8) for _, sectors in ranges)


def _range(piece: Piece) -> str:
    sector, sectors = piece
    return (
        f"sectors {sector} to {sector + sectors - 1}: {sectors * SECTOR_BYTES} bytes at "
        f"{sector * SECTOR_BYTES}"
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
