# SPDX-License-Identifier: GPL-2.0-only
"""`bdr wait`: waits until every write of the source is durable on the target."""

from __future__ import annotations

import sys
import time

import click
import zmq

from bdr.common.errors import UsageError
from bdr.common.status.model import VolumeStatus
from bdr.common.wire.condition import Condition
from bdr.services.cli import options as cli_options
from bdr.services.cli import status as cli_status
from bdr.services.cli.status import MonitorLocation
from bdr.services.monitoring.client import NoAnswerError, Subscriber


@click.command(params=cli_options.location())
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait at most.")
def main(config_path: str, run_dir: str | None, timeout: float, volume: str | None) -> None:
    """Waits until every write of VOLUME, or of every source, is durable on its target.

    Run it on the source, before a planned failover to the replica, a reboot, or a detach, after
    stopping the writers. Exits with 0 if nothing is outstanding and the replica is consistent, with
    1 after the timeout.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deadline_at = time.monotonic() + timeout
    try:
        found = cli_status.locations(config_path=config_path, run_dir=run_dir, volume=volume)
        is_named = bool(volume or run_dir)
        late = [
            text
            for location in found
            if (text := _wait(context, location, deadline_at, is_named=is_named)) is not None
        ]
    finally:
        context.destroy(linger=0)
    for text in late:
        click.echo(f"bdr: {text}", err=True)
    sys.exit(bool(late))


def _wait(
    context: zmq.Context[zmq.Socket[bytes]],
    location: MonitorLocation,
    deadline_at: float,
    *,
    is_named: bool,
) -> str | None:
    """None once everything is durable; what is missing after the timeout.

    Raises:
        UsageError: the named volume is a target: only its source has this information.
    """
    missing = None
    with Subscriber(context, location.run_dir) as subscriber:
        while True:
            left_s = deadline_at - time.monotonic()
            try:
                status = subscriber.status(max(0.1, left_s))
            except NoAnswerError as error:
                return f"{location.volume}: {missing or error}"
            if status.lag is None:  # a target
                if is_named:
                    raise UsageError(
                        f"volume {location.volume}: found a target; wanted a source, which alone "
                        "has the information: run `bdr wait` there"
                    )
                return None
            if _is_level(status):
                return None
            missing = "; ".join([cli_status.behind(status.lag), *status.reasons])
            if left_s <= 0:
                return f"{location.volume}: {missing}"


def _is_level(status: VolumeStatus) -> bool:
    lag, ring = status.lag, status.ring
    return (
        lag is not None
        and lag.slots == 0
        and status.replica.condition is Condition.CONSISTENT
        and ring is not None
        and ring.head == ring.tail
        and not ring.dirty_regions
    )
