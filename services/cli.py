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

from common.errors import BdrError

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "One side in the foreground": {
        "client": ("services.cli_side:client", "Run a source from nothing but options."),
        "server": ("services.cli_side:server", "Run a target from nothing but options."),
    },
    "Capturing a device with the kernel module": {
        "attach": ("services.cli_attach:attach", "Capture the writes of a device."),
        "detach": ("services.cli_attach:detach", "Stop capturing it."),
        "attach-all": ("services.cli_attach_all:attach_all", "Attach what bdr.toml names."),
        "detach-all": ("services.cli_attach_all:detach_all", "Detach what bdr.toml names."),
    },
    "This host, from bdr.toml": {
        "config": ("services.cli_config:main", "Check or show the configuration."),
        "run": ("services.cli_run:run", "Run everything under supervisord; for systemd."),
        "reload": ("services.cli_run:reload", "Apply a changed bdr.toml to what runs."),
        "scale": ("services.cli_run:scale", "Add or remove processes of a stage."),
        "ctl": ("services.cli_run:ctl", "supervisorctl of this host's supervisord."),
    },
    "On the target": {
        "promote": ("services.cli_promote:promote", "Make a replica a device to use."),
        "demote": ("services.cli_promote:demote", "Make it a replica again."),
    },
    "Looking": {
        "status": ("services.cli_status:main", "Is each volume well? Usable as a check."),
        "wait": ("services.cli_wait:main", "Wait until the replica has everything."),
        "top": ("services.cli_top:main", "A live view."),
        "verify": ("services.cli_scan:verify", "Is the replica equal? By checksums, in use."),
        "resync": ("services.cli_scan:resync", "Have the replica made equal, and wait."),
        "doctor": ("services.cli_doctor:main", "What this host lacks, and what mends it."),
        "journal": ("services.journal_tool:main", "What a journal holds."),
    },
    "Processes that supervisord runs": {
        "reader": ("services.reader:main", "Drains the ring, alone decides order."),
        "sender": ("services.sender:main", "Ships batches to the target."),
        "scanner": ("services.scanner:main", "Compares with the replica, and repairs it."),
        "applier": ("services.applier:main", "Keeps the target device equal to its source."),
        "monitor": ("services.monitor:main", "Gathers reports, judges the health."),
    },
    "Other": {
        "completion": ("services.cli_completion:main", "Print a shell's completion script."),
    },
}
"""Section, to name, to where the command is and what it does in a line."""

_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class _Bdr(click.Group):
    """Imports subcommands when needed, and turns BDR's errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
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
