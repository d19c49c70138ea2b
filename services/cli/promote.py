# SPDX-License-Identifier: GPL-2.0-only
"""`bdr promote` and `bdr demote`: a replica becomes a usable device, and a replica again.

The state file remembers it: no applier touches a promoted device, whatever starts it,
and whatever its source sends. One that runs listens, so that its old source learns why it
is refused.
"""

from __future__ import annotations

import time
from dataclasses import replace

import click

from bdr.common.errors import StateError
from bdr.common.storage.record_file import utc
from bdr.common.target.record import NO_STREAM, demoted
from bdr.common.wire.condition import Condition
from bdr.services.cli import options as cli_options
from bdr.services.cli.replica import (
    complete,
    give_up_journal,
    newest,
    opened,
    target_of,
    without_applier,
)


@click.command(params=cli_options.location(is_required=True))
@click.option("--force", is_flag=True, help="Even if the replica is not consistent.")
def promote(config_path: str, run_dir: str | None, force: bool, volume: str) -> None:
    """Makes the replica of VOLUME a usable device, on the target.

    Stops its applier, and brings everything that was acknowledged to the device. From then
    on an applier only refuses the source, and leaves the device alone. Then fsck and mount it.
    """
    found, target = target_of(config_path, run_dir, volume)
    state = found.state_of(volume, target)
    with without_applier(found, volume):
        record = complete(volume, target, state=state)
        if record.condition is not Condition.CONSISTENT and not force:
            raise StateError(
                f"volume {volume}: found a replica that is {record.condition.words}; wanted a "
                "consistent one: let its source finish, or take it as it is with --force"
            )
        with opened(volume, target, state=state) as (file, remembered):
            file.save(replace(remembered, promoted_utc=int(time.time())))
    click.echo(
        f"{volume}: promoted: {target.target} can be used; {record.condition.words}, "
        f"at slot {record.slot}" + (f", as of {utc(record.as_of_utc)}" if record.as_of_utc else "")
    )


@click.command(params=cli_options.location(is_required=True))
@click.option(
    "--give-up",
    is_flag=True,
    help="Also a replica that was not promoted: what only it has is given up.",
)
def demote(config_path: str, run_dir: str | None, give_up: bool, volume: str) -> None:
    """Makes the device of VOLUME a replica again, on the target.

    Writes to the device since its promotion, and the content of its journal, are discarded: when
    its applier runs again, everything is compared, and differences are repaired from the source.
    For a disk that was replaced see `bdr adopt`.
    """
    found, target = target_of(config_path, run_dir, volume)
    state = found.state_of(volume, target)
    with (
        without_applier(found, volume) as ran,
        opened(volume, target, state=state, allow_foreign=True) as (file, was),
    ):
        # The state file has what was known when the journal was opened, which may be nothing.
        known = newest(target, state=file.path, was=was)
        if not (give_up or was.promoted_utc or (known and known.stream == NO_STREAM)):
            place = f"{known.condition.words}, at slot {known.slot}" if known else "place unknown"
            raise StateError(
                f"volume {volume}: found a replica that was not promoted, {place}; what only it "
                "has would be given up, acknowledged writes too: --give-up does so"
            )
        give_up_journal(target, state=file.path, was=was)
        file.save(demoted(known or was, now_utc=int(time.time())))
    started = "" if ran else f"; now: bdr ctl start {volume}-applier"
    click.echo(f"{volume}: a replica again{started}")
