# SPDX-License-Identifier: GPL-2.0-only
"""`bdr completion`: a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def main(shell: str) -> None:
    """Prints the completion script of SHELL.

    \b
    bash:  bdr completion bash > /etc/bash_completion.d/bdr
    zsh:   bdr completion zsh > "${fpath[1]}/_bdr"
    fish:  bdr completion fish > ~/.config/fish/completions/bdr.fish
    """
    from bdr.services.cli.main import main as bdr  # noqa: PLC0415

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(bdr, {}, "bdr", "_BDR_COMPLETE").source())
