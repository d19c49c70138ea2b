# SPDX-License-Identifier: GPL-2.0-only
"""What `bdr verify` finds stays known until it is repaired, whatever is restarted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, Host, MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture


def verification(host: Host) -> Mapping[str, Any]:
    """What its status says of verifications; nothing while the reader does not report."""
    return host.status("v1").get("verification") or {}


def test_differences_are_remembered_through_restarts_until_they_are_repaired(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts()
    hosts.start()
    source = hosts.source
    assert verification(source)["ended_utc"] is None
    with hosts.volume.target.open("r+b") as file:
        file.seek(40960)
        file.write(b"corrupt")
    assert source.bdr("verify", "v1").returncode == 1
    wait_for(
        lambda: verification(source).get("unrepaired_bytes") == 4096,
        what="the difference in the status",
        timeout_s=DEADLINE_S,
    )
    found = verification(source)
    assert (found["differing_bytes"], found["compared_bytes"]) == (4096, hosts.volume.size)
    assert source.status("v1")["health"] == "broken"
    assert source.status("v1")["events"]["verified"] >= 1

    source.stop()
    source.start()
    wait_for(
        lambda: verification(source) == found,
        what="the difference in the status of other processes",
        timeout_s=DEADLINE_S,
    )
    done = source.bdr("status", "v1")
    assert done.returncode == 2
    assert "4096 bytes differed, 4.0 KiB are not repaired" in done.stdout

    done = source.bdr("verify", "v1", "--repair")
    assert done.returncode == 0, done.stderr
    source.wait_health("v1", "healthy")
    found = verification(source)
    assert (found["differing_bytes"], found["unrepaired_bytes"]) == (4096, 0)
    assert source.bdr("verify", "v1").returncode == 0
    wait_for(
        lambda: verification(source).get("differing_bytes") == 0,
        what="the verification that finds nothing",
        timeout_s=DEADLINE_S,
    )
    assert hosts.volume.is_identical()
