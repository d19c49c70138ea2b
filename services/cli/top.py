# SPDX-License-Identifier: GPL-2.0-only
"""`bdr top`: a live view of the volumes of a host.

Each volume's status arrives every second; rates are differences between them. A volume whose
monitor is silent is shown as unknown, with the time since its last status.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import zmq
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bdr.common.host.sizes import show_size
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.status.model import VolumeStatus
from bdr.common.status.reports import ApplierValues, SenderValues
from bdr.common.status.states import HealthState, StageState, VolumeRole
from bdr.services.cli import options as cli_options
from bdr.services.cli import status as cli_status
from bdr.services.cli.status import MonitorLocation
from bdr.services.monitoring.client import NoAnswerError, Subscriber

HISTORY = 40
SILENT_AFTER_S = 3.0
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {
    HealthState.HEALTHY: "bold green",
    HealthState.DEGRADED: "bold yellow",
    HealthState.RESYNCING: "bold yellow",
    HealthState.BEHIND: "bold yellow",
    HealthState.PROMOTED: "bold cyan",
    HealthState.UNKNOWN: "bold magenta",
    HealthState.BROKEN: "bold red",
}


def sparkline(values: list[float]) -> str:
    """One character per value, scaled to the highest."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, int(8 * value / top))] for value in values)


def gauge(share: float, width: int = 24) -> str:
    """A bar with its percentage."""
    share = min(1.0, max(0.0, share))
    full = round(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {100 * share:3.0f} %"


@dataclass(slots=True)
class View:
    """State of one volume's display."""

    location: MonitorLocation
    subscriber: Subscriber | None = None
    status: VolumeStatus | None = None
    seen_at: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    rates: dict[str, deque[float]] = field(default_factory=dict)

    def take(self, status: VolumeStatus, now_at: float) -> None:
        """Takes the next status, and computes the rates since the previous one."""
        counts = _counts(status)
        elapsed_s = now_at - self.seen_at
        if self.status is not None and elapsed_s < 0.5:
            # Sent because the health changed; the interval is too short for a rate.
            self.status = status
            return
        if self.status is not None:
            for name, count in counts.items():
                line = self.rates.setdefault(name, deque([0.0] * HISTORY, maxlen=HISTORY))
                line.append(max(0.0, count - self.counts.get(name, count)) / elapsed_s)
        self.status, self.seen_at, self.counts = status, now_at, counts


def _counts(status: VolumeStatus) -> dict[str, int]:
    """Cumulative bytes, by name."""
    values = [stage.values for stage in status.stages]
    if status.role is VolumeRole.TARGET:
        return {"applied": sum(each.bytes for each in values if isinstance(each, ApplierValues))}
    ring = status.ring
    return {
        "written": ring.head * PAYLOAD_BYTES if ring else 0,
        "sent": sum(each.bytes for each in values if isinstance(each, SenderValues)),
        "acknowledged": ring.tail * PAYLOAD_BYTES if ring else 0,
    }


def screen(views: list[View], now_at: float) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [
        Text(f"bdr top   {time.strftime('%H:%M:%S')}   q quits", style="dim")
    ]
    for view in views:
        parts += [Text(""), *_volume(view, now_at)]
    return Group(*parts)


def _volume(view: View, now_at: float) -> Iterator[RenderableType]:
    status, name = view.status, view.location.volume
    silent_s = now_at - view.seen_at
    if status is None or silent_s > SILENT_AFTER_S:
        title = Text(f"{name}: ")
        title.append("unknown", _STYLES[HealthState.UNKNOWN])
        yield title
        yield Text("  its monitor does not answer" if status is None else
                   f"  its monitor has been silent for {silent_s:.0f} s")  # fmt: skip
        return
    title = Text(f"{name} ({status.role.value}): ")
    title.append(status.health.value, _STYLES[status.health])
    title.append(f"   replica {cli_status.replica(status.replica)}")
    yield title
    for reason in status.reasons:
        yield Text(f"  ! {reason}", "yellow")
    if status.lag is not None:
        yield _line(f"  behind        {cli_status.behind(status.lag)}")
    else:
        yield _line(f"  behind        {cli_status.age(status.replica)}")
    for rate, values in view.rates.items():
        yield _line(f"  {rate:<13} {show_size(values[-1]):>10}/s  {sparkline(list(values))}")
    yield from _gauges(status)
    yield _stages(status)


def _line(text: str) -> Text:
    """One line, truncated to the terminal's width: a wrapped bar is unreadable."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _gauges(status: VolumeStatus) -> Iterator[RenderableType]:
    ring, intake = status.ring, status.replica.intake
    if ring and ring.capacity:
        fill = gauge(ring.used / ring.capacity)
        yield _line(f"  ring          {fill}  {ring.used} of {ring.capacity} slots")
        if ring.is_overflowing:
            yield Text("  ring          OVERFLOWING: writes are only marked", "bold red")
        if ring.dirty_regions:
            done = gauge(1 - ring.dirty_regions / ring.regions)
            yield _line(f"  resync        {done}  {ring.dirty_regions} regions left")
    if intake and intake.journal_size_bytes:
        used = intake.journal_bytes or 0
        fill = gauge(used / intake.journal_size_bytes)
        yield _line(f"  journal       {fill}  {show_size(used)}")


def _stages(status: VolumeStatus) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for heading in ("  process", "state", "last report", "pid", "restarts"):
        table.add_column(heading)
    for stage in status.stages:
        style = "" if stage.state is StageState.REPORTING else "bold red"
        table.add_row(
            f"  {stage.name}",
            Text(stage.state.value, style),
            f"{stage.age_s:.1f} s ago",
            str(stage.pid or "-"),
            str(stage.restarts),
        )
    return table


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input, one key at a time; None if it is not a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield number
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


@click.command(params=cli_options.location())
def main(config_path: str, run_dir: str | None, volume: str | None) -> None:
    """Shows VOLUME, or every volume of this host, live. q or Ctrl-C quits."""
    found = cli_status.locations(config_path=config_path, run_dir=run_dir, volume=volume)
    views = [View(location) for location in found]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with (
            _keys() as keys,
            Live(console=Console(), screen=True, auto_refresh=False) as live,
            contextlib.suppress(KeyboardInterrupt),
        ):
            _show(views, context, keys, live)
    finally:
        context.destroy(linger=0)


def _show(
    views: list[View], context: zmq.Context[zmq.Socket[bytes]], keys: int | None, live: Live
) -> None:
    poller = zmq.Poller()
    if keys is not None:
        poller.register(keys, zmq.POLLIN)
    for view in views:
        view.subscriber = Subscriber(context, view.location.run_dir)
        poller.register(view.subscriber.socket, zmq.POLLIN)
    while True:
        live.update(screen(views, time.monotonic()), refresh=True)
        ready = dict(poller.poll(1000))
        if keys in ready and os.read(keys or 0, 64).lower().startswith(b"q"):
            return
        for view in views:
            assert view.subscriber is not None
            with contextlib.suppress(NoAnswerError):
                while view.subscriber.socket.poll(0):
                    view.take(view.subscriber.status(0.0), time.monotonic())
