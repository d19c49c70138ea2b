# SPDX-License-Identifier: GPL-2.0-only
"""Options that several processes share, and how a process begins and ends."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import click

from bdr.common.errors import BdrError, UsageError
from bdr.common.wire.control import NAME_BYTES_MAX
from bdr.services.runtime import log
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.process import end_with_parent

_Command = Callable[..., Any]
_PARAMETERS = "__click_params__"
CRASH_PAUSE_S = 1.0


def _check_volume(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value or len(value.encode()) > NAME_BYTES_MAX or not value.replace("-", "a").isalnum():
        raise click.BadParameter(
            f"found {value!r}; wanted 1 to {NAME_BYTES_MAX} letters, digits and dashes"
        )
    return value


def volume(command: _Command) -> _Command:
    """--volume."""
    return click.option(
        "--volume",
        required=True,
        callback=_check_volume,
        help="Name of the volume; source and target must use the same one.",
    )(command)


def run_dir(command: _Command) -> _Command:
    """--run-dir."""
    return click.option(
        "--run-dir",
        required=True,
        type=click.Path(file_okay=False),
        help="Directory of this volume's sockets on this host.",
    )(command)


def chardev(command: _Command) -> _Command:
    """--chardev."""
    return click.option(
        "--chardev",
        required=True,
        type=click.Path(),
        help="Control device of the `bdr` target, or ring= socket of the nbdkit plugin.",
    )(command)


def target_address(command: _Command) -> _Command:
    """--address and --port, of the target."""
    command = click.option(
        "--port",
        default=8437,
        show_default=True,
        type=click.IntRange(1, 65534),
        help="The target's port for batches; the one above it is for control.",
    )(command)
    return click.option("--address", required=True, help="The target host's name or address.")(
        command
    )


def source_stage(name: str) -> Callable[[_Command], _Command]:
    """Options of every process on a source: `stage`, --chardev, --address, --port, --run-dir."""

    def decorate(command: _Command) -> _Command:
        return stage(name)(chardev(target_address(run_dir(command))))

    return decorate


def stage(name: str) -> Callable[[_Command], _Command]:
    """--volume, and --verbose, --debug and --noprint, which set up the log before anything."""

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command, updated=())
        def configured(
            *, volume: str, verbose: bool, debug: bool, noprint: bool, **rest: object
        ) -> None:
            log.configure(stage=name, volume=volume, verbose=verbose, debug=debug, quiet=noprint)
            command(volume=volume, **rest)

        # What a decorator adds stands above what is there: those of the log come last.
        vars(verbosity(configured))[_PARAMETERS] += vars(command).get(_PARAMETERS, [])
        return volume(configured)

    return decorate


def assume_clean(command: _Command) -> _Command:
    """--noreplication, and its other names."""
    return click.option(
        "--noreplication",
        "--no-replication",
        "--assume-clean",
        "assume_clean",
        is_flag=True,
        help="Source and target are equal already: no scan at first contact.",
    )(command)


def verbosity(command: _Command) -> _Command:
    """--verbose, --debug, --noprint; and --log-format, which takes effect at once."""
    command = click.option(
        "--log-format",
        envvar="BDR_LOG_FORMAT",
        type=click.Choice([form.value for form in log.Format]),
        default=log.Format.TEXT.value,
        show_default=True,
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _parameter, value: log.use_format(value),
        help="Form of a log line.",
    )(command)
    command = click.option("--noprint", is_flag=True, help="Log warnings and errors only.")(command)
    command = click.option("--debug", is_flag=True, help="Log everything.")(command)
    return click.option("--verbose", is_flag=True, help="Log what happens; the default.")(command)


def tcp(address: str, port: int) -> str:
    """A ZeroMQ address; a bare IPv6 address gets its brackets."""
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"tcp://{host}:{port}"


class Service(Protocol):
    """What a process runs."""

    loop: Loop

    def run(self) -> None:
        """Runs until its loop is stopped."""
        ...


def run(build: Callable[[], Service]) -> None:
    """Builds a service, runs it until a signal, turns errors into a log line and exit code.

    What BDR raises on purpose ends the process at once with the error's code. A bug
    ends it with code 1, which supervisord restarts; the pause keeps that from
    becoming a busy loop.
    """
    _end_with_supervisord()
    try:
        service = build()
        service.loop.end_on_signals()
        service.run()
    except BdrError as error:
        log.logger().error("stopped", error=type(error).__name__, reason=str(error))
        sys.exit(error.exit_code)
    except Exception:
        log.logger().exception("crashed")
        time.sleep(CRASH_PAUSE_S)
        sys.exit(1)


def _end_with_supervisord() -> None:
    """Has the kernel send SIGTERM if supervisord dies: the one of after starts its own."""
    if os.environ.get("SUPERVISOR_ENABLED") != "1":
        return
    end_with_parent()
    if os.getppid() == 1:  # it was faster
        sys.exit(0)


def positive(name: str, value: int) -> int:
    """Returns `value`, or raises UsageError."""
    if value <= 0:
        raise UsageError(f"{name}: found {value}, wanted more than 0")
    return value
