# SPDX-License-Identifier: GPL-2.0-only
"""The supervisord program of each process of a volume. No I/O here.

One file for each process, so that adding or removing one does not affect the others. A stage that
may have several processes is also a supervisord group, so that `supervisorctl stop VOLUME-sender:*`
stops all of them:

==================  ==============================  ===========================
process             its file                        name in supervisorctl
==================  ==============================  ===========================
the reader of db    db-reader.conf                  db-reader
its second sender   db-sender-2.conf                db-sender:db-sender-2
all its senders     db-sender.group.conf            db-sender:*
==================  ==============================  ===========================

supervisord's own `update` restarts a whole group when one member is added; the
extension `services.supervise.rpc` adds it to the running group instead.

A program runs its process directly, without a shell, so that signals reach it.

`startsecs=0` and `exitcodes`: after a permanent error a process exits with one of
`PERMANENT_EXIT_CODES`, and supervisord does not restart it; after any other exit, including a kill,
it is restarted at once. Processes pause before they exit because of a bug.

A process that lacks something of its host does not exit, but waits and begins anew
(`services.runtime.retry`), as `RetryMode` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from bdr.common.errors import PERMANENT_EXIT_CODES
from bdr.common.host.keys import keys_of
from bdr.common.host.tables import Host, Source, Volume

if TYPE_CHECKING:
    from bdr.common.host.config import Config

PRIORITIES = {"applier": 100, "reader": 200, "sender": 300, "scanner": 400, "monitor": 500}
"""Lower ones start first and stop last."""

SCALABLE_STAGES = {"sender": "senders", "scanner": "scanners"}
"""Stages that may have several processes, and the key with their number; every other stage has
exactly one."""

STOP_WAIT_S = 15
"""Time from SIGTERM to SIGKILL."""
APPLIER_STOP_WAIT_S = 600
"""The applier first applies the rest of its journal, so that the device is complete."""

RETRIES = 1_000_000
"""supervisord gives up after so many failed spawns in succession: never."""

RETRY = "BDR_RETRY"
"""Variable of a process: its `RetryMode`."""

LOG_BYTES = 10 << 20
LOG_BACKUPS = 5

_COMMENT = re.compile(r"(\s)([;#])")
_APART = r'\1""\2'


class RetryMode(Enum):
    """When a process that lacks something of its host waits for it."""

    ALWAYS = "always"
    AFTER_START = "after-start"
    """Once it has worked: an error at the start is an operator's to see."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process under supervisord.

    Attributes:
        volume: the volume's name.
        stage: reader, sender, ...
        instance: distinguishes several of one stage; from 1 on.
        command: program and arguments.
        environment: variables in addition to supervisord's; values without special characters.
    """

    volume: str
    stage: str
    instance: int
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The supervisord group: one for each stage of each volume."""
        return f"{self.volume}-{self.stage}"

    @property
    def name(self) -> str:
        """The process's name, unique on a host."""
        return f"{self.group}-{self.instance}" if self.is_scalable else self.group

    @property
    def namespec(self) -> str:
        """Its name in supervisorctl."""
        return f"{self.group}:{self.name}" if self.is_scalable else self.name

    @property
    def is_scalable(self) -> bool:
        """Whether its stage may have several processes."""
        return self.stage in SCALABLE_STAGES

    @property
    def file_name(self) -> str:
        """Its file in the directory of program files."""
        return f"{self.name}.conf"

    def section(self, *, log_dir: str | None) -> str:
        """The content of its program file.

        Args:
            log_dir: directory of its rotated log; None: the log goes to supervisord's output.
        """
        command = " ".join(_quote(word) for word in self.command)
        exit_codes = ",".join(map(str, PERMANENT_EXIT_CODES))
        environment = ",".join(
            f"{name}={_quote(value)}" for name, value in sorted(self.environment.items())
        )
        if log_dir is None:
            log_file, log_bytes = "/dev/stdout", 0
        else:
            # supervisord expands this value twice.
            log_file = _escape(_escape(f"{log_dir}/{self.name}.log"))
            log_bytes = LOG_BYTES
        return f"""\
[program:{self.name}]
command={command}
priority={PRIORITIES[self.stage]}
environment={environment}
umask=077
startsecs=0
startretries={RETRIES}
autorestart=unexpected
exitcodes={exit_codes}
stopsignal=TERM
stopwaitsecs={APPLIER_STOP_WAIT_S if self.stage == "applier" else STOP_WAIT_S}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={log_file}
stdout_logfile_maxbytes={log_bytes}
stdout_logfile_backups={LOG_BACKUPS}
"""


