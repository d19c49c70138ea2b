# SPDX-License-Identifier: GPL-2.0-only
"""The supervisord program of each process of a volume. No I/O here.

One file a process: `supervisorctl update` then touches only what was added or
removed. A program runs its process directly, without a shell, so that signals
reach it.

`startsecs=0` and `exitcodes`: an error that cannot heal ends the process with one
of `PERMANENT_EXIT_CODES`, which supervisord leaves alone; anything else, a kill
included, is restarted at once. Processes pause by themselves before they end for
a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import PERMANENT_EXIT_CODES

PRIORITIES = {"applier": 100, "reader": 200, "sender": 300, "scanner": 400, "monitor": 500}
"""Lower ones start first and stop last."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process under supervisord.

    Attributes:
        volume: the volume's name.
        stage: reader, sender, ...
        instance: distinguishes several of one stage; from 1 on.
        command: program and arguments.
    """

    volume: str
    stage: str
    instance: int
    command: Sequence[str]

    @property
    def name(self) -> str:
        """What supervisorctl calls it."""
        return f"{self.volume}-{self.stage}-{self.instance}"

    @property
    def file_name(self) -> str:
        """Its file in the directory of program files."""
        return f"{self.name}.conf"

    def section(self, *, log_dir: str) -> str:
        """The content of its program file."""
        command = " ".join(_quote(word) for word in self.command)
        exit_codes = ",".join(map(str, PERMANENT_EXIT_CODES))
        return f"""\
[program:{self.name}]
command={command}
priority={PRIORITIES[self.stage]}
startsecs=0
autorestart=unexpected
exitcodes={exit_codes}
stopsignal=TERM
stopwaitsecs=15
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={_escape(f"{log_dir}/{self.name}.log")}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=5
"""


def _escape(text: str) -> str:
    """supervisord expands %(name)s everywhere."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """One word of a command as supervisord's shlex reads it."""
    escaped = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
