# SPDX-License-Identifier: GPL-2.0-only
"""Options that several subcommands of `bdr` share."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from bdr.common.errors import BdrError, UsageError
from bdr.common.host import config
from bdr.common.host.config import Config

FOREGROUND_VOLUME = "bdr"
"""Name of the volume of a `bdr client` or `bdr server` that is not told one."""
FOREGROUND_FILE = "foreground.toml"
"""In the run directory of a `bdr client` or `bdr server`: its options, as a configuration."""


def config_path() -> click.Option:
    """--config."""
    return click.Option(
        ["--config", "config_path"],
        envvar="BDR_CONFIG",
        default=config.DEFAULT_PATH,
        show_default=True,
        type=click.Path(),
        help="The configuration file; also in $BDR_CONFIG.",
    )


def volume(*, is_required: bool = True) -> click.Argument:
    """VOLUME."""
    return click.Argument(["volume"], required=is_required, shell_complete=complete_volume)


def location() -> list[click.Parameter]:
    """--config, --run-dir and VOLUME: those that are meant, or all."""
    return [
        config_path(),
        click.Option(
            ["--run-dir"],
            type=click.Path(file_okay=False),
            help="Instead of bdr.toml: the run directory of a `bdr client` or `bdr server`.",
        ),
        volume(is_required=False),
    ]


def load(config_path: str) -> Config:
    """The configuration of a command that asks what runs.

    Raises:
        UsageError: it is missing or wrong; sides in the foreground are pointed out.
    """
    try:
        return config.load(config_path)
    except BdrError as error:
        sides = sorted(Path("/run").glob(f"*/{FOREGROUND_FILE}"))
        if os.path.exists(config_path) or not sides:
            raise
        raise UsageError(
            f"{error}\na `bdr client` or `bdr server` runs here: add --run-dir "
            + " or --run-dir ".join(str(path.parent) for path in sides)
        ) from error


def foreground_config(run_dir: str) -> Config:
    """What a `bdr client` or `bdr server` was told, from its run directory.

    Raises:
        UsageError: none runs there.
    """
    path = Path(run_dir) / FOREGROUND_FILE
    if not path.exists():
        raise UsageError(
            f"run directory {run_dir}: found no {FOREGROUND_FILE} there; wanted the directory "
            "of a running `bdr client` or `bdr server`"
        )
    return config.load(path)


def complete_volume(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of volumes, for the shell."""
    try:
        found = config.load(ctx.params.get("config_path") or config.DEFAULT_PATH)
    except BdrError:
        return []
    return [CompletionItem(name) for name in found.volume if name.startswith(incomplete)]


def chosen(found: Config, volume: str) -> str:
    """A volume by its name.

    Raises:
        UsageError: the configuration has none of that name.
    """
    if volume not in found.volume:
        known = ", ".join(found.volume) or "no volume at all"
        raise UsageError(f"volume {volume!r}: not in the configuration, which has {known}")
    return volume
