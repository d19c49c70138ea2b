# SPDX-License-Identifier: GPL-2.0-only
"""`bdr status`: is each volume well? And how its status is asked for.

What is shown comes from the volume's monitor, now: its socket sends the present
status to each new subscriber. Without an answer nothing is guessed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import zmq

from bdr.common.errors import BdrError, UsageError
from bdr.services.cli import options as cli_options
from bdr.services.monitoring.client import NoAnswerError, Subscriber
from bdr.services.supervise.supervisord import Supervision

TIMEOUT_S = 2.0
WORST = 2

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask for a volume."""

    volume: str
    run_dir: str


def places(*, config_path: str, run_dir: str | None, volume: str | None) -> list[Place]:
    """The volumes to be asked for, from a run directory or from bdr.toml.

    Raises:
        UsageError: the configuration is wrong, or has no such volume, or none at all.
    """
    if run_dir is not None:
        found = [
            Place(path.parent.name, str(path.parent))
            for path in sorted(Path(run_dir).glob("*/monitor.lock"))
        ]
        if volume is not None:
            found = [place for place in found if place.volume == volume]
        if not found:
            what = "no volume" if volume is None else f"no volume {volume!r}"
            raise UsageError(
                f"run directory {run_dir}: found {what} there; wanted the directory that a "
                "running `bdr client` or `bdr server` has named"
            )
        return found
    configuration = cli_options.load(config_path)
    if not configuration.volume:
        raise UsageError(f"{config_path}: found no volume in it; wanted one at least")
    names = [cli_options.chosen(configuration, volume)] if volume else list(configuration.volume)
    return [Place(name, configuration.run_dir_of(name)) for name in names]


def ask(place: Place, timeout_s: float = TIMEOUT_S) -> Status:
    """A volume's present status; where there is none, one that says so."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with Subscriber(context, place.run_dir) as subscriber:
            return subscriber.status(timeout_s)
    except NoAnswerError as error:
        return unknown(place.volume, str(error))
    finally:
        context.destroy(linger=0)


def unknown(volume: str, reason: str) -> Status:
    """What is known of a volume whose monitor does not answer."""
    return {
        "volume": volume,
        "health": "unknown",
        "exit_code": WORST,
        "reasons": [reason],
        "stages": [],
    }


def processes(run_dir: str) -> tuple[dict[str, str], str | None]:
    """What supervisord says of each process, or why it says nothing."""
    try:
        found = Supervision(run_dir).processes()
    except BdrError as error:
        return {}, str(error)
    return {str(process["name"]): _state(process) for process in found}, None


def _state(process: Mapping[str, Any]) -> str:
    state = str(process["statename"])
    if state == "EXITED":
        return f"EXITED with code {process['exitstatus']}, left down"
    return state


@click.command()
@cli_options.config_path
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    help="Ask in this run directory instead: that of a `bdr client` or `bdr server`.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each volume.")
@click.option(
    "--timeout", default=TIMEOUT_S, show_default=True, help="Seconds to wait for a monitor."
)
@click.argument("volume", required=False, shell_complete=cli_options.complete_volume)
def main(
    config_path: str, run_dir: str | None, as_json: bool, timeout: float, volume: str | None
) -> None:
    """Is VOLUME well? Of all volumes without it.

    \b
    Exit code, the worst of all:
      0  healthy
      1  behind rpo_seconds, degraded or resyncing
      2  broken or unknown; also if nothing could be asked
    """
    try:
        found = places(config_path=config_path, run_dir=run_dir, volume=volume)
        host_dir = run_dir or cli_options.load(config_path).host.run_dir
    except BdrError as error:
        for line in str(error).splitlines():
            click.echo(f"bdr: {line}", err=True)
        sys.exit(WORST)
    states, silence = processes(host_dir)
    statuses = [dict(ask(place, timeout)) for place in found]
    for status in statuses:
        _add_supervisor(status, states, silence)
    if as_json:
        for status in statuses:
            click.echo(json.dumps(status))
    else:
        for status in statuses:
            click.echo("\n".join(lines(status)))
    sys.exit(max(int(status["exit_code"]) for status in statuses))


def _add_supervisor(status: dict[str, Any], states: Mapping[str, str], silence: str | None) -> None:
    """Adds what supervisord says; without it, nothing restarts what ends."""
    if silence is not None:
        status["reasons"] = [silence, *status["reasons"]]
        status["exit_code"] = WORST
        if status["health"] != "unknown":
            status["health"] = "broken"
        status["supervisor"] = None
        return
    volume = str(status["volume"])
    from bdr.common.host.programs import stage_of  # noqa: PLC0415

    own = {name: state for name, state in states.items() if stage_of(name, volume=volume)}
    status["supervisor"] = own
    down = [f"{name}: {state}" for name, state in own.items() if state != "RUNNING"]
    if down and not status["stages"]:
        status["reasons"] = [*status["reasons"], *down]
    if down and status["exit_code"] == 0:
        # Quicker than the monitor.
        status |= {"health": "unknown", "exit_code": WORST, "reasons": down}


def lines(status: Status) -> list[str]:
    """A volume's status for people."""
    shown = [f"{status['volume']}: {status['health']}"]
    shown += [f"  {reason}" for reason in status["reasons"]]
    if "role" not in status:
        return shown
    shown[0] += f" ({status['role']})"
    if status["role"] == "source":
        shown.append(f"  behind      {behind(status)}")
        shown.append(f"  target      {_link(status)}")
        if status["ring"]:
            shown.append(f"  ring        {ring(status['ring'])}")
    else:
        shown.append(f"  source      {_link(status)}")
    shown.append(f"  replica     {replica(status)}")
    shown += [f"              {line}" for line in standing(status)]
    supervisor = status.get("supervisor") or {}
    for stage in status["stages"]:
        shown.append(f"  {stage['name']:<20}{stage_line(stage, supervisor)}")
    return shown