def from_config(
    config: Config,
    *,
    python: str,
    programs_dir: str,
    counts: Mapping[tuple[str, str], int],
    retry: RetryMode = RetryMode.ALWAYS,
) -> list[Program]:
    """Every process of every volume of a host.

    Args:
        config: what the host runs.
        python: the interpreter.
        programs_dir: the include directory, which monitors read to find the expected processes.
        counts: (volume, stage) to the number that overrides the configured one.
        retry: when processes wait for what the host lacks.
    """
    return [
        _program(
            config, name, stage, instance, python=python, programs_dir=programs_dir, retry=retry
        )
        for name, volume in config.volume.items()
        for stage, count in stages_of(volume).items()
        for instance in range(1, 1 + counts.get((name, stage), count))
    ]


def stages_of(volume: Volume) -> dict[str, int]:
    """Configured number of processes of each stage."""
    if isinstance(volume, Source):
        return {"reader": 1, "sender": volume.senders, "scanner": volume.scanners, "monitor": 1}
    return {"applier": 1, "monitor": 1}


def _program(
    config: Config,
    name: str,
    stage: str,
    instance: int,
    *,
    python: str,
    programs_dir: str,
    retry: RetryMode,
) -> Program:
    volume = config.effective(name)
    words = [python, "-m", f"bdr.services.{stage}", "--volume", name]
    words += ["--run-dir", config.run_dir_of(name)]
    for key in keys_of(type(volume)).values():
        if stage in key.accepted_by:
            words += key.arguments(getattr(volume, key.name))
    if stage == "monitor":
        words += ["--programs-dir", programs_dir]
    words += {"debug": ["--debug"], "warning": ["--noprint"]}.get(config.host.log_level, [])
    environment = {
        key.variable: key.kind.to_text(getattr(config.host, key.name))
        for key in keys_of(Host).values()
        if key.variable is not None
    }
    environment[RETRY] = retry.value
    return Program(name, stage, instance, words, environment)


def files(programs: Iterable[Program], *, log_dir: str | None) -> dict[str, str]:
    """Every file of the include directory, by name: programs, and groups of them."""
    found: dict[str, str] = {}
    groups: dict[str, list[Program]] = {}
    for program in programs:
        found[program.file_name] = program.section(log_dir=log_dir)
        if program.is_scalable:
            groups.setdefault(program.group, []).append(program)
    for group, members in groups.items():
        members.sort(key=lambda member: member.instance)
        found[f"{group}.group.conf"] = (
            f"[group:{group}]\n"
            f"programs={','.join(member.name for member in members)}\n"
            f"priority={PRIORITIES[members[0].stage]}\n"
        )
    return found


def stage_of(name: str, *, volume: str) -> str | None:
    """The stage of a process of this volume by its name; None for other processes."""
    for stage in PRIORITIES:
        base = f"{volume}-{stage}"
        if stage in SCALABLE_STAGES:
            if name.startswith(f"{base}-") and name[len(base) + 1 :].isdigit():
                return stage
        elif name == base:
            return stage
    return None


def _escape(text: str) -> str:
    """supervisord expands %(name)s everywhere."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """One argument, quoted for supervisord's shlex."""
    escaped = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    # A ; or # after a blank would start a comment: close and reopen the quotes between them.
    return f'"{_COMMENT.sub(_APART, escaped)}"'
