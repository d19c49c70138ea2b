# SPDX-License-Identifier: GPL-2.0-only
"""`bdr config`: checks and shows the configuration."""

from __future__ import annotations

import os

import click

from bdr.common.host import config
from bdr.common.host.tables import Source
from bdr.services.cli import options as cli_options


@click.group()
def main() -> None:
    """Check or show the configuration."""


@main.command(params=[cli_options.config_path()])
def check(config_path: str) -> None:
    """Checks bdr.toml, and whether the devices in it exist.

    Prints one line for each mistake, and exits with 64 if there is one. Missing devices are only
    reported: they may appear later.
    """
    found = config.load(config_path)
    for name, volume in found.volume.items():
        paths = {"chardev": volume.chardev, "underdev": volume.underdev} if isinstance(
            volume, Source
        ) else {"target": volume.target}  # fmt: skip
        for key, path in paths.items():
            if path and not os.path.exists(path):
                click.echo(f"{config_path}: volume.{name}.{key}: {path} does not exist now")
    roles = [volume.role for volume in found.volume.values()]
    click.echo(
        f"{config_path}: valid: {roles.count('source')} source and {roles.count('target')} "
        "target volumes"
    )


@main.command(params=[cli_options.config_path(), cli_options.volume(is_required=False)])
def show(config_path: str, volume: str | None) -> None:
    """Prints every effective value, including defaults, of VOLUME or of everything."""
    found = config.load(config_path)
    if volume is None:
        click.echo(config.as_toml("host", found.host))
    for name in [cli_options.chosen(found, volume)] if volume else found.volume:
        click.echo(config.as_toml(f"volume.{name}", found.volume[name]))
