# SPDX-License-Identifier: GPL-2.0-only
"""A replica becomes a device to use, and is nobody else's until it is a replica again."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from bdr.common.storage.record_file import RecordFile
from bdr.common.target.record import NO_JOURNAL
from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, Hosts, MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture


def scribble(hosts: Hosts, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        hosts.volume.client.write(rng.randrange(1000) * 4096, rng.randbytes(4096))


def names_a_journal(state: Path, size: int) -> bool:
    file = RecordFile(str(state))
    try:
        return file.load(volume="v1", device_sectors=size // 512).journal != NO_JOURNAL
    finally:
        file.close()


def applier_is(hosts: Hosts, word: str) -> bool:
    return any(
        state["name"] == "v1-applier" and state["statename"] == word
        for state in hosts.target.supervision.processes()
    )


@pytest.mark.parametrize("journal", ["file", "none"])
def test_promoted_replica_is_complete_and_stays_as_it_is_until_it_is_demoted(
    make_hosts: MakeHosts, journal: str
) -> None:
    hosts = make_hosts(target={} if journal == "file" else {"journal": "none"})
    hosts.start()
    target, volume = hosts.target, hosts.volume
    scribble(hosts, 1)
    volume.settle()
    done = target.bdr("promote", "v1")
    assert done.returncode == 0, done.stderr
    assert f"{volume.target} can be used; consistent, at slot 100, as of " in done.stdout
    assert volume.is_identical()

    # Somebody uses it, the source lives on, and everything is started again.
    with volume.target.open("r+b") as file:
        file.write(b"mine" * 1024)
    used = volume.target.read_bytes()
    scribble(hosts, 2)
    target.stop()
    target.start()
    target.wait_health("v1", "promoted")
    wait_for(
        lambda: "promoted" in hosts.source.bdr("status", "v1").stdout,
        what="the target's refusal in the source's status",
        timeout_s=DEADLINE_S,
    )
    assert volume.target.read_bytes() == used
    assert "found its device promoted" in target.bdr("promote", "v1").stderr

    done = target.bdr("demote", "v1")
    assert (done.returncode, done.stdout) == (
        0,
        "v1: a replica again\n",
    )
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert volume.is_identical()
    assert "unknown-position" in target.log("v1-applier")


def test_replica_that_is_not_consistent_is_promoted_by_force_only(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(source={"assume_clean": False, "scan_rate": "1MiB"})
    hosts.target.start()
    hosts.source.start()
    hosts.target.wait_health("v1", "resyncing")
    done = hosts.target.bdr("promote", "v1")
    assert done.returncode == 72
    assert "found a replica that is unverified" in done.stderr
    hosts.target.wait_health("v1", "resyncing")
    done = hosts.target.bdr("promote", "--force", "v1")
    assert done.returncode == 0, done.stderr
    assert hosts.source.bdr("promote", "v1").returncode == 64


def test_demoted_with_its_journal_in_use_everything_is_compared(make_hosts: MakeHosts) -> None:
    """As for a disk that was restored: what the journal has is no use to it."""
    hosts = make_hosts()
    hosts.start()
    target, volume = hosts.target, hosts.volume
    scribble(hosts, 1)
    volume.settle()
    applier = target.pids()["v1-applier"]
    os.kill(applier, signal.SIGSTOP)
    target.kill()
    os.kill(applier, signal.SIGKILL)
    assert names_a_journal(target.directory / "state/v1.state", volume.size)
    with volume.target.open("r+b") as file:
        file.write(b"restored" * (volume.size // 8))
    assert target.bdr("demote", "v1").returncode == 72
    done = target.bdr("demote", "v1", "--give-up")
    assert done.returncode == 0, done.stderr
    target.start()
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert volume.is_identical()
