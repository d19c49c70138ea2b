# SPDX-License-Identifier: GPL-2.0-only
"""What happens around the loss of the source: kills, a late link, overflows, a scan."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bdr.common.wire.condition import Condition
from deploy.command import wait_for
from tests.databases.clients import Clients
from tests.databases.site import RING_WRITES, VOLUME, Site
from tests.pipeline.hosts import BIN, DEADLINE_S, Host

SMALL_RING_WRITES = 2048
SCAN_RATE = "1MiB"
SCANNED_REGIONS = 128
"""Of 64 KiB: the scan of so many takes 8 s at that rate, and does not end before the loss."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to lose a source.

    Attributes:
        before: what happens while the clients work.
        after: what happens on the target between the loss and the promotion.
        writes: capacity of the ring.
        source: settings of the source's volume.
        is_copied: whether both devices begin as copies; else a scan fills the target.
        loses: whether the newest transactions must be lost: else the scenario did not happen.
        is_prefix: whether the replica is one, and promotes without `--force`.
    """

    name: str
    before: Callable[[Site, Clients, random.Random], None] = lambda site, clients, rng: None
    after: Callable[[Site, random.Random], None] = lambda site, rng: None
    writes: int = RING_WRITES
    source: Mapping[str, object] = field(default_factory=dict)
    is_copied: bool = True
    loses: bool = False
    is_prefix: bool = True


# Faults.


def kill(host: Host, program: str) -> None:
    """kill -9, and waits until supervisord has started it again."""
    pid = host.pids()[program]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: host.pids()[program] not in (0, pid),
        what=f"the restart of {program}",
        timeout_s=DEADLINE_S,
    )


def senders(site: Site) -> list[str]:
    return [name for name in site.source.pids() if name.startswith(f"{VOLUME}-sender")]


@contextlib.contextmanager
def late_link(site: Site) -> Iterator[None]:
    """No sender runs meanwhile."""
    pids = [site.source.pids()[name] for name in senders(site)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def overflow(site: Site, clients: Clients) -> None:
    """Waits for one, and for writes that are in the bitmap only."""
    capture = site.captured.capture
    before = capture.status().overflows
    wait_for(lambda: capture.status().overflows > before, what="an overflow", timeout_s=DEADLINE_S)
    clients.wait_for_more(20)


# Before the loss.


def behind(site: Site, clients: Clients, rng: random.Random) -> None:
    """Its senders stop, and are lost like that."""
    with contextlib.ExitStack() as never:
        never.enter_context(late_link(site))
        clients.wait_for_more(50)
        never.pop_all()


def senders_killed(site: Site, clients: Clients, rng: random.Random) -> None:
    for _ in range(4):
        kill(site.source, rng.choice(senders(site)))
        clients.wait_for_more(rng.randrange(1, 20))


def applier_killed(site: Site, clients: Clients, rng: random.Random) -> None:
    for _ in range(2):
        kill(site.target, f"{VOLUME}-applier")
        clients.wait_for_more(rng.randrange(5, 40))


def in_overflow(site: Site, clients: Clients, rng: random.Random) -> None:
    with contextlib.ExitStack() as never:
        never.enter_context(late_link(site))
        overflow(site, clients)
        never.pop_all()


def overflow_repaired(site: Site, clients: Clients, rng: random.Random) -> None:
    with late_link(site):
        overflow(site, clients)
    site.wait_repaired()
    clients.wait_for_more(5)


def during_scan(site: Site, clients: Clients, rng: random.Random) -> None:
    capture = site.captured.capture
    with late_link(site):
        overflow(site, clients)
        wait_for(
            lambda: capture.status().dirty_regions >= SCANNED_REGIONS,
            what=f"{SCANNED_REGIONS} regions to scan",
            timeout_s=DEADLINE_S,
        )
    site.wait_condition(Condition.INCONSISTENT)


# After the loss.


def applier_killed_again(site: Site, rng: random.Random) -> None:
    kill(site.target, f"{VOLUME}-applier")


def target_killed(site: Site, rng: random.Random) -> None:
    site.target.kill_all()


def promote_killed(site: Site, rng: random.Random) -> None:
    """Promotions that are killed after they, or one before, stopped the applier."""
    for _ in range(3):
        promotion = subprocess.Popen(
            [*site.target.within, str(BIN / "bdr"), "promote", VOLUME],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=site.target.environment,
        )
        _wait_for_its_stop(site, promotion)
        try:
            # The moment of the fault; the promotion may have ended by then.
            promotion.wait(rng.uniform(0.0, 0.8))
        except subprocess.TimeoutExpired:
            promotion.kill()
            promotion.wait()


def _wait_for_its_stop(site: Site, promotion: subprocess.Popen[bytes]) -> None:
    wait_for(
        lambda: not applier(site) or promotion.poll() is not None,
        what="the applier's end",
        timeout_s=DEADLINE_S,
    )


def applier(site: Site) -> int:
    """Its process id; 0 if it does not run."""
    return site.target.pids()[f"{VOLUME}-applier"]


PLAIN = Scenario("plain")
SCANNED = Scenario("scanned", is_copied=False)
BEHIND = Scenario("behind", behind, loses=True)
SENDERS_KILLED = Scenario("senders-killed", senders_killed)
APPLIER_KILLED = Scenario("applier-killed", applier_killed, applier_killed_again)
TARGET_KILLED = Scenario("target-killed", after=target_killed)
PROMOTE_KILLED = Scenario("promote-killed", after=promote_killed)
IN_OVERFLOW = Scenario("in-overflow", in_overflow, writes=SMALL_RING_WRITES, loses=True)
OVERFLOW_REPAIRED = Scenario("overflow-repaired", overflow_repaired, writes=SMALL_RING_WRITES)
DURING_SCAN = Scenario(
    "during-scan",
    during_scan,
    writes=SMALL_RING_WRITES,
    source={"scan_rate": SCAN_RATE},
    is_prefix=False,
)
