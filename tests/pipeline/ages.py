# SPDX-License-Identifier: GPL-2.0-only
"""The judge of lag: a stamp every 100 ms, against what both sides say of the replica's age.

    python -m tests.pipeline.ages [ROUNDS]

The truth is read from the target's file: a stamp that is there may not be durable yet, so the
replica lacks that much at least. Each stamp has a block of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from deploy.command import wait_for
from deploy.demo import free_port
from tests.pipeline.hosts import DEADLINE_S, MIB, Host, Hosts, Volume

STAMP_S = 0.1
STAMPS = 2048
"""Blocks for stamps; the rest of the device is for filling the ring."""
LOOK_S = 0.2
UNDER_S = 1.0
"""No age is further below the truth."""
EXPORTED_S = 0.25
"""A metric is as of the monitor's last tick."""
REST_S = 2.5
REST_SLACK_S = 0.2
RPO_S = 2.0
RING = 256


class Stamps:
    """Writes them while it is open."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.lock = threading.Lock()
        """Of the client."""
        self._completed_at: list[tuple[float, float]] = []
        """Of each stamp: monotonic and wall clock."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(STAMP_S) and len(self._completed_at) < STAMPS:
            number = len(self._completed_at)
            with self.lock:
                self.volume.client.write(number * 4096, (number + 1).to_bytes(8, "little") * 512)
            self._completed_at.append((time.monotonic(), time.time()))

    def oldest_lacking(self) -> tuple[float, float] | None:
        """When the oldest stamp completed that the target's file lacks."""
        written = list(self._completed_at)
        with self.volume.target.open("rb") as file:
            for number, completed_at in enumerate(written):
                file.seek(number * 4096)
                if int.from_bytes(file.read(8), "little") != number + 1:
                    return completed_at
        return None


class AgeWitness:
    """Looks at both sides in the background, while it is open."""

    def __init__(self, hosts: Hosts, stamps: Stamps, ports: tuple[int, int]) -> None:
        self._sides = tuple(zip((hosts.source, hosts.target), ports, strict=True))
        self._name = hosts.volume.name
        self._stamps = stamps
        self._restored: dict[Host, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.lies: list[str] = []
        self.looks = 0
        self.known = 0
        """Of these, how often an age was said."""
        self.most_s: dict[str, tuple[float, float]] = {}
        """By side: the oldest that it was when an age was said, and that was said."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(LOOK_S):
            for host, port in self._sides:
                self._look(host, port)

    def _look(self, host: Host, port: int) -> None:
        began_at = time.monotonic()
        status = host.status(self._name, 0.5)
        exported_s = exported(port)
        lacking = self._stamps.oldest_lacking()
        true_s = began_at - lacking[0] if lacking else 0.0
        self.looks += 1
        side = status.get("role", "?")
        said_s = status.get("seconds_behind")
        self.known += said_s is not None
        is_minimum = bool(status.get("is_seconds_behind_minimum"))
        if said_s is not None and not is_minimum:
            most = self.most_s.get(side, (0.0, 0.0))
            self.most_s[side] = max(most[0], true_s), max(most[1], said_s)
        for what, found_s, slack_s in (
            ("status", said_s, UNDER_S),
            ("metrics", exported_s, UNDER_S + EXPORTED_S),
        ):
            if found_s is not None and not is_minimum and found_s < true_s - slack_s:
                self.lies.append(f"{side} {what}: {found_s:.2f} s, in fact {true_s:.2f}")
        as_of = status.get("replica", {}).get("as_of_utc")
        if lacking and as_of and datetime.fromisoformat(as_of).timestamp() > lacking[1]:
            self.lies.append(f"{side}: as of {as_of}, but a stamp of {lacking[1]:.1f} lacks")
        self._judge_events(host, status, true_s)

    def _judge_events(self, host: Host, status: Any, true_s: float) -> None:
        restored = status.get("events", {}).get("rpo-restored", 0)
        if restored > self._restored.get(host, 0) and true_s > RPO_S + UNDER_S:
            self.lies.append(f"{status['role']}: rpo-restored at {true_s:.2f} s")
        self._restored[host] = restored


def exported(port: int) -> float | None:
    """`bdr_seconds_behind`; None without a sample, or a monitor."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
            lines = page.read().decode().splitlines()
    except OSError:
        return None
    values = [line.split()[-1] for line in lines if line.startswith("bdr_seconds_behind{")]
    return float(values[0]) if values else None


def settings() -> tuple[dict[str, Any], tuple[int, int]]:
    """For `Hosts`; and the ports of both exporters."""
    ports = free_port(), free_port()
    common = {"rpo_seconds": RPO_S}
    chosen = {
        "size": 32 * MIB,
        "writes": RING,
        "source": common | {"metrics_port": ports[0], "scanners": 1},
        "target": common | {"metrics_port": ports[1]},
    }
    return chosen, ports


def kill(host: Host, program: str) -> None:
    """SIGKILL; supervisord starts it again."""
    pid = host.pids()[program]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: host.pids()[program] not in (0, pid),
        what=f"the restart of {program}",
        timeout_s=DEADLINE_S,
    )


