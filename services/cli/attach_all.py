# SPDX-License-Identifier: GPL-2.0-only
"""`bdr attach-all` and `detach-all`: the kernel module's captures in bdr.toml.

The systemd unit calls them before file systems are mounted and after they are unmounted. Volumes
that are attached or detached already are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from bdr.common.errors import BdrError
from bdr.common.host import config
from bdr.common.host.attach import Attachment, Host, LinuxHost, attach, attached, detach
from bdr.common.host.tables import Source
from bdr.services.cli import options as cli_options


@click.command(params=[cli_options.config_path()])
def attach_all(config_path: str) -> None:
    """Attaches every source of bdr.toml that has a `mapper`.

    If one cannot be attached, the others still are; the exit code is then that of the last failure.
    """
    _each(config_path, _attach)


@click.command(params=[cli_options.config_path()])
@click.option("--force", is_flag=True, help="Even if the replica lacks writes.")
def detach_all(config_path: str, force: bool) -> None:
    """Detaches every source of bdr.toml that has a `mapper`; unmount first."""
    _each(config_path, lambda host, volume: _detach(host, volume, force=force))


def _each(config_path: str, act: Callable[[Host, Source], str]) -> None:
    host, code = LinuxHost(), 0
    for name, volume in config.load(config_path).volume.items():
        if not isinstance(volume, Source) or volume.mapper is None:
            continue
        try:
            click.echo(f"{name}: {act(host, volume)}")
        except BdrError as error:
            click.echo(f"bdr: {name}: {error}", err=True)
            code = error.exit_code
    sys.exit(code)


def _attach(host: Host, volume: Source) -> str:
    assert volume.mapper is not None
    assert volume.underdev is not None
    if volume.mapper in _names(host):
        return f"/dev/mapper/{volume.mapper} is attached already"
    wanted = Attachment(
        name=volume.mapper,
        underlying=volume.underdev,
        chardev=volume.chardev.removeprefix("/dev/"),
        capacity=volume.buffer_writes,
        region_sectors=volume.region_sectors,
        stable=volume.stable,
        discard=volume.discard,
    )
    attach(host, wanted)
    return f"/dev/mapper/{volume.mapper} is {volume.underdev}"


def _detach(host: Host, volume: Source, *, force: bool) -> str:
    assert volume.mapper is not None
    if volume.mapper not in _names(host):
        return f"/dev/mapper/{volume.mapper} is not attached"
    detach(host, volume.mapper, force=force)
    return f"/dev/mapper/{volume.mapper} is detached"


def _names(host: Host) -> list[str]:
    return [name for name, *_ in attached(host)]