def behind(status: Status) -> str:
    """Seconds, bytes, and when it will be level."""
    if status["seconds_behind"] is None:
        return "not known: the ring cannot be looked at"
    least = "at least " if status["is_seconds_behind_minimum"] else ""
    text = f"{least}{status['seconds_behind']:.1f} s, {size(status['bytes_behind'])}"
    if not status["slots_behind"]:
        return text
    catch_up = status["catch_up_seconds"]
    if catch_up is None:
        return f"{text}, not catching up"
    return f"{text}, level in {catch_up:.0f} s"


def _link(status: Status) -> str:
    link = status["connection"]
    state = "not known" if link["state"] is None else str(link["state"]).lower()
    text = f"{state}, {link['connects']} connects, {link['disconnects']} disconnects"
    failed = link["handshakes_failed"] + link["authentications_failed"]
    return f"{text}, {failed} refused" if failed else text


def ring(found: Status) -> str:
    """Fill and overflows."""
    share = 100 * found["used"] / found["capacity"] if found["capacity"] else 0
    text = f"{found['used']} of {found['capacity']} slots ({share:.0f} %)"
    if found["mode"] == "OVERFLOW":
        text += ", OVERFLOWING"
    if found["overflows"]:
        text += f", {found['overflows']} overflows"
    if found["dirty_regions"]:
        text += f", {found['dirty_regions']} of {found['regions']} regions await a resync"
    return text


def replica(status: Status) -> str:
    """Condition, and on the target its place."""
    found = status["replica"]
    if found["condition"] is None:
        return "not known"
    text = str(found["condition"]).lower().replace("_", " ")
    if found.get("slot") is not None:
        text += f", at slot {found['slot']}"
    if found.get("last_ack_age_seconds") is not None:
        text += f", last acknowledged {found['last_ack_age_seconds']:.1f} s ago"
    if found.get("journal_size_bytes"):
        text += (
            f", journal {size(found['journal_bytes'] or 0)} of {size(found['journal_size_bytes'])}"
        )
    return text


def standing(status: Status) -> list[str]:
    """Since when; while a scan is needed how much of it is left, else of when the replica is."""
    found = status["replica"]
    since = f"since {moment(found['since'])}" if found.get("since") else ""
    if found["condition"] in ("INCONSISTENT", "UNKNOWN"):
        left = found.get("left_bytes")
        words = [f"resync under way {since}".rstrip()] if since else []
        words += [] if left is None else [f"{size(left)} left to compare"]
        return [", ".join(words)] if words else []
    if not since or not found.get("of"):
        return []
    place = f"slot {found['slot']} of stream {str(found['stream'])[:8]}"
    return [f"{since}; {place}, of {moment(found['of'])}"]


def moment(iso: str) -> str:
    """A time as people read it."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def stage_line(stage: Status, supervisor: Mapping[str, str]) -> str:
    """One process."""
    state = str(stage["state"])
    text = f"{state}, last report {stage['age_seconds']:.1f} s ago" if stage["pid"] else state
    if stage["pid"]:
        text += f", pid {stage['pid']}"
    if stage["restarts"]:
        text += f", restarted {stage['restarts']} times"
    said = supervisor.get(str(stage["name"]), "RUNNING")
    return text if said == "RUNNING" else f"{text} (supervisord: {said})"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
