# SPDX-License-Identifier: GPL-2.0-only
"""Options of processes and commands, from the declared keys; start and end of a process."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import click

from bdr.common.errors import BdrError, HostError, UsageError
from bdr.common.host.keys import ConfigError, Key, checked_texts, keys_of
from bdr.common.host.tables import VOLUME, Host
from bdr.services.runtime import log, retry
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.process import SUPERVISORD, end_with_parent, open_standard_streams

_Command = Callable[..., Any]
CRASH_PAUSE_S = 1.0


class KeyOption(click.Option):
    """The option of a declared key; its value stays text until all options are checked."""

    def __init__(self, declared: Key, *, is_required: bool | None = None) -> None:
        kind = declared.kind
        required = declared.is_required if is_required is None else is_required
        default: Any = None
        if kind.is_switch:
            default = declared.default
        elif not declared.is_required and declared.default is not None:
            default = kind.to_text(declared.default)
        super().__init__(
            [*declared.aliases, declared.flag, declared.name],
            required=required,
            default=default,
            show_default=False if required else _shown_default(declared),
            is_flag=kind.is_switch,
            type=click.Path() if kind.is_path else None,
            metavar=None if kind.is_switch else kind.metavar,
            envvar=declared.variable,
            help=f"{declared.help} {kind.hint}".rstrip(),
            shell_complete=None if kind.is_path or not kind.words else _words(kind.words),
        )
        self.key = declared


def of(
    table: type, program: str, *, required: Collection[str] = (), optional: Collection[str] = ()
) -> list[click.Option]:
    """The options of a process or command that are keys of a table.

    Args:
        required: keys that must be given, although they are optional in bdr.toml.
        optional: the reverse.
    """
    return [
        KeyOption(
            each,
            is_required=each.name in required or (each.is_required and each.name not in optional),
        )
        for each in keys_of(table).values()
        if program in each.accepted_by
    ]


def run_dir(*, is_required: bool = True) -> click.Option:
    """--run-dir of a process."""
    return click.Option(
        ["--run-dir"],
        required=is_required,
        type=click.Path(file_okay=False),
        help="Directory of this volume's sockets on this host.",
    )


def verbosity() -> list[click.Option]:
    """--verbose, --debug, --noprint."""
    return [
        click.Option(["--verbose"], is_flag=True, help="Log what happens; the default."),
        click.Option(["--debug"], is_flag=True, help="Log everything."),
        click.Option(["--noprint"], is_flag=True, help="Log warnings and errors only."),
    ]


class WrongOptionsError(click.ClickException):
    """Invalid options, as click prints them and exits."""

    exit_code = UsageError.exit_code

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        for line in self.message.splitlines():
            click.echo(f"bdr: {line}", err=True, file=file)


def command(params: Iterable[click.Parameter]) -> Callable[[_Command], click.Command]:
    """Turns a function into a command with these options, in this order.

    It gets the checked values of declared keys. All mistakes are reported at once.
    """
    params = list(params)
    keys = [param.key for param in params if isinstance(param, KeyOption)]

    def decorate(function: _Command) -> click.Command:
        @functools.wraps(function)
        def checked(**given: Any) -> Any:
            try:
                values = checked_texts(keys, {key.name: _text(key, given) for key in keys})
            except ConfigError as error:
                raise WrongOptionsError(error) from error
            return function(**given | values)

        return click.command(params=list(params))(checked)

    return decorate


def stage(name: str, params: Iterable[click.Parameter]) -> Callable[[_Command], click.Command]:
    """Turns a function into the command of a process; logging is set up first."""

    def decorate(function: _Command) -> click.Command:
        @functools.wraps(function)
        def configured(
            *, log_format: str, verbose: bool, debug: bool, noprint: bool, **rest: Any
        ) -> None:
            open_standard_streams()
            log.use_format(log_format)
            log.configure(
                stage=name, volume=rest["volume"], verbose=verbose, debug=debug, quiet=noprint
            )
            try:
                function(**rest)
            finally:
                log.flush()

        return command([KeyOption(VOLUME), *params, *of(Host, name), *verbosity()])(configured)

    return decorate


def _text(key: Key, given: dict[str, Any]) -> object:
    """The text given for a key; relative paths are made absolute."""
    text = given[key.name]
    if key.kind.is_path and text and text not in key.kind.words:
        return os.path.abspath(text)
    return text


def _shown_default(key: Key) -> str | bool:
    if key.default is None:
        return key.fallback if key.fallback != "none" else False
    return not key.kind.is_switch


def _words(words: tuple[str, ...]) -> Callable[..., list[str]]:
    return lambda _context, _parameter, incomplete: [
        word for word in words if word.startswith(incomplete)
    ]


def tcp(address: str, port: int) -> str:
    """A ZeroMQ address; brackets are added to a bare IPv6 address."""
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"tcp://{host}:{port}"


class Service(Protocol):
    """The main object of a process."""

    loop: Loop

    def run(self) -> None:
        """Runs until its loop is stopped."""
        ...


def run(build: Callable[[], Service], *, stage: str, run_dir: str | None) -> None:
    """Builds a service, runs it until a signal, and turns errors into a log line and exit code.

    After an error of the host the process waits and begins anew, where `retry` allows it. After any
    other error of BDR it exits at once with the error's code. After a bug it exits with code 1, and
    supervisord restarts it; a pause before prevents a busy loop.

    Args:
        run_dir: of the volume, where its monitor is; None: there is none.
    """
    _end_with_supervisord()
    began_at = None
    try:
        service = build()
        service.loop.end_on_signals()
        began_at = time.monotonic()
        service.run()
    except BdrError as error:
        if isinstance(error, HostError) and retry.is_allowed(has_worked=began_at is not None):
            worked_s = None if began_at is None else time.monotonic() - began_at
            retry.wait_and_begin_anew(error, stage=stage, run_dir=run_dir, worked_s=worked_s)
        log.logger().error("stopped", error=type(error).__name__, reason=str(error))
        sys.exit(error.exit_code)
    except Exception:
        log.logger().exception("crashed")
        time.sleep(CRASH_PAUSE_S)
        sys.exit(1)


def _end_with_supervisord() -> None:
    """Makes the kernel send SIGTERM if supervisord dies: its successor starts new processes."""
    if os.environ.get("SUPERVISOR_ENABLED") != "1":
        return
    end_with_parent()
    if os.getppid() != int(os.environ.get(SUPERVISORD, os.getppid())):
        sys.exit(0)  # it has died already
