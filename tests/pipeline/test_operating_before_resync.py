# SPDX-License-Identifier: GPL-2.0-only
"""`before_resync` sees the replica as it was, and nothing is written to it before it has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, Hosts, MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture


def snapshots(directory: Path) -> list[Mapping[str, str]]:
    """The facts of each run that has begun."""
    found = sorted(directory.glob("*.env"), key=lambda path: path.stat().st_mtime_ns)
    return [dict(line.split("=", 1) for line in path.read_text().splitlines()) for path in found]


@pytest.fixture
def prepared(make_hosts: MakeHosts, directory: Path) -> tuple[Hosts, Path]:
    """A consistent pair whose hook copies the replica, and ends when a file `go` exists."""
    where = directory / "snapshots"
    where.mkdir()
    script = directory / "hook"
    script.write_text(
        f"#!/bin/sh -e\ncd {where}\n"
        'cp "$BDR_TARGET" $$.copy; env > $$.new; mv $$.new $$.env\n'
        "until [ -e go ]; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    hosts = make_hosts(target={"before_resync": [str(script)], "before_resync_seconds": 300.0})
    hosts.start()
    for block in range(100):
        hosts.volume.client.write(4096 * block, bytes([block + 1]) * 4096)
    hosts.volume.settle()
    return hosts, where


def test_replica_is_kept_as_it_was_until_the_hook_has_ended_and_the_hook_runs_again(
    prepared: tuple[Hosts, Path],
) -> None:
    hosts, where = prepared
    volume, target = hosts.volume, hosts.target
    good = volume.source.read_bytes()
    # A full compare: a difference is repaired, for which the replica becomes inconsistent.
    with volume.source.open("r+b") as file:
        file.seek(8 << 20)
        file.write(b"behind the capture's back")
    now = volume.source.read_bytes()
    hosts.source.supervisorctl("stop", "v1-scanner:*")
    assert hosts.source.bdr("resync", "v1", "--full").returncode == 2  # no scanner runs
    hosts.source.supervisorctl("start", "v1-scanner:*")

    def runs(count: int) -> None:
        wait_for(
            lambda: len(snapshots(where)) == count,
            what=f"run {count} of the hook",
            timeout_s=DEADLINE_S,
        )

    runs(1)
    (facts,) = snapshots(where)
    assert (facts["BDR_CONDITION"], facts["BDR_SLOT"]) == ("CONSISTENT", "100")
    target.wait_health("v1", "resyncing")
    assert target.status("v1")["replica"]["condition"] == "CONSISTENT"
    assert target.status("v1")["replica"]["held_age_seconds"] is not None

    os.kill(target.pids()["v1-applier"], signal.SIGKILL)
    runs(2)
    assert volume.target.read_bytes() == good
    (where / "go").touch()
    hosts.source.wait_health("v1", "healthy")
    assert volume.target.read_bytes() == now
    assert {path.read_bytes() == good for path in where.glob("*.copy")} == {True}
    assert "outcome=good" in target.log("v1-applier")
