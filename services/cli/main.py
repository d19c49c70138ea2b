# SPDX-License-Identifier: GPL-2.0-only
"""The command `bdr`: its subcommands, by purpose.

A subcommand's module is imported when it is called, so that `bdr status` does not import what only
`bdr top` needs.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

import click

from bdr.common.errors import BdrError
from bdr.services.runtime.process import open_standard_streams, takes_output

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "One side in the foreground": {
        "client": ("cli.foreground:client", "Run a source, configured by options only."),
        "server": ("cli.foreground:server", "Run a target, configured by options only."),
    },
    "Capturing a device with the kernel module": {
        "attach": ("cli.attach:attach", "Capture the writes of a device."),
        "detach": ("cli.attach:detach", "Stop capturing it."),
        "attach-all": ("cli.attach_all:attach_all", "Attach the devices in bdr.toml."),
        "detach-all": ("cli.attach_all:detach_all", "Detach the devices in bdr.toml."),
    },
    "This host, from bdr.toml": {
        "config": ("cli.config:main", "Check or show the configuration."),
        "run": ("cli.run:run", "Run everything under supervisord; for systemd."),
        "reload": ("cli.run:reload", "Apply a changed bdr.toml to the running processes."),
        "scale": ("cli.run:scale", "Add or remove processes of a stage."),
        "ctl": ("cli.run:ctl", "supervisorctl of this host's supervisord."),
    },
    "On the target": {
        "promote": ("cli.promote:promote", "Make a replica a device to use."),
        "demote": ("cli.promote:demote", "Make it a replica again."),
        "adopt": ("cli.adopt:main", "Let a source overwrite what its target holds."),
    },
    "Inspection": {
        "status": ("cli.status:main", "Health of each volume; usable as a check."),
        "wait": ("cli.wait:main", "Wait until every write is durable on the replica."),
        "top": ("cli.top:main", "A live view."),
        "verify": ("cli.scan:verify", "Compare a volume with its replica, while in use."),
        "resync": ("cli.scan:resync", "Repair the replica, and wait for it."),
        "doctor": ("cli.doctor:main", "Missing prerequisites of this host, and fixes."),
        "journal": ("cli.journal:main", "Content and integrity of a journal."),
    },
    "Processes that supervisord runs": {
        "reader": ("reader:main", "Drains the ring, and determines the order."),
        "sender": ("sender:main", "Sends batches to the target."),
        "scanner": ("scanner:main", "Compares source and replica, and repairs it."),
        "applier": ("applier:main", "Keeps the target device equal to its source."),
        "monitor": ("monitor:main", "Collects reports, and judges the health."),
    },
    "Other": {
        "completion": ("cli.completion:main", "Print a shell's completion script."),
    },
}
"""Section to name, to (module and attribute in `services`, one-line description)."""

_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

_STDERR = 2


class _Bdr(click.Group):
    """Imports subcommands on demand, and prints BDR's errors as messages."""

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
        open_standard_streams()
        try:
            return super().invoke(ctx)
        except BdrError as error:
            # An output that is not read must not keep the command from its end.
            if takes_output(_STDERR):
                with contextlib.suppress(OSError):
                    for line in str(error).splitlines():
                        click.echo(f"bdr: {line}", err=True)
            sys.exit(error.exit_code)


@click.group(
    cls=_Bdr,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Help on a command: bdr COMMAND --help",
)
@click.version_option(package_name="bdr")
def main() -> None:
    """BDR, the Block Device Replicator: a block device and its replica on another host.

    To replicate one device temporarily, run `bdr server` on the target and `bdr client` on the
    source. For permanent operation, write a bdr.toml and enable the service bdr.
    """
