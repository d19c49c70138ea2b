# SPDX-License-Identifier: GPL-2.0-only
"""`bdr status`: health of each volume; and the query for its status.

The output is the present status of the volume's monitor, whose socket sends it to each new
subscriber. Without an answer the health is unknown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import zmq

from bdr.common.errors import BdrError, UsageError
from bdr.common.host.programs import stage_of
from bdr.common.host.sizes import show_size
from bdr.common.status.model import (
    ConnectionStatus,
    LagStatus,
    ReplicaStatus,
    RingStatus,
    StageStatus,
    VerificationStatus,
    VolumeStatus,
)
from bdr.common.status.states import HealthState
from bdr.services.cli import options as cli_options
from bdr.services.monitoring.client import NoAnswerError, Subscriber
from bdr.services.supervise.supervisord import Supervision

TIMEOUT_S = 2.0
_EXIT_CODE_WORST = HealthState.BROKEN.exit_code


@dataclass(frozen=True, slots=True)
class MonitorLocation:
    """Run directory of a volume's monitor."""

    volume: str
    run_dir: str


@dataclass(frozen=True, slots=True)
class Answer:
    """State of a volume on this host: its monitor's status, and supervisord's states."""

    volume: str
    health: HealthState
    reasons: tuple[str, ...]
    status: VolumeStatus | None
    """None: its monitor does not answer."""
    supervisor: Mapping[str, str] | None = None
    """State of each process; None if supervisord does not answer."""

    def to_map(self) -> dict[str, Any]:
        """As `bdr status --json` prints it."""
        return {
            **(self.status.to_map() if self.status else {"volume": self.volume, "stages": []}),
            "health": self.health.value,
            "exit_code": self.health.exit_code,
            "reasons": list(self.reasons),
            "supervisor": self.supervisor,
        }


def locations(
    *, config_path: str, run_dir: str | None, volume: str | None
) -> list[MonitorLocation]:
    """The volumes to query, from a run directory or from bdr.toml.

    Raises:
        UsageError: the configuration is wrong, or has no such volume, or none at all.
    """
    if run_dir is not None:
        found = [
            MonitorLocation(path.parent.name, str(path.parent))
            for path in sorted(Path(run_dir).glob("*/monitor.lock"))
        ]
        if volume is not None:
            found = [location for location in found if location.volume == volume]
        if not found:
            what = "no volume" if volume is None else f"no volume {volume!r}"
            raise UsageError(
                f"run directory {run_dir}: found {what} there; wanted the directory "
                "of a running `bdr client` or `bdr server`"
            )
        return found
    configuration = cli_options.load(config_path)
    if not configuration.volume:
        raise UsageError(f"{config_path}: found no volume in it; wanted one at least")
    names = [cli_options.chosen(configuration, volume)] if volume else list(configuration.volume)
    return [MonitorLocation(name, configuration.run_dir_of(name)) for name in names]


def query(location: MonitorLocation, timeout_s: float = TIMEOUT_S) -> Answer:
    """The present status from a volume's monitor; health UNKNOWN without an answer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with Subscriber(context, location.run_dir) as subscriber:
            status = subscriber.status(timeout_s)
    except NoAnswerError as error:
        return Answer(location.volume, HealthState.UNKNOWN, (str(error),), None)
    finally:
        context.destroy(linger=0)
    return Answer(location.volume, status.health, status.reasons, status)


def processes(run_dir: str) -> tuple[dict[str, str], str | None]:
    """supervisord's state of each process, or why it does not answer."""
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


@click.command(params=cli_options.location())
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each volume.")
@click.option(
    "--timeout", default=TIMEOUT_S, show_default=True, help="Seconds to wait for a monitor."
)
def main(
    config_path: str, run_dir: str | None, as_json: bool, timeout: float, volume: str | None
) -> None:
    """Health of VOLUME, or of all volumes.

    \b
    Exit code, the worst of all:
      0  healthy
      1  behind, degraded, resyncing or promoted
      2  broken or unknown; also if the query failed
    """
    try:
        found = locations(config_path=config_path, run_dir=run_dir, volume=volume)
        host_dir = run_dir or cli_options.load(config_path).host.run_dir
    except BdrError as error:
        for line in str(error).splitlines():
            click.echo(f"bdr: {line}", err=True)
        sys.exit(_EXIT_CODE_WORST)
    states, silence = processes(host_dir)
    answers = [_with_supervisor(query(location, timeout), states, silence) for location in found]
    for answer in answers:
        click.echo(json.dumps(answer.to_map()) if as_json else "\n".join(lines(answer)))
    sys.exit(max(answer.health.exit_code for answer in answers))


def _with_supervisor(answer: Answer, states: Mapping[str, str], silence: str | None) -> Answer:
    """Adds supervisord's states; without supervisord, ended processes are not restarted."""
    if silence is not None:
        is_unknown = answer.health is HealthState.UNKNOWN
        return replace(
            answer,
            health=HealthState.UNKNOWN if is_unknown else HealthState.BROKEN,
            reasons=(silence, *answer.reasons),
        )
    own = {name: state for name, state in states.items() if stage_of(name, volume=answer.volume)}
    down = tuple(f"{name}: {state}" for name, state in own.items() if state != "RUNNING")
    answer = replace(answer, supervisor=own)
    if down and answer.health is HealthState.HEALTHY:
        # The monitor has not detected it yet.
        return replace(answer, health=HealthState.UNKNOWN, reasons=down)
    if down and not (answer.status and answer.status.stages):
        return replace(answer, reasons=(*answer.reasons, *down))
    return answer


