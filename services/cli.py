# SPDX-License-Identifier: GPL-2.0-only
"""The command `bdr`."""

from __future__ import annotations

import click

from services import applier, reader, sender


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bdr")
def main() -> None:
    """BDR, the Block Device Replicator."""


for _name, _command in (
    ("reader", reader.main),
    ("sender", sender.main),
    ("applier", applier.main),
):
    main.add_command(_command, _name)
