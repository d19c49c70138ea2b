# SPDX-License-Identifier: GPL-2.0-only
"""`bdr run`, `reload`, `scale` and `ctl`: the processes of this host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from bdr.common.errors import UsageError
from bdr.common.host import config
from bdr.common.host.config import Config
from bdr.common.host.keys import keys_of
from bdr.common.host.programs import SCALABLE_STAGES
from bdr.common.host.tables import Source
from bdr.services.cli import options as cli_options
from bdr.services.supervise.files import make_directory
from bdr.services.supervise.scaling import Scaling, configured_count, programs_of
from bdr.services.supervise.supervisord import Supervision


@click.command(params=[cli_options.config_path()])
def run(config_path: str) -> None:
    """Writes the program files and executes supervisord, in the foreground.

    The systemd unit runs this command. Logs go to files in log_dir; SIGTERM stops every process
    cleanly.
    """
    found = config.load(config_path)
    supervision = Supervision(found.host.run_dir)
    _prepare(found, supervision)
    if supervision.is_running():
        raise UsageError(
            f"supervisord: found one running at {supervision.socket}; wanted none: "
            "`bdr reload` applies a changed configuration to it"
        )
    with supervision.locked():
        _write(found, supervision)
    # supervisord sets its own umask only where it becomes a daemon.
    os.umask(0o077)
    supervisord = str(Path(sys.executable).parent / "supervisord")
    os.execv(supervisord, [supervisord, "--nodaemon", "--configuration", str(supervision.conf)])


@click.command(params=[cli_options.config_path()])
def reload(config_path: str) -> None:
    """Applies bdr.toml to the running processes: starts, stops and restarts only what changed."""
    found = config.load(config_path)
    _apply(found, Supervision(found.host.run_dir))


@click.command(params=[cli_options.config_path(), cli_options.volume()])
@click.argument("stages", nargs=-1, required=True, metavar="STAGE=NUMBER...")
def scale(config_path: str, volume: str, stages: tuple[str, ...]) -> None:
    """Runs NUMBER processes of a stage of VOLUME, such as sender=4.

    Processes are added and removed while the pipeline runs; all others, also of the same stage,
    keep running. The number is persistent across restarts and reboots, until the number in bdr.toml
    changes; STAGE=default restores that of bdr.toml.
    """
    found = config.load(config_path)
    name = cli_options.chosen(found, volume)
    changes = {(name, stage): count for stage, count in _counts(found, name, stages)}
    supervision = Supervision(found.host.run_dir)
    if not supervision.is_running():
        supervision.processes()  # raises
    make_directory(Path(found.host.state_dir), mode=0o700)
    with supervision.locked():
        Scaling(found.host.state_dir).set(found, changes)
    _apply(found, supervision)


@click.command(
    params=[cli_options.config_path()],
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def ctl(config_path: str, words: tuple[str, ...]) -> None:
    """Runs supervisorctl for this host's supervisord: bdr ctl stop db-sender:*

    Programs are called VOLUME-reader, VOLUME-applier, VOLUME-monitor, and
    VOLUME-sender:VOLUME-sender-1; VOLUME-sender:* is all senders.
    """
    supervision = Supervision(config.load(config_path).host.run_dir)
    supervision.processes()  # raises where none runs
    supervisorctl = str(Path(sys.executable).parent / "supervisorctl")
    os.execv(supervisorctl, [supervisorctl, "--configuration", str(supervision.conf), *words])


def _counts(found: Config, volume: str, stages: tuple[str, ...]) -> list[tuple[str, int]]:
    counts = []
    for word in stages:
        stage, _, number = word.partition("=")
        configured = configured_count(found, volume, stage)
        if configured is None:
            raise UsageError(
                f"stage {stage!r}: volume {volume} is a {found.volume[volume].role}, "
                "where this stage does not exist or has exactly one process; "
                "a source's sender and scanner can be scaled"
            )
        kind = keys_of(Source)[SCALABLE_STAGES[stage]].kind
        try:
            count = configured if number == "default" else kind.check(kind.of_text(number))
        except ValueError as error:
            raise UsageError(
                f"{stage}: found {number!r}; wanted {kind.wanted}, or default"
            ) from error
        counts.append((stage, count))
    return counts


def _prepare(found: Config, supervision: Supervision) -> None:
    supervision.prepare(log_dir=found.host.log_dir)
    make_directory(Path(found.host.state_dir), mode=0o700)


def _write(found: Config, supervision: Supervision) -> None:
    """Writes the program files; the run directory is locked."""
    programs = programs_of(found, supervision, Scaling(found.host.state_dir))
    supervision.write(programs, log_dir=found.host.log_dir)


def _apply(found: Config, supervision: Supervision) -> None:
    """Writes the files, updates supervisord, and prints what changed."""
    supervision.processes()  # raises before anything is written
    _prepare(found, supervision)
    with supervision.locked():
        _write(found, supervision)
        changes = supervision.update()
    for what, names in changes.items():
        for name in names:
            click.echo(f"{what} {name}")
    if not any(changes.values()):
        click.echo("nothing to change")
