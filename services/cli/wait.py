# SPDX-License-Identifier: GPL-2.0-only
"""`bdr wait`: waits until the target has everything that the source has."""

from __future__ import annotations

import sys
import time

import click
import zmq

from bdr.common.errors import UsageError
from bdr.services.cli import options as cli_options
from bdr.services.cli import status as cli_status
from bdr.services.cli.status import Place, Status
from bdr.services.monitoring.client import NoAnswerError, Subscriber


@click.command()
@cli_options.config_path
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    help="Look in this run directory instead: that of a `bdr client`.",
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait at most.")
@click.argument("volume", required=False, shell_complete=cli_options.complete_volume)
def main(config_path: str, run_dir: str | None, timeout: float, volume: str | None) -> None:
    """Waits until every write of VOLUME, or of every source, is durable on its target.

    Run it on the source. Stop the writers first: before a planned switch to the
    replica, a reboot, or a detach. Ends with 0 if nothing is outstanding and the
    replica is consistent, with 1 if the time has passed.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deadline_s = time.monotonic() + timeout
    try:
        found = cli_status.places(config_path=config_path, run_dir=run_dir, volume=volume)
        is_named = bool(volume or run_dir)
        late = [
            text
            for place in found
            if (text := _wait(context, place, deadline_s, is_named=is_named)) is not None
        ]
    finally:
        context.destroy(linger=0)
    for text in late:
        click.echo(f"bdr: {text}", err=True)
    sys.exit(bool(late))


def _wait(
    context: zmq.Context[zmq.Socket[bytes]], place: Place, deadline_s: float, *, is_named: bool
) -> str | None:
    """None once the volume is level; what is missing if the time has passed.

    Raises:
        UsageError: it was named, and is a target: only its source knows what is missing.
    """
    missing = None
    with Subscriber(context, place.run_dir) as subscriber:
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                status = subscriber.status(max(0.1, left_s))
            except NoAnswerError as error:
                return f"{place.volume}: {missing or error}"
            if status["role"] == "target":
                if is_named:
                    raise UsageError(
                        f"volume {place.volume}: found a target; wanted a source, which alone "
                        "knows what its target lacks: run `bdr wait` there"
                    )
                return None
            if _is_level(status):
                return None
            missing = "; ".join([cli_status.behind(status), *status["reasons"]])
            if left_s <= 0:
                return f"{place.volume}: {missing}"


def _is_level(status: Status) -> bool:
    return (
        status["slots_behind"] == 0
        and status["replica"]["condition"] == "CONSISTENT"
        and status["ring"]["head"] == status["ring"]["tail"]
        and not status["ring"]["dirty_regions"]
    )
