# SPDX-License-Identifier: GPL-2.0-only
"""`bdr attach` and `bdr detach`: the kernel module's capture of a device."""

from __future__ import annotations

import sys

import click

from bdr.common.errors import BdrError, UsageError
from bdr.common.host.attach import Attachment, LinuxHost, writes_of_bytes
from bdr.common.host.attach import attach as attach_device
from bdr.common.host.attach import detach as detach_device
from bdr.common.host.sizes import parse_size
from bdr.common.host.tables import Source
from bdr.common.ring.layout import SLOT_BYTES
from bdr.services.runtime import options


def _buffer_writes(text: str) -> int:
    try:
        return writes_of_bytes(parse_size(text))
    except ValueError as error:
        raise UsageError(f"buffer {text!r}: wanted bytes, or a number with K, M or G") from error


@options.command(
    [
        click.Argument(["device"]),
        click.Option(["--name"], required=True, help="The new device will be /dev/mapper/NAME."),
        click.Option(
            ["--chardev"],
            show_default="bdr-NAME",
            help="The control device will be /dev/CHARDEV.",
        ),
        click.Option(
            ["--buffer"],
            default="64M",
            show_default=True,
            metavar="SIZE",
            help=f"Size of the ring in bytes, K, M or G; a write takes {SLOT_BYTES} bytes.",
        ),
        *options.of(Source, "attach"),
    ]
)
def attach(
    device: str,
    *,
    name: str,
    chardev: str | None,
    buffer: str,
    region_sectors: int,
    stable: str,
    discard: str,
) -> None:
    """Capture the writes of DEVICE: creates /dev/mapper/NAME over it."""
    wanted = Attachment(
        name=name,
        underlying=device,
        chardev=chardev or f"bdr-{name}",
        capacity=_buffer_writes(buffer),
        region_sectors=region_sectors,
        stable=stable,
        discard=discard,
    )
    attach_device(LinuxHost(), wanted)
    click.echo(
        f"/dev/mapper/{name} is {device} with a buffer of {wanted.capacity} writes; "
        f"its control device is /dev/{wanted.chardev}"
    )


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if the replica lacks writes.")
def detach(name: str, *, force: bool) -> None:
    """Remove /dev/mapper/NAME; the underlying device keeps its data."""
    detach_device(LinuxHost(), name.removeprefix("/dev/mapper/"), force=force)
    click.echo(f"/dev/mapper/{name.removeprefix('/dev/mapper/')} is detached")


@click.group()
def main() -> None:
    """Only these two commands, for `deploy/setup.sh`."""


main.add_command(attach)
main.add_command(detach)

if __name__ == "__main__":
    try:
        main()
    except BdrError as error:
        click.echo(f"bdr: {error}", err=True)
        sys.exit(error.exit_code)
