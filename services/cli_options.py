# SPDX-License-Identifier: GPL-2.0-only
"""Options that several subcommands of `bdr` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from common import config
from common.config import Config
from common.errors import BdrError, UsageError

_Command = Callable[..., Any]


def config_path(command: _Command) -> _Command:
    """--config."""
    return click.option(
        "--config",
        "config_path",
        envvar="BDR_CONFIG",
        default=config.DEFAULT_PATH,
        show_default=True,
        type=click.Path(),
        help="The configuration file; also in $BDR_CONFIG.",
    )(command)


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
