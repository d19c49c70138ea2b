# SPDX-License-Identifier: GPL-2.0-only
"""Options shared by several subcommands of `bdr`."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from bdr.common.errors import BdrError, UsageError
from bdr.common.host import config
from bdr.common.host.config import Config

FOREGROUND_VOLUME = "bdr"
"""Default volume name of `bdr client` and `bdr server`."""
FOREGROUND_FILE = "foreground.toml"
"""File in the run directory of `bdr client` and `bdr server`: its options, as a configuration."""


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


def location(*, is_required: bool = False) -> list[click.Parameter]:
    """--config, --run-dir and VOLUME: which volumes to use, by default all.

    Args:
        is_required: one volume.
    """
    return [
        config_path(),
        click.Option(
            ["--run-dir"],
            type=click.Path(file_okay=False),
            help="Instead of bdr.toml: the run directory of a `bdr client` or `bdr server`.",
        ),
        volume(is_required=is_required),
    ]


def load(config_path: str) -> Config:
    """The configuration, for commands that query running processes.

    Raises:
        UsageError: it is missing or wrong; run directories of foreground commands are listed.
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
    """The configuration of a `bdr client` or `bdr server`, from its run directory.

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
    """Names of volumes, for shell completion."""
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