def lines(answer: Answer) -> list[str]:
    """A volume's status as text."""
    shown = [f"{answer.volume}: {answer.health.value}"]
    shown += [f"  {reason}" for reason in answer.reasons]
    status = answer.status
    if status is None:
        return shown
    shown[0] += f" ({status.role.value})"
    if status.lag is not None:
        shown.append(f"  behind      {behind(status.lag)}")
        shown.append(f"  target      {_link(status.connection)}")
        if status.ring:
            shown.append(f"  ring        {ring(status.ring)}")
    else:
        shown.append(f"  behind      {age(status.replica)}")
        shown.append(f"  source      {_link(status.connection)}")
    shown.append(f"  replica     {replica(status.replica)}")
    shown += [f"              {line}" for line in replica_details(status.replica)]
    if status.verification is not None and (text := verification(status.verification)):
        shown.append(f"  verified    {text}")
    for stage in status.stages:
        shown.append(f"  {stage.name:<20}{stage_line(stage, answer.supervisor or {})}")
    return shown


def behind(lag: LagStatus) -> str:
    """Lag in seconds and bytes, and the time to catch up."""
    if lag.bytes is None:
        return "not known: the ring cannot be read"
    if lag.seconds is None:
        return "not known: something is missing since an unknown time"
    least = "at least " if lag.is_minimum else ""
    text = f"{least}{lag.seconds:.1f} s, {show_size(lag.bytes)}"
    if not lag.slots:
        return text
    if lag.catch_up_s is None:
        return f"{text}, not catching up"
    return f"{text}, caught up in {lag.catch_up_s:.0f} s"


def age(found: ReplicaStatus) -> str:
    """Age of a target's replica."""
    seconds = found.intake.age_s if found.intake else None
    return "not known" if seconds is None else f"{seconds:.1f} s"


def _link(link: ConnectionStatus) -> str:
    state = "not known" if link.state is None else link.state.value.lower()
    counts = link.links
    text = f"{state}, {counts.connects} connects, {counts.disconnects} disconnects"
    failed = counts.handshakes_failed + counts.authentications_failed
    return f"{text}, {failed} refused" if failed else text


def ring(found: RingStatus) -> str:
    """Usage and overflows."""
    share = 100 * found.used / found.capacity if found.capacity else 0
    text = f"{found.used} of {found.capacity} slots ({share:.0f} %)"
    if found.is_overflowing:
        text += ", OVERFLOWING"
    if found.overflows:
        text += f", {found.overflows} overflows"
    if found.dirty_regions:
        text += f", {found.dirty_regions} of {found.regions} regions await a resync"
    return text


def replica(found: ReplicaStatus) -> str:
    """Condition, and on the target its position."""
    if found.condition is None:
        return "not known"
    text = found.condition.words
    if found.slot is not None:
        text += f", at slot {found.slot}"
    intake = found.intake
    if intake and intake.last_ack_age_s is not None:
        text += f", last acknowledged {intake.last_ack_age_s:.1f} s ago"
    if intake and intake.journal_size_bytes:
        used = show_size(intake.journal_bytes or 0)
        text += f", journal {used} of {show_size(intake.journal_size_bytes)}"
    return text


def replica_details(found: ReplicaStatus) -> list[str]:
    """Start of the condition; the rest of a scan, or the source's time of the content."""
    since = f"since {moment(found.since_utc)}" if found.since_utc else ""
    if found.condition is not None and found.condition.needs_scan:
        words = [f"resync under way {since}"] if since else []
        words += (
            [] if found.left_bytes is None else [f"{show_size(found.left_bytes)} left to compare"]
        )
        return [", ".join(words)] if words else []
    if not since or not found.as_of_utc:
        return []
    position = f"slot {found.slot} of stream {str(found.stream)[:8]}"
    return [f"{since}; {position}, as of {moment(found.as_of_utc)}"]


def verification(found: VerificationStatus) -> str:
    """When the last one ended, and what is to be known of the differences; empty if nothing is."""
    words = []
    if found.ended_utc is not None:
        words.append(f"{moment(found.ended_utc)}: {found.differing_bytes} bytes differed")
        if found.ignored_bytes:
            words.append(f"{show_size(found.ignored_bytes)} were ignored")
    if found.unrepaired_bytes:
        words.append(f"{show_size(found.unrepaired_bytes)} are not repaired")
    elif found.differing_bytes:
        words.append("repaired since")
    return ", ".join(words)


def moment(time: datetime) -> str:
    """A time in human-readable form."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def stage_line(stage: StageStatus, supervisor: Mapping[str, str]) -> str:
    """One process."""
    text = stage.state.value
    if stage.pid:
        text += f", last report {stage.age_s:.1f} s ago, pid {stage.pid}"
    if stage.lost_lines:
        text += f", {stage.lost_lines} log lines lost"
    if stage.restarts:
        text += f", restarted {stage.restarts} times"
    said = supervisor.get(stage.name, "RUNNING")
    return text if said == "RUNNING" else f"{text} (supervisord: {said})"
