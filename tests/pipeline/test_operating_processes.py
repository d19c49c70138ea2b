# SPDX-License-Identifier: GPL-2.0-only
"""supervisord: one process at a time is started, stopped, added, removed; the others go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, MakeHosts, make_hosts, tool

__all__ = ["make_hosts"]  # a fixture

BLOCK = b"block".ljust(4096)


def test_scale_leaves_the_pids_of_all_others_alone(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(volumes=2, source={"senders": 2})
    hosts.start()
    source, volume = hosts.source, hosts.volumes[0]
    before = source.pids()
    assert len(before) == 2 * (1 + 2 + 1 + 1)

    done = source.bdr("scale", "v1", "sender=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["added v1-sender-3", "added v1-sender-4"]
    grown = source.pids()
    assert {name: grown[name] for name in before} == before
    assert set(grown) - set(before) == {"v1-sender-3", "v1-sender-4"}
    source.wait_health("v1", "healthy")
    for at in range(200):
        volume.client.write(at * 4096, BLOCK)
    volume.settle()

    # supervisord's own update has nothing left to restart.
    assert source.supervisorctl("update") == ""
    assert source.pids() == grown

    done = source.bdr("scale", "v1", "sender=1")
    assert done.stdout.splitlines() == [f"removed v1-sender-{n}" for n in (2, 3, 4)]
    shrunk = source.pids()
    assert shrunk == {name: grown[name] for name in shrunk}
    assert {name for name in shrunk if "v1-sender" in name} == {"v1-sender-1"}
    source.wait_health("v1", "healthy")
    volume.client.write(0, BLOCK)
    volume.settle()
    assert volume.is_identical()

    # A restart of supervisord gives the same set, and so does `bdr reload`.
    source.stop()
    source.start()
    assert set(source.pids()) == set(shrunk)
    assert source.bdr("reload").stdout == "nothing to change\n"
    # A new number in bdr.toml counts again.
    source.volumes["v1"]["senders"] = 3
    source.write_config()
    assert source.bdr("reload").stdout.splitlines() == ["added v1-sender-2", "added v1-sender-3"]
    done = source.bdr("scale", "v1", "sender=2")
    assert done.stdout.splitlines() == ["removed v1-sender-3"]
    done = source.bdr("scale", "v1", "sender=default", "scanner=2")
    assert done.stdout.splitlines() == ["added v1-scanner-2", "added v1-sender-3"]


def test_reload_restarts_only_what_differs(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(volumes=2)
    hosts.start()
    source = hosts.source
    before = source.pids()
    source.volumes["v2"]["rpo_seconds"] = 7
    source.write_config()
    assert source.bdr("reload").stdout == "changed v2-monitor\n"
    after = source.pids()
    assert {name for name in before if before[name] != after[name]} == {"v2-monitor"}
    source.wait_health("v2", "healthy")
    assert source.status("v2")["rpo_seconds"] == 7

    # What was stopped by hand stays stopped, also if its program changes.
    source.supervisorctl("stop", "v1-monitor")
    source.volumes["v1"]["rpo_seconds"] = 8
    source.write_config()
    assert source.bdr("reload").stdout == "changed v1-monitor\n"
    assert source.pids()["v1-monitor"] == 0
    source.supervisorctl("start", "v1-monitor")
    assert source.status("v1")["rpo_seconds"] == 8

    del source.volumes["v2"]
    source.write_config()
    stages = ("monitor", "reader", "scanner-1", "sender-1")
    removed = [f"removed v2-{stage}" for stage in stages]
    assert source.bdr("reload").stdout.splitlines() == removed
    assert set(source.pids()) == {"v1-monitor", "v1-reader", "v1-scanner-1", "v1-sender-1"}


def test_supervisorctl_works_on_groups_and_single_processes(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts(source={"senders": 2})
    hosts.start()
    source, target, volume = hosts.source, hosts.target, hosts.volume
    rng = random.Random(1)
    for host, name in (
        (source, "v1-sender:*"),
        (source, "v1-sender:v1-sender-2"),
        (source, "v1-reader"),
        (source, "v1-monitor"),
        (target, "v1-applier"),
    ):
        for action in ("stop", "start"):
            said = host.supervisorctl(action, name)
            assert "ERROR" not in said, said
            for _ in range(50):
                volume.client.write(rng.randrange(4000) * 4096, rng.randbytes(4096))
    said = source.bdr("ctl", "restart", "v1-reader").stdout
    assert said.splitlines() == ["v1-reader: stopped", "v1-reader: started"]
    volume.settle()
    assert volume.is_identical()
    source.wait_health("v1", "healthy")
    assert volume.capture.status().overflows == 0


def test_permanent_failures_stay_down_and_others_are_restarted(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts()
    hosts.start()
    source, target = hosts.source, hosts.target
    pid = source.pids()["v1-reader"]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: source.pids()["v1-reader"] not in (0, pid), what="restart", timeout_s=DEADLINE_S
    )

    def restarts() -> dict[str, int]:
        return {stage["name"]: stage["restarts"] for stage in source.status("v1")["stages"]}

    wait_for(
        lambda: restarts() == {"v1-reader": 1, "v1-scanner-1": 0, "v1-sender-1": 0},
        what="the count of restarts",
        timeout_s=DEADLINE_S,
    )
    source.wait_health("v1", "healthy")

    # The target's state is damaged: that does not pass.
    state = target.directory / "damaged"
    state.write_bytes(b"x" * 65536)
    target.volumes["v1"]["state"] = str(state)
    target.write_config()
    assert target.bdr("reload").stdout == "changed v1-applier\n"
    wait_for(lambda: target.pids()["v1-applier"] == 0, what="its end", timeout_s=DEADLINE_S)
    assert "error=StateError" in target.log("v1-applier")
    source.wait_health("v1", "broken")
    done = target.bdr("status", "v1")
    assert done.returncode == 2
    assert "EXITED with code 72, left down" in done.stdout
    done = source.bdr("status", "v1", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["health"] == "broken"


def test_logs_are_rotated_as_logrotate_does(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(source={"senders": 1})
    hosts.source.host["log_format"] = "json"
    hosts.start()
    source = hosts.source
    for line in source.log("v1-reader").splitlines():
        assert {"timestamp", "level", "volume", "stage", "event"} <= set(json.loads(line))
    path = source.log_dir / "v1-reader.log"
    old = path.rename(path.with_suffix(".log.1")).read_text()
    supervisord = int((source.run_dir / "supervisord.pid").read_text())
    os.kill(supervisord, signal.SIGUSR2)
    wait_for(path.exists, what="the new log", timeout_s=DEADLINE_S)
    source.supervisorctl("restart", "v1-reader")
    wait_for(
        lambda: '"event": "streaming"' in source.log("v1-reader"),
        what="a line in it",
        timeout_s=DEADLINE_S,
    )
    assert path.with_suffix(".log.1").read_text() == old
    rules = Path(__file__).parent.parent.parent / "deploy" / "bdr.logrotate"
    copy = source.directory / "logrotate"
    copy.write_text(rules.read_text())
    done = subprocess.run(
        [tool("logrotate"), "--debug", str(copy)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr


def test_stop_is_clean_and_within_the_time_allowed(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(volumes=2)
    hosts.start()
    for host in (hosts.source, hosts.target):
        pids = host.pids().values()
        host.stop(at_once=False)
        said = (host.log_dir / "supervisord.log").read_text()
        assert "SIGKILL" not in said
        assert said.count("exit status 0") == len(pids)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_stage_that_somebody_has_ended_is_started_again(make_hosts: MakeHosts) -> None:
    """By SIGTERM, which ends it in order: as earlyoom does, or a user."""
    hosts = make_hosts()
    hosts.start()
    before = hosts.source.pids()["v1-sender-1"]
    os.kill(before, signal.SIGTERM)
    wait_for(
        lambda: hosts.source.pids()["v1-sender-1"] not in (0, before),
        what="another sender",
        timeout_s=DEADLINE_S,
    )
    hosts.source.wait_health("v1", "healthy")


def test_no_stage_outlives_a_supervisord_that_was_killed(make_hosts: MakeHosts) -> None:
    """They would keep the next one's out, which end for good then."""
    hosts = make_hosts()
    hosts.start()
    host = hosts.target
    before = [pid for pid in host.pids().values() if pid]
    assert len(before) == 2
    host.kill()
    wait_for(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in before),
        what="the end of its stages",
        timeout_s=DEADLINE_S,
    )
    host.start()
    host.wait_health("v1", "healthy")
