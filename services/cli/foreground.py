# SPDX-License-Identifier: GPL-2.0-only
"""`bdr client` and `bdr server`: one side of one volume, in the foreground.

A private supervisord runs the processes from a private run directory, which is removed at the end.
Logs go to standard output. After a permanent error of a process, everything is stopped, and the
exit code is that process's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

import click

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import BdrError, DeviceError, UsageError
from bdr.common.host import conflicts
from bdr.common.host.config import Config, as_toml
from bdr.common.host.keys import ConfigError, keys_of
from bdr.common.host.programs import APPLIER_STOP_WAIT_S, STOP_WAIT_S, RetryMode, from_config
from bdr.common.host.tables import VOLUME, Host, Source, Target
from bdr.services.cli import adopt as adoption
from bdr.services.cli import options as cli_options
from bdr.services.runtime import options
from bdr.services.runtime.line_writer import LineWriter
from bdr.services.runtime.process import end_with_parent
from bdr.services.supervise.files import make_directory
from bdr.services.supervise.supervisord import Supervision

POLL_S = 0.5
FLUSH_S = 1.0
"""Time for the last lines, if the output is blocked."""
_DOWN = ("EXITED", "FATAL", "UNKNOWN")


class StageEndedError(BdrError):
    """A process exited with a permanent error."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(
            f"{name} exited permanently with code {code}; see its last log lines above"
        )
        self.exit_code = code or 1


def _options(side: str, *own: click.Option) -> list[click.Option]:
    """The options of one command, followed by those of both."""
    return [
        *own,
        options.KeyOption(VOLUME._replace(default=cli_options.FOREGROUND_VOLUME)),
        click.Option(
            ["--run-dir"],
            type=click.Path(file_okay=False),
            help="Run directory, for `bdr status --run-dir` and the like; a private one by "
            "default. Removed at the end.",
        ),
        *options.of(Host, side),
        *options.verbosity(),
    ]


@options.command(_options("client", *options.of(Source, "client")))
def client(**given: Any) -> None:
    """Run a source: send the writes of a captured device to a target.

    \b
    bdr client --address backup.example.com --port 8437 \\
        --chardev /dev/bdr-db --underdev /dev/vg0/db

    Runs in the foreground until Ctrl-C or SIGTERM. Start the target first: see `bdr server --help`.
    """
    volume = Source(role="source", **_taken(Source, given))
    found = _config(volume, given)
    _check_source(volume)
    _make_state_dir(found, volume)
    _run(found, given["run_dir"])


_ADOPT = click.Option(
    ["--adopt"],
    is_flag=True,
    help="The first source of the target may overwrite what it holds.",
)


@options.command(_options("server", *options.of(Target, "server"), _ADOPT))
def server(adopt: bool, **given: Any) -> None:
    """Run a target: keep a device equal to its source.

    \b
    bdr server --address 0.0.0.0 --port 8437 --target /dev/vg0/db-replica

    Runs in the foreground until Ctrl-C or SIGTERM. State and journal are kept: after a restart, the
    source continues from the last position.
    """
    volume = Target(role="target", **_taken(Target, given))
    found = _config(volume, given)
    _make_state_dir(found, volume)
    if adopt:
        name = given["volume"]
        adoption.adopt_first(name, volume, state=found.state_of(name, volume))
    _run(found, given["run_dir"])


def _make_state_dir(found: Config, volume: Source | Target) -> None:
    if volume.state is None:
        make_directory(Path(found.host.state_dir), mode=0o700)


def _taken(table: type, given: dict[str, Any]) -> dict[str, Any]:
    """The given options that are keys of a table."""
    return {name: given[name] for name in keys_of(table) if name in given}


def _config(volume: Source | Target, given: dict[str, Any]) -> Config:
    name, run_dir = given["volume"], given["run_dir"]
    level: Literal["debug", "info", "warning"] = (
        "debug" if given["debug"] else "warning" if given["noprint"] else "info"
    )
    host = Host(
        run_dir=os.path.abspath(run_dir) if run_dir else _private_dir(),
        state_dir=given.get("state_dir", Host.state_dir),
        log_format=given["log_format"],
        log_level=level,
    )
    problems = conflicts.problems(host, {name: volume})
    if problems:
        # Keys are options here.
        raise ConfigError(
            [
                problem.replace(f"volume.{name}.", "--").replace("host.run_dir", "--run-dir")
                for problem in problems
            ]
        )
    return Config(host, {name: volume})


def _private_dir() -> str:
    parent = next((path for path in ("/run", "/tmp") if os.access(path, os.W_OK)), None)
    return tempfile.mktemp(prefix="bdr-", dir=parent)  # made below, with mode 0700


