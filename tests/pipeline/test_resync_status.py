# SPDX-License-Identifier: GPL-2.0-only
"""Both sides tell since when the replica is what it is, also after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, MIB, Host, Hosts, MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture


def replica(host: Host) -> Mapping[str, Any]:
    """What its status says of the replica; nothing while nobody knows."""
    found: Mapping[str, Any] = host.status("v1").get("replica", {})
    return found


def is_under_way(found: Mapping[str, Any], size: int) -> bool:
    return 0 < (found.get("left_bytes") or 0) < size and found.get("since_utc") is not None


def shows_progress(host: Host, size: int) -> bool:
    return is_under_way(replica(host), size)


def restart_target_alone(hosts: Hosts) -> None:
    """So that it knows only what it has remembered."""
    hosts.source.supervisorctl("stop", "v1-reader")
    hosts.target.supervisorctl("restart", "v1-applier")
    wait_for(
        lambda: hosts.target.status("v1").get("connection", {}).get("state") == "WAITING",
        what="the target without its source",
        timeout_s=DEADLINE_S,
    )


def test_scan_under_way_is_shown_with_its_rest_on_both_sides_and_remembered(
    make_hosts: MakeHosts,
) -> None:
    size = 256 * MIB
    began = datetime.now(UTC)
    hosts = make_hosts(size=size, source={"assume_clean": False, "scan_rate": "1MiB"})
    hosts.target.start()
    hosts.source.start()
    for host in (hosts.source, hosts.target):
        wait_for(
            partial(shows_progress, host, size),
            what="a scan that is under way",
            timeout_s=DEADLINE_S,
        )
    source, target = (replica(host) for host in (hosts.source, hosts.target))
    assert source["condition"] == target["condition"] == "UNVERIFIED"
    assert source["since_utc"] == target["since_utc"]
    assert (
        -1 <= (datetime.fromisoformat(source["since_utc"]) - began).total_seconds() < 2 * DEADLINE_S
    )
    for host in (hosts.source, hosts.target):
        said = host.bdr("status").stdout
        assert "resync under way since " in said
        assert " left to compare" in said
    restart_target_alone(hosts)
    found = replica(hosts.target)
    assert (found["condition"], found["since_utc"]) == ("UNVERIFIED", source["since_utc"])
    assert 0 < found["left_bytes"] <= target["left_bytes"]


def test_consistent_replica_is_shown_with_its_place_and_time_on_both_sides_and_remembered(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts(source={"assume_clean": False})
    hosts.start()
    hosts.volume.client.write(0, b"x" * 8192)
    hosts.volume.settle()

    def places() -> list[tuple[object, ...]]:
        replicas = [replica(host) for host in (hosts.source, hosts.target)]
        keys = ("condition", "stream", "slot", "since_utc", "as_of_utc", "left_bytes")
        return [tuple(found.get(key) for key in keys) for found in replicas]

    wait_for(
        lambda: len(set(places())) == 1 and None not in places()[0],
        what="both sides to say the same",
        timeout_s=DEADLINE_S,
    )
    (place, _) = places()
    assert place[:3] == ("CONSISTENT", hosts.volume.capture.info.stream.hex(), 2)
    said = [host.bdr("status").stdout for host in (hosts.source, hosts.target)]
    assert all("slot 2 of stream " in text and "; " in text for text in said)
    restart_target_alone(hosts)
    found = replica(hosts.target)
    assert (found["condition"], found["slot"], found["since_utc"]) == ("CONSISTENT", 2, place[3])
