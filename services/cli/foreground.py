# SPDX-License-Identifier: GPL-2.0-only
"""`bdr client` and `bdr server`: one side of one volume, in the foreground.

A supervisord of its own runs the processes from a private run directory, which is
removed at the end. Logs come to standard output. If a process ends for a reason
that does not pass, the whole side ends with that process's exit code.
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
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import BdrError, DeviceError, UsageError
from bdr.common.host import config
from bdr.common.host.config import Config, Source, Target
from bdr.common.host.programs import APPLIER_STOP_WAIT_S, STOP_WAIT_S, from_config
from bdr.services.cli import options as cli_options
from bdr.services.runtime import log, options
from bdr.services.runtime.process import end_with_parent
from bdr.services.supervise.files import make_directory
from bdr.services.supervise.supervisord import Supervision

POLL_S = 0.5
_DOWN = ("EXITED", "FATAL", "UNKNOWN")

_Command = Callable[..., Any]


class StageEndedError(BdrError):
    """A process ended for a reason that does not pass."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(
            f"{name} ended for good with exit code {code}; its last lines above say why"
        )
        self.exit_code = code or 1


def _shared(command: _Command) -> _Command:
    options = [
        click.option(
            "--volume",
            default="bdr",
            show_default=True,
            help="Name of the volume; source and target must use the same one.",
        ),
        click.option(
            "--rpo-seconds",
            type=float,
            default=60.0,
            show_default=True,
            help="The replica may be so far behind before it counts as behind.",
        ),
        click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Its host."),
        click.option("--metrics-port", type=int, help="Serve Prometheus' /metrics here."),
        click.option("--on-event", help="Command to run on events, quoted as for a shell."),
        click.option(
            "--run-dir",
            type=click.Path(file_okay=False),
            help="Run directory, for `bdr status --run-dir` and the like; a private one by "
            "default. Removed at the end.",
        ),
        click.option(
            "--log-format",
            type=click.Choice([form.value for form in log.Format]),
            default="text",
            show_default=True,
            help="Form of a log line.",
        ),
        click.option("--verbose", is_flag=True, help="Log what happens; the default."),
        click.option("--debug", is_flag=True, help="Log everything."),
        click.option("--noprint", is_flag=True, help="Log warnings and errors only."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--address", required=True, help="The target host's name or address.")
@click.option(
    "--port",
    type=int,
    default=config.DEFAULT_PORT,
    show_default=True,
    help="The target's port for batches; the one above it is for control.",
)
@click.option(
    "--chardev",
    required=True,
    help="Control device of the `bdr` target, or ring= socket of the nbdkit plugin.",
)
@click.option("--underdev", help="The device below; checked against what the capture says.")
@click.option("--senders", type=int, default=1, show_default=True, help="Connections in parallel.")
@options.assume_clean
@_shared
def client(
    address: str,
    port: int,
    chardev: str,
    underdev: str | None,
    senders: int,
    assume_clean: bool,
    **shared: Any,
) -> None:
    """Run a source: ship the writes of a captured device to a target.

    \b
    bdr client --address backup.example.com --port 8437 \\
        --chardev /dev/bdr-db --underdev /dev/vg0/db

    Runs in the foreground until Ctrl-C or SIGTERM. The target comes first: see
    `bdr server --help`.
    """
    tree = {
        "role": "source",
        "address": address,
        "port": port,
        "chardev": os.path.abspath(chardev),
        "underdev": os.path.abspath(underdev) if underdev else None,
        "senders": senders,
        "assume_clean": assume_clean,
    }
    found = _config(tree, shared, state_dir=None)
    _check_source(found)
    _run(found, shared["run_dir"])


@click.command()
@click.option("--address", default="*", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=int,
    default=config.DEFAULT_PORT,
    show_default=True,
    help="Port for batches; the one above it is for control.",
)
@click.option("--target", required=True, help="The backup device, or a file of its size.")
@click.option("--journal", help='The journal\'s file or device, or "none". Default: a file '
              "beside the state.")  # fmt: skip
@click.option("--journal-size", help="Its size, such as 1GiB.")
@click.option(
    "--state", help="File that remembers the replica's place. Default: STATE_DIR/VOLUME.state."
)
@click.option(
    "--state-dir",
    default="/var/lib/bdr",
    show_default=True,
    help="Where state and journal are by default; outlives this command.",
)
@_shared
def server(
    address: str,
    port: int,
    target: str,
    journal: str | None,
    journal_size: str | None,
    state: str | None,
    state_dir: str,
    **shared: Any,
) -> None:
    """Run a target: keep a device equal to its source.

    \b
    bdr server --address 0.0.0.0 --port 8437 --target /dev/vg0/db-replica

    Runs in the foreground until Ctrl-C or SIGTERM. Its state and journal stay: a
    source that comes back goes on where it was.
    """
    tree = {
        "role": "target",
        "address": address,
        "port": port,
        "target": os.path.abspath(target),
        "journal": os.path.abspath(journal) if journal not in (None, config.NO_JOURNAL) else
        journal,
        "journal_size": journal_size,
        "state": os.path.abspath(state) if state else None,
    }  # fmt: skip
    found = _config(tree, shared, state_dir=os.path.abspath(state_dir))
    (volume,) = found.volume.values()
    assert isinstance(volume, Target)
    if volume.state is None:
        make_directory(Path(found.host.state_dir), mode=0o700)
    _run(found, shared["run_dir"])


def _config(tree: dict[str, Any], shared: dict[str, Any], *, state_dir: str | None) -> Config:
    level = "debug" if shared["debug"] else "warning" if shared["noprint"] else "info"
    tree |= {key: shared[key] for key in ("rpo_seconds", "metrics_address", "metrics_port")}
    try:
        tree["on_event"] = shlex.split(shared["on_event"]) if shared["on_event"] else None
    except ValueError as error:
        raise UsageError(
            f"--on-event: found {shared['on_event']!r}: {str(error).lower()}; wanted a command, "
            "quoted as for a shell"
        ) from error
    host: dict[str, Any] = {"log_format": shared["log_format"], "log_level": level}
    host["run_dir"] = os.path.abspath(shared["run_dir"]) if shared["run_dir"] else _private_dir()
    if state_dir is not None:
        host["state_dir"] = state_dir
    return config.check_volume(
        shared["volume"], {key: value for key, value in tree.items() if value is not None}, host
    )


def _private_dir() -> str:
    parent = next((path for path in ("/run", "/tmp") if os.access(path, os.W_OK)), None)
    return tempfile.mktemp(prefix="bdr-", dir=parent)  # made below, with mode 0700


def _check_source(found: Config) -> None:
    """Says at once what the processes would find later."""
    (volume,) = found.volume.values()
    assert isinstance(volume, Source)
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
            f"bdr: --address: {volume.address}: {error.strerror}; wanted a host's name or address: "
            "trying on, in case it is known later",
            err=True,
        )


def _is_same(one: str, other: str) -> bool:
    try:
        first, second = os.stat(one), os.stat(other)
    except OSError as error:
        raise DeviceError(
            f"underdev {error.filename}: {error.strerror}; wanted the device below the capture"
        ) from error
    if first.st_rdev or second.st_rdev:
        return first.st_rdev == second.st_rdev
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _run(found: Config, run_dir: str | None) -> None:
    """Runs the side until a signal, or until a process ends for good."""
    supervision = Supervision(found.host.run_dir)
    if (supervision.run_dir / cli_options.SIDE_FILE).exists() and not supervision.is_running():
        # A side that was killed could not take it away.
        shutil.rmtree(supervision.run_dir, ignore_errors=True)
    try:
        os.makedirs(supervision.run_dir, mode=0o700)
    except OSError as error:
        raise config.ConfigError(
            [
                f"run directory {supervision.run_dir}: {error.strerror}; wanted one that does not "
                "exist yet, and that this user can make"
            ]
        ) from error
    try:
        log_dir = str(supervision.run_dir / "log")
        supervision.prepare(log_dir=log_dir)
        programs = from_config(
            found, python=sys.executable, programs_dir=str(supervision.programs_dir), counts={}
        )
        supervision.write(programs, log_dir=None)
        _write_side(found, supervision.run_dir)
        if found.host.log_level != "warning":
            shown = shlex.join(["bdr", "status", "--run-dir", str(supervision.run_dir)])
            click.echo(f"bdr: running in the foreground; in another terminal: {shown}", err=True)
        _Foreground(supervision).run()
    finally:
        shutil.rmtree(supervision.run_dir, ignore_errors=True)


def _write_side(found: Config, run_dir: Path) -> None:
    """Leaves what this side is for commands that get `--run-dir`."""
    tables = [config.as_toml("host", found.host)]
    tables += [config.as_toml(f"volume.{name}", volume) for name, volume in found.volume.items()]
    (run_dir / cli_options.SIDE_FILE).write_text("\n".join(tables))


class _Foreground:
    """supervisord as a child, its output, and its end."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
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
            # A Ctrl-C comes here first; supervisord is then ended in order.
            start_new_session=True,
            # Nothing is left running, even if this process is killed.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while not self._stop.wait(POLL_S):
            if process.poll() is not None:
                raise StageEndedError("supervisord", process.returncode)
            try:
                states = self._supervision.processes()
            except BdrError:
                continue  # not up yet, or on its way down
            for state in states:
                if state["statename"] in _DOWN:
                    raise StageEndedError(str(state["name"]), int(state["exitstatus"]))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # supervisord would stop one stage after the other, a second for each.
        with contextlib.suppress(BdrError):
            self._supervision.stop_all()
        process.terminate()
        deadline_s = time.monotonic() + APPLIER_STOP_WAIT_S + 3 * STOP_WAIT_S
        while process.poll() is None:
            if time.monotonic() > deadline_s:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def _relay(output: IO[bytes]) -> None:
    """Copies whole lines, so that those of different processes do not mix.

    Goes on where they can go nowhere: supervisord would stand still with its pipe full.
    """
    for line in output:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), line)