@contextlib.contextmanager
def away(host: Host, program: str) -> Iterator[None]:
    """Stopped for so long."""
    host.supervisorctl("stop", program)
    yield
    host.supervisorctl("start", program)


def judge(hosts: Hosts, ports: tuple[int, int], *, rounds: int = 1) -> AgeWitness:
    """Kills every stage, and fills the ring, under stamps; both hosts are up.

    Raises:
        AssertionError: an age was said that is younger than true, or other than 0 at rest.
    """
    source, target, volume = hosts.source, hosts.target, hosts.volume
    name = volume.name
    with Stamps(volume) as stamps, AgeWitness(hosts, stamps, ports) as witness:
        for _ in range(rounds):
            kill(source, f"{name}-reader")
            kill(source, f"{name}-monitor")
            kill(target, f"{name}-monitor")
            kill(target, f"{name}-applier")
            with away(target, f"{name}-applier"):
                time.sleep(RPO_S + 1)
                kill(source, f"{name}-monitor")
                time.sleep(1)
            source.wait_health(name, "healthy")
            with away(target, f"{name}-applier"):
                fill(stamps)
                time.sleep(RPO_S + 1)
                kill(source, f"{name}-reader")
            wait_consistent(hosts)
            source.wait_health(name, "healthy")
    volume.settle()
    time.sleep(REST_S)
    assert not witness.lies, witness.lies[:20]
    for host, port in zip((source, target), ports, strict=True):
        found = host.status(name)["seconds_behind"], exported(port)
        assert all(each is not None and each <= REST_SLACK_S for each in found), found
    return witness


def fill(stamps: Stamps) -> None:
    """More writes than the ring has room for, behind the stamps."""
    volume = stamps.volume
    for block in range(2 * RING):
        with stamps.lock:
            volume.client.write((STAMPS + block) * 4096, os.urandom(4096))
    assert volume.capture.status().overflows


def wait_consistent(hosts: Hosts) -> None:
    """Until the scan has ended durably."""
    name = hosts.volume.name
    wait_for(
        lambda: hosts.source.status(name)["replica"]["condition"] == "CONSISTENT",
        what="a consistent replica",
        timeout_s=DEADLINE_S,
    )


def main() -> None:
    """Many rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    chosen, ports = settings()
    with (
        tempfile.TemporaryDirectory(prefix="bdr-", dir="/dev/shm") as directory,
        Hosts(Path(directory), **chosen) as hosts,
    ):
        hosts.start()
        witness = judge(hosts, ports, rounds=rounds)
    print(f"{witness.looks} looks, {witness.known} with a known age, none younger than true")
    for side, (true_s, said_s) in witness.most_s.items():
        print(f"{side}: at most {true_s:.1f} s, said {said_s:.1f}")


if __name__ == "__main__":
    main()