def _check_source(volume: Source) -> None:
    """Reports errors at once that the processes would report later."""
    capture = open_capture(volume.chardev, Role.OBSERVER)
    try:
        below = capture.info.underlying
        if volume.underdev and not _is_same(volume.underdev, below):
            raise DeviceError(
                f"underdev {volume.underdev}: the capture {volume.chardev} is over {below}; "
                "wanted the same device"
            )
    finally:
        capture.close()
    try:
        socket.getaddrinfo(volume.address, volume.port)
    except OSError as error:
        click.echo(
            f"bdr: --address: {volume.address}: {error.strerror}; wanted a host name or address: "
            "retrying, in case it can be resolved later",
            err=True,
        )


def _is_same(one: str, other: str) -> bool:
    try:
        first, second = os.stat(one), os.stat(other)
    except OSError as error:
        raise DeviceError(
            f"underdev {error.filename}: {error.strerror}; wanted the underlying device of the "
            "capture"
        ) from error
    if first.st_rdev or second.st_rdev:
        return first.st_rdev == second.st_rdev
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _run(found: Config, run_dir: str | None) -> None:
    """Runs until a signal, or until a permanent error of a process."""
    supervision = Supervision(found.host.run_dir)
    if (
        supervision.run_dir / cli_options.FOREGROUND_FILE
    ).exists() and not supervision.is_running():
        # Left behind by a command that was killed.
        shutil.rmtree(supervision.run_dir, ignore_errors=True)
    try:
        os.makedirs(supervision.run_dir, mode=0o700)
    except OSError as error:
        raise ConfigError(
            [
                f"run directory {supervision.run_dir}: {error.strerror}; wanted one that does not "
                "exist yet, and that this user can make"
            ]
        ) from error
    try:
        log_dir = str(supervision.run_dir / "log")
        supervision.prepare(log_dir=log_dir)
        programs = from_config(
            found,
            python=sys.executable,
            programs_dir=str(supervision.programs_dir),
            counts={},
            retry=RetryMode.AFTER_START,
        )
        supervision.write(programs, log_dir=None)
        _write_config(found, supervision.run_dir)
        if found.host.log_level != "warning":
            shown = shlex.join(["bdr", "status", "--run-dir", str(supervision.run_dir)])
            said = f"bdr: running in the foreground; in another terminal: {shown}"
            with contextlib.suppress(OSError):
                click.echo(said, err=True)
        _Foreground(supervision, {program.name for program in programs}).run()
    finally:
        shutil.rmtree(supervision.run_dir, ignore_errors=True)


def _write_config(found: Config, run_dir: Path) -> None:
    """Writes the configuration for commands with `--run-dir`."""
    tables = [as_toml("host", found.host)]
    tables += [as_toml(f"volume.{name}", volume) for name, volume in found.volume.items()]
    (run_dir / cli_options.FOREGROUND_FILE).write_text("\n".join(tables))


class _Foreground:
    """supervisord as a child process.

    Args:
        expected: names of the processes that it runs.
    """

    def __init__(self, supervision: Supervision, expected: set[str]) -> None:
        self._supervision = supervision
        self._expected = expected
        self._stop = threading.Event()

    def run(self) -> None:
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        process = self._start()
        assert process.stdout is not None
        relay = threading.Thread(target=_relay, args=(process.stdout,), daemon=True)
        relay.start()
        try:
            self._watch(process)
        finally:
            self._end(process)
            relay.join(5)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                str(Path(sys.executable).parent / "supervisord"),
                *("--nodaemon", "--silent"),
                *("--configuration", str(self._supervision.conf)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            umask=0o077,
            # Ctrl-C is delivered to this process only, which then stops supervisord in order.
            start_new_session=True,
            # Nothing keeps running, even if this process is killed.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while not self._stop.wait(POLL_S):
            if process.poll() is not None:
                raise StageEndedError("supervisord", process.returncode)
            try:
                states = self._supervision.processes()
            except BdrError:
                continue  # starting or stopping
            missing = self._expected - {state["name"] for state in states}
            if missing:
                raise UsageError(
                    f"supervisord: found no program {', '.join(sorted(missing))} in "
                    f"{self._supervision.programs_dir}; wanted it to read that directory: name "
                    "another --run-dir"
                )
            for state in states:
                if state["statename"] in _DOWN:
                    raise StageEndedError(str(state["name"]), int(state["exitstatus"]))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        deadline_at = time.monotonic() + APPLIER_STOP_WAIT_S + 3 * STOP_WAIT_S
        # supervisord would stop the stages sequentially, one second each.
        with contextlib.suppress(BdrError):
            self._supervision.stop_all()
        process.terminate()
        while process.poll() is None:
            if time.monotonic() > deadline_at:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def _relay(output: IO[bytes]) -> None:
    """Copies whole lines, so that those of different processes are not mixed.

    Reads on if they cannot be written, or not in time: supervisord would block on a full pipe.
    """
    writer = LineWriter(
        sys.stdout.fileno(), notice=lambda lost: b"bdr: %d lines were not written\n" % lost
    )
    for line in output:
        writer.put(line)
    writer.close(FLUSH_S)
