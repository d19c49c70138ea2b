# SPDX-License-Identifier: GPL-2.0-only
"""`bdr top`: a live view of the volumes of a host.

Each second brings a status of each volume; rates are differences between them. A
volume whose monitor falls silent is shown as unknown, with the age of what is
left on the screen.
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

from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.services.cli import options as cli_options
from bdr.services.cli import status as cli_status
from bdr.services.cli.status import Place, Status
from bdr.services.monitoring.client import NoAnswerError, Subscriber

HISTORY = 40
SILENT_AFTER_S = 3.0
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {
    "healthy": "bold green",
    "degraded": "bold yellow",
    "resyncing": "bold yellow",
    "behind": "bold yellow",
    "unknown": "bold magenta",
    "broken": "bold red",
}


def sparkline(values: list[float]) -> str:
    """One character a value, scaled to the highest."""
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
    """What is known of one volume."""

    place: Place
    subscriber: Subscriber | None = None
    status: Status | None = None
    seen_s: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    rates: dict[str, deque[float]] = field(default_factory=dict)

    def take(self, status: Status, now_s: float) -> None:
        """Takes the next status and works out the rates since the one before."""
        counts = _counts(status)
        elapsed_s = now_s - self.seen_s
        if self.status is not None and elapsed_s < 0.5:
            # Sent because the health changed; too soon for a rate.
            self.status = status
            return
        if self.status is not None:
            for name, count in counts.items():
                line = self.rates.setdefault(name, deque([0.0] * HISTORY, maxlen=HISTORY))
                line.append(max(0.0, count - self.counts.get(name, count)) / elapsed_s)
        self.status, self.seen_s, self.counts = status, now_s, counts


def _counts(status: Status) -> dict[str, float]:
    """Bytes so far, by name."""
    if status["role"] == "source":
        ring = status["ring"] or {"head": 0, "tail": 0}
        return {
            "written": ring["head"] * PAYLOAD_BYTES,
            "sent": _sum(status, "sender"),
            "acknowledged": ring["tail"] * PAYLOAD_BYTES,
        }
    return {"applied": _sum(status, "applier")}


def _sum(status: Status, stage: str) -> float:
    found = (entry["values"].get("bytes", 0) for entry in status["stages"]
             if entry["stage"] == stage)  # fmt: skip
    return float(sum(found))


def screen(views: list[View], now_s: float) -> RenderableType:
    """The whole picture."""
    parts: list[RenderableType] = [
        Text(f"bdr top   {time.strftime('%H:%M:%S')}   q quits", style="dim")
    ]
    for view in views:
        parts += [Text(""), *_volume(view, now_s)]
    return Group(*parts)


def _volume(view: View, now_s: float) -> Iterator[RenderableType]:
    status, name = view.status, view.place.volume
    silent_s = now_s - view.seen_s
    if status is None or silent_s > SILENT_AFTER_S:
        title = Text(f"{name}: ")
        title.append("unknown", _STYLES["unknown"])
        yield title
        yield Text("  its monitor does not answer" if status is None else
                   f"  its monitor has been silent for {silent_s:.0f} s")  # fmt: skip
        return
    title = Text(f"{name} ({status['role']}): ")
    title.append(status["health"], _STYLES[status["health"]])
    title.append(f"   replica {cli_status.replica(status)}")
    yield title
    for reason in status["reasons"]:
        yield Text(f"  ! {reason}", "yellow")
    if status["role"] == "source":
        yield _line(f"  behind        {cli_status.behind(status)}")
    for rate, values in view.rates.items():
        yield _line(f"  {rate:<13} {cli_status.size(values[-1]):>10}/s  {sparkline(list(values))}")
    yield from _gauges(status)
    yield _stages(status)


def _line(text: str) -> Text:
    """One line whatever the terminal's width: a bar that is wrapped is none."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _gauges(status: Status) -> Iterator[RenderableType]:
    ring, replica = status["ring"], status["replica"]
    if ring and ring["capacity"]:
        yield _line(f"  ring          {gauge(ring['used'] / ring['capacity'])}  "
                   f"{ring['used']} of {ring['capacity']} slots")  # fmt: skip
        if ring["mode"] == "OVERFLOW":
            yield Text("  ring          OVERFLOWING: writes are only marked", "bold red")
        if ring["dirty_regions"]:
            done = 1 - ring["dirty_regions"] / ring["regions"]
            yield _line(f"  resync        {gauge(done)}  {ring['dirty_regions']} regions left")
    if replica.get("journal_size_bytes"):
        used = replica["journal_bytes"] or 0
        yield _line(f"  journal       {gauge(used / replica['journal_size_bytes'])}  "
                   f"{cli_status.size(used)}")  # fmt: skip


def _stages(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for heading in ("  process", "state", "last report", "pid", "restarts"):
        table.add_column(heading)
    for stage in status["stages"]:
        style = "" if stage["state"] == "reporting" else "bold red"
        table.add_row(
            f"  {stage['name']}",
            Text(stage["state"], style),
            f"{stage['age_seconds']:.1f} s ago",
            str(stage["pid"] or "-"),
            str(stage["restarts"]),
        )
    return table


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input, one key at a time; None where it is no terminal."""
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


@click.command()
@cli_options.config_path
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    help="Look in this run directory instead: that of a `bdr client` or `bdr server`.",
)
@click.argument("volume", required=False, shell_complete=cli_options.complete_volume)
def main(config_path: str, run_dir: str | None, volume: str | None) -> None:
    """Shows VOLUME, or every volume of this host, live. q or Ctrl-C quits."""
    found = cli_status.places(config_path=config_path, run_dir=run_dir, volume=volume)
    views = [View(place) for place in found]
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
        view.subscriber = Subscriber(context, view.place.run_dir)
        poller.register(view.subscriber.socket, zmq.POLLIN)
    while True:
        now_s = time.monotonic()
        live.update(screen(views, now_s), refresh=True)
        ready = dict(poller.poll(1000))
        if keys in ready and os.read(keys or 0, 64).lower().startswith(b"q"):
            return
        for view in views:
            assert view.subscriber is not None
            with contextlib.suppress(NoAnswerError):
                while view.subscriber.socket.poll(0):
                    view.take(view.subscriber.status(0.0), time.monotonic())
