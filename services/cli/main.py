# SPDX-License-Identifier: GPL-2.0-only
"""The command `bdr`: its subcommands, by what they are for.

A subcommand's module is imported when it is called, so that `bdr status` does not
wait for what only `bdr top` needs.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from bdr.common.errors import BdrError

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "One side in the foreground": {
        "client": ("cli.foreground:client", "Run a source from nothing but options."),
        "server": ("cli.foreground:server", "Run a target from nothing but options."),
    },
    "Capturing a device with the kernel module": {
        "attach": ("cli.attach:attach", "Capture the writes of a device."),
        "detach": ("cli.attach:detach", "Stop capturing it."),
        "attach-all": ("cli.attach_all:attach_all", "Attach what bdr.toml names."),
        "detach-all": ("cli.attach_all:detach_all", "Detach what bdr.toml names."),
    },
    "This host, from bdr.toml": {
        "config": ("cli.config:main", "Check or show the configuration."),
        "run": ("cli.run:run", "Run everything under supervisord; for systemd."),
        "reload": ("cli.run:reload", "Apply a changed bdr.toml to what runs."),
        "scale": ("cli.run:scale", "Add or remove processes of a stage."),
        "ctl": ("cli.run:ctl", "supervisorctl of this host's supervisord."),
    },
    "On the target": {
        "promote": ("cli.promote:promote", "Make a replica a device to use."),
        "demote": ("cli.promote:demote", "Make it a replica again."),
    },
    "Looking": {
        "status": ("cli.status:main", "Is each volume well? Usable as a check."),
        "wait": ("cli.wait:main", "Wait until the replica has everything."),
        "top": ("cli.top:main", "A live view."),
        "verify": ("cli.scan:verify", "Is the replica equal? By checksums, in use."),
        "resync": ("cli.scan:resync", "Have the replica made equal, and wait."),
        "doctor": ("cli.doctor:main", "What this host lacks, and what mends it."),
        "journal": ("cli.journal:main", "What a journal holds."),
    },
    "Processes that supervisord runs": {
        "reader": ("reader:main", "Drains the ring, alone decides order."),
        "sender": ("sender:main", "Ships batches to the target."),
        "scanner": ("scanner:main", "Compares with the replica, and repairs it."),
        "applier": ("applier:main", "Keeps the target device equal to its source."),
        "monitor": ("monitor:main", "Gathers reports, judges the health."),
    },
    "Other": {
        "completion": ("cli.completion:main", "Print a shell's completion script."),
    },
}
"""Section, to name, to where in `services` the command is, and what it does in a line."""

_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class _Bdr(click.Group):
    """Imports subcommands when needed, and turns BDR's errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(f"bdr.services.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BdrError as error:
            for line in str(error).splitlines():
                click.echo(f"bdr: {line}", err=True)
            sys.exit(error.exit_code)


@click.group(
    cls=_Bdr,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command explains itself: bdr COMMAND --help",
)
@click.version_option(package_name="bdr")
def main() -> None:
    """BDR, the Block Device Replicator: a block device and its replica on another host.

    A host that follows one device for a while needs `bdr server` there and `bdr
    client` here. A host that does so for good has a bdr.toml, and the service bdr.
    """
