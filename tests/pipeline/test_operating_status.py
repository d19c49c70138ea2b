# SPDX-License-Identifier: GPL-2.0-only
"""The status says the truth, whatever is stopped, frozen, killed or cut off."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Self

import pytest
import zmq

from bdr.common.status.model import VolumeStatus
from bdr.services.monitoring.client import NoAnswerError, Subscriber
from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, Host, Hosts, MakeHosts, Volume, make_hosts

__all__ = ["make_hosts"]  # a fixture

OUTAGE_S = float(os.environ.get("BDR_TEST_OUTAGE_S", "4"))
"""How long a stage is stopped under load; 60 for the long run."""

POLL_S = 0.2
BEFORE_S = 2.0
NOTICE_S = 4.0
"""A monitor may take so long to learn of something: 3 s of silence, and a second."""


class Load:
    """Writes all over a volume while it is open, at a rate that the ring survives."""

    def __init__(self, volume: Volume, *, writes_per_s: int) -> None:
        self._volume = volume
        self._pause_s = 1 / writes_per_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rng = random.Random(1)
        while not self._done.wait(self._pause_s):
            place = rng.randrange(self._volume.size // 4096)
            self._volume.client.write(place * 4096, rng.randbytes(4096))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


class Witness:
    """Looks at the facts and at the status every 200 ms, and compares them.

    The facts are looked at here, by the ring's own numbers and the clock: how long
    nothing became durable although something was outstanding.
    """

    def __init__(self, host: Host, volume: Volume) -> None:
        self._host = host
        self._volume = volume
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._written: list[tuple[int, float]] = []
        self.polls = 0
        self.lies: list[str] = []

    def look(self, *, may_be: set[str]) -> None:
        """One comparison; `may_be` names the words that are true at this time."""
        began_at = time.monotonic()
        try:
            with Subscriber(self._context, str(self._host.run_dir / self._volume.name)) as asked:
                status: VolumeStatus | None = asked.status(2.0)
        except NoAnswerError:
            status = None
        took_s = time.monotonic() - began_at
        ring = self._volume.capture.status()
        now_at = time.monotonic()
        self._written.append((ring.head, now_at))
        while self._written and self._written[0][0] <= ring.tail:
            self._written.pop(0)
        age_s = now_at - self._written[0][1] if self._written else 0.0
        self.polls += 1
        word = status.health.value if status else "unknown"
        if word not in may_be:
            self.lies.append(f"{word} {status and status.reasons}, wanted one of {may_be}")
        if status and status.lag and status.lag.seconds is not None:
            # The monitor looks four times a second and publishes within one.
            slack_s = 2.0 + took_s
            if abs(status.lag.seconds - age_s) > slack_s:
                self.lies.append(f"{status.lag.seconds:.2f} s behind, in fact {age_s:.2f}")

    def look_for(self, seconds: float, *, may_be: set[str]) -> None:
        """Compares every 200 ms for a while."""
        end_s = time.monotonic() + seconds
        while (began_at := time.monotonic()) < end_s:
            self.look(may_be=may_be)
            # The pace of the polling, not a wait for something to happen.
            time.sleep(max(0.0, POLL_S - (time.monotonic() - began_at)))

    def close(self) -> None:
        self._context.destroy(linger=0)


ANY = {"healthy", "behind", "degraded", "broken", "unknown"}
BAD = {"broken", "unknown"}


@pytest.mark.timeout(3 * 120 + 5 * OUTAGE_S)
def test_status_says_the_truth_while_each_stage_is_stopped_in_turn(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(writes=65536, source={"senders": 1})
    hosts.start()
    volume = hosts.volume
    witness = Witness(hosts.source, volume)
    try:
        with Load(volume, writes_per_s=400):
            for host, name, words in (
                (hosts.source, "v1-sender:*", BAD),
                (hosts.source, "v1-reader", BAD),
                (hosts.source, "v1-scanner:*", {"degraded"}),
                (hosts.target, "v1-applier", BAD),
                (hosts.source, "v1-monitor", BAD),
            ):
                host.supervisorctl("stop", name)
                # It is stopped now; the status may lag behind for a moment.
                witness.look_for(NOTICE_S, may_be=ANY)
                witness.look_for(max(1.0, OUTAGE_S - NOTICE_S), may_be=words)
                host.supervisorctl("start", name)
                hosts.source.wait_health("v1", "healthy")
        volume.settle()
    finally:
        witness.close()
    assert not witness.lies, witness.lies[:20]
    assert witness.polls > 5 * OUTAGE_S
    assert volume.is_identical()
    assert volume.capture.status().overflows == 0
    # Nothing began from an unknown place, which would have needed a scan.
    assert hosts.target.log("v1-applier").count("event=unknown-position") == 1
    print(f"{witness.polls} looks at the status, no lie")


def test_a_frozen_process_turns_the_health_to_unknown(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    for host, name in (
        (hosts.source, "v1-reader"),
        (hosts.source, "v1-sender-1"),
        (hosts.target, "v1-applier"),
    ):
        pid = host.pids()[name]
        os.kill(pid, signal.SIGSTOP)
        try:
            host.wait_health("v1", "unknown")
            reasons = host.status("v1")["reasons"]
            assert any(name in reason and "has not reported for" in reason for reason in reasons)
            done = host.bdr("status")
            assert done.returncode == 2
            assert "v1: unknown" in done.stdout
            assert name in done.stdout
        finally:
            os.kill(pid, signal.SIGCONT)
        host.wait_health("v1", "healthy")

    assert hosts.source.bdr("status", "v1").returncode == 0
    pid = hosts.source.pids()["v1-monitor"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = hosts.source.bdr("status", "v1", "--json")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 2
    status = json.loads(done.stdout)
    assert status["health"] == "unknown"
    assert "no answer" in status["reasons"][0]


def test_rpo_alarm_and_events_reach_the_hook(make_hosts: MakeHosts, directory: Path) -> None:
    told = directory / "told"
    told.mkdir()
    hook = directory / "hook"
    hook.write_text(
        "#!/bin/sh\n"
        f'env | grep "^BDR_" | sort > "{told}/.$$" && mv "{told}/.$$" "{told}/$BDR_EVENT"\n'
    )
    hook.chmod(0o755)
    hosts = make_hosts(source={"rpo_seconds": 1.5, "on_event": [str(hook)]}, writes=1024)
    hosts.start()
    source, volume = hosts.source, hosts.volume

    hosts.target.supervisorctl("stop", "v1-applier")
    volume.client.write(0, b"x" * 4096)
    source.wait_health("v1", "broken")
    wait_for(
        lambda: {"connection-lost", "rpo-exceeded"} <= {path.name for path in told.iterdir()},
        what="the hook",
        timeout_s=DEADLINE_S,
    )
    status = source.status("v1")
    assert status["is_rpo_exceeded"]
    assert status["seconds_behind"] > 1.5
    assert any("allowed: 1.5 s" in reason for reason in status["reasons"])
    facts = dict(line.split("=", 1) for line in (told / "rpo-exceeded").read_text().splitlines())
    assert facts["BDR_VOLUME"] == "v1"
    assert facts["BDR_ROLE"] == "source"
    assert float(facts["BDR_SECONDS_BEHIND"]) > 1.5
    assert facts["BDR_BYTES_BEHIND"] == "4096"
    assert facts["BDR_RPO_SECONDS"] == "1.5"
    # A second while behind changes nothing: one event for each crossing.
    for at in range(1500):
        volume.client.write(at * 4096, b"y" * 4096)
    wait_for((told / "overflow").exists, what="overflow", timeout_s=DEADLINE_S)

    source.supervisorctl("stop", "v1-scanner:*")
    hosts.target.supervisorctl("start", "v1-applier")
    wanted = {"connection-restored", "inconsistent", "health"}
    wait_for(
        lambda: wanted <= {path.name for path in told.iterdir()},
        what="the hook",
        timeout_s=DEADLINE_S,
    )
    # Without a scanner the regions stay dirty, and the status says so.
    source.wait_health("v1", "broken")
    status = source.status("v1")
    assert status["ring"]["dirty_regions"] > 0
    assert any("regions await a resync" in reason for reason in status["reasons"])
    assert status["events"]["rpo-exceeded"] == 1
    # What the overflow has missed is missing still.
    assert "rpo-restored" not in status["events"]
    assert status["is_rpo_exceeded"]
    assert status["hooks"]["failed"] == status["hooks"]["dropped"] == 0
    source.supervisorctl("start", "v1-scanner:*")
    source.wait_health("v1", "healthy")
    wanted = {"resync-start", "resync-end", "rpo-restored"}
    wait_for(
        lambda: wanted <= {path.name for path in told.iterdir()},
        what="the hook",
        timeout_s=DEADLINE_S,
    )
    events = source.status("v1")["events"]
    assert (events["rpo-exceeded"], events["rpo-restored"]) == (1, 1)
    log = source.log("v1-monitor")
    assert "event=rpo-exceeded" in log
    assert "event=rpo-restored" in log


def test_a_hook_that_hangs_or_fails_holds_nothing_up(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(
        source={"on_event": ["/bin/sleep", "1000"]}, target={"on_event": ["/nonexistent/hook"]}
    )
    hosts.start()
    hosts.source.supervisorctl("restart", "v1-sender:*")
    hosts.source.wait_health("v1", "healthy")
    assert hosts.target.status("v1")["hooks"]["failed"] > 0
    began_at = time.monotonic()
    hosts.source.supervisorctl("stop", "v1-monitor")
    assert time.monotonic() - began_at < 14, "ended by SIGKILL"


def test_status_is_plain_where_nothing_runs(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    host = hosts.source
    host.write_config()
    done = host.bdr("status")
    assert done.returncode == 2
    assert "v1: unknown" in done.stdout
    assert "supervisord: found none at" in done.stdout
    assert "wanted a running monitor" in done.stdout

    hosts.start()
    assert host.bdr("status", "v1").returncode == 0
    done = host.bdr("status", "nosuch")
    assert done.returncode == 2
    assert "'nosuch': not in the configuration, which has v1" in done.stderr

    # Socket files that nobody serves are no answer.
    pids = host.pids()
    for pid in (*pids.values(), host_pid(hosts)):
        os.kill(pid, signal.SIGKILL)
    host.stop()
    wait_for(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()),
        what="their end",
        timeout_s=DEADLINE_S,
    )
    assert (host.run_dir / "supervisor.sock").exists()
    done = host.bdr("status", "v1")
    assert done.returncode == 2
    assert "a stale socket" in done.stdout
    assert "no answer on" in done.stdout
    for words in (("reload",), ("scale", "v1", "sender=2"), ("ctl", "status")):
        done = host.bdr(*words)
        assert done.returncode == 2, words
        assert "a stale socket" in done.stderr
    # They do not keep the next one from starting.
    host.start()
    host.wait_health("v1", "healthy")


def host_pid(hosts: Hosts) -> int:
    return int((hosts.source.run_dir / "supervisord.pid").read_text())


def test_a_frozen_supervisord_is_told(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    with hosts.source.frozen():
        done = hosts.source.bdr("status", "v1")
    assert done.returncode == 2
    assert "no answer within 5 s" in done.stdout + done.stderr


def test_wait_for_a_target_is_refused(make_hosts: MakeHosts) -> None:
    """Only its source knows what it lacks; `bdr wait` of a whole host has nothing to wait for."""
    hosts = make_hosts()
    hosts.start()
    done = hosts.target.bdr("wait", "v1")
    assert done.returncode == 64
    assert "found a target; wanted a source" in done.stderr
    assert hosts.target.bdr("wait").returncode == 0


def test_a_monitor_that_is_new_knows_the_age_that_the_one_before_knew(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts(source={"rpo_seconds": 600})
    hosts.start()
    hosts.target.supervisorctl("stop", "v1-applier")
    hosts.volume.client.write(0, bytes(4096))
    written_at = time.monotonic()
    wait_for(
        lambda: (hosts.source.status("v1")["seconds_behind"] or 0.0) > BEFORE_S,
        what="behind",
        timeout_s=DEADLINE_S,
    )
    hosts.source.supervisorctl("restart", "v1-monitor")
    wait_for(
        lambda: hosts.source.status("v1").get("is_seconds_behind_minimum") is False,
        what="the reader's report",
        timeout_s=DEADLINE_S,
    )
    least_s = time.monotonic() - written_at
    status = hosts.source.status("v1")
    assert status["seconds_behind"] >= least_s
    assert status["health"] != "healthy"
