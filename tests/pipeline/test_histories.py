# SPDX-License-Identifier: GPL-2.0-only
"""A source that went back, was cloned, or is another: nothing of the replica is overwritten
before a person has decided."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.capture.api import Role
from bdr.common.capture.opening import open_capture
from deploy.command import wait_for
from deploy.nbd_source import nbd_server
from tests.nbdkit.client import NbdClient
from tests.pipeline.hosts import DEADLINE_S, Host, Hosts, MakeHosts, make_hosts

__all__ = ["make_hosts"]  # a fixture

BLOCK = 4096
RESTARTS = int(os.environ.get("BDR_TEST_RESTARTS", "3"))
SAME_RANDOM = """
#include <string.h>
#include <sys/types.h>
ssize_t getrandom(void *to, size_t bytes, unsigned flags)
{
    (void)flags;
    memset(to, 0x5a, bytes);
    return bytes;
}
"""


def scribble(client: NbdClient, seed: int, *, first: int = 0, blocks: int = 100) -> None:
    rng = random.Random(seed)
    for at in range(first, first + blocks):
        client.write(at * BLOCK, rng.randbytes(BLOCK))


def state_of(host: Host) -> Path:
    (role,) = {volume["role"] for volume in host.volumes.values()}
    return host.directory / "state" / {"source": "v1.source", "target": "v1.state"}[role]


def restart(host: Host) -> None:
    host.stop()
    host.start()


def recover(hosts: Hosts) -> None:
    """Both are in step again."""
    for host in (hosts.source, hosts.target):
        host.wait_health("v1", "healthy")
    hosts.volume.settle()
    assert hosts.volume.is_identical()


def follow_until_the_state_is_old(hosts: Hosts) -> bytes:
    """Returns the source's state of before what the replica has followed."""
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    hosts.source.stop()
    saved = state_of(hosts.source).read_bytes()
    hosts.source.start()
    hosts.source.wait_health("v1", "healthy")
    scribble(hosts.volume.client, 2)
    hosts.volume.settle()
    wait_for(
        lambda: state_of(hosts.source).read_bytes() != saved,
        what="another generation",
        timeout_s=DEADLINE_S,
    )
    # Its newest identifier is in the greeting.
    restart(hosts.source)
    hosts.source.wait_health("v1", "healthy")
    hosts.source.stop()
    return saved


def test_source_that_was_restored_is_refused_until_what_the_target_has_is_given_up(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts()
    saved = follow_until_the_state_is_old(hosts)
    state_of(hosts.source).write_bytes(saved)
    kept = hosts.volume.target.read_bytes()
    hosts.source.start()
    hosts.source.wait_health("v1", "broken")
    hosts.target.wait_health("v1", "broken")
    scribble(hosts.volume.client, 3, first=500)
    assert hosts.source.bdr("status", "v1").returncode == 2
    assert hosts.volume.target.read_bytes() == kept
    restart(hosts.target)
    hosts.target.wait_health("v1", "broken")
    assert hosts.volume.target.read_bytes() == kept
    done = hosts.target.bdr("demote", "v1", "--give-up")
    assert done.returncode == 0, done.stderr
    recover(hosts)


def test_source_without_its_state_is_another_source(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    hosts.source.stop()
    state_of(hosts.source).unlink()
    kept = hosts.volume.target.read_bytes()
    hosts.source.start()
    hosts.source.wait_health("v1", "broken")
    scribble(hosts.volume.client, 2)
    assert hosts.volume.target.read_bytes() == kept
    done = hosts.target.bdr("adopt", "v1")
    assert done.returncode == 0, done.stderr
    recover(hosts)


def test_target_without_its_state_holds_something_unknown(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    hosts.target.stop()
    shutil.rmtree(state_of(hosts.target).parent)
    kept = hosts.volume.target.read_bytes()
    hosts.target.start()
    hosts.source.wait_health("v1", "broken")
    scribble(hosts.volume.client, 2)
    assert hosts.volume.target.read_bytes() == kept
    done = hosts.target.bdr("adopt", "v1")
    assert done.returncode == 0, done.stderr
    recover(hosts)


def test_target_that_was_built_anew_is_compared_though_both_are_said_to_be_equal(
    make_hosts: MakeHosts,
) -> None:
    """`assume_clean` stays in the configuration, and the source's capture is new too."""
    hosts = make_hosts(source={"assume_clean": True})
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    hosts.source.stop()
    hosts.target.stop()
    shutil.rmtree(state_of(hosts.target).parent)
    with hosts.volume.target.open("wb") as file:
        file.truncate(hosts.volume.size)
    hosts.volume.capture_anew()
    hosts.start()
    recover(hosts)
    scribble(hosts.volume.client, 2, first=200)
    recover(hosts)


def test_volume_of_the_same_name_does_not_take_the_replica_over(make_hosts: MakeHosts) -> None:
    """A mistyped port, while the right source is away for long."""
    hosts = make_hosts()
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    hosts.source.stop()
    kept = hosts.volume.target.read_bytes()
    with another_source(hosts) as (other, client):
        other.start()
        other.wait_health("v1", "broken")
        scribble(client, 2)
        other.wait_health("v1", "broken")
        other.stop()
    assert hosts.volume.target.read_bytes() == kept
    hosts.source.start()
    recover(hosts)


def test_demotion_of_a_replica_that_was_not_promoted_gives_nothing_up_by_itself(
    make_hosts: MakeHosts,
) -> None:
    hosts = make_hosts()
    hosts.start()
    scribble(hosts.volume.client, 1)
    hosts.volume.settle()
    assert hosts.target.bdr("demote", "v1").returncode == 72
    recover(hosts)
    assert "unknown-position" not in hosts.target.log("v1-applier").split("event=welcome", 1)[1]


def test_clone_of_the_source_is_refused_and_the_source_goes_on(
    make_hosts: MakeHosts, directory: Path
) -> None:
    """Two captures with one stream, one past and one state, as a snapshot with memory makes."""
    (directory / "same.c").write_text(SAME_RANDOM)
    library = directory / "same.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, directory / "same.c"], check=True, timeout=60
    )
    hosts = make_hosts()
    volume = hosts.volume
    with same_random(library):
        volume.capture_anew()
    hosts.start()
    scribble(volume.client, 1)
    volume.settle()
    hosts.source.stop()  # so that its state can be copied whole
    with another_source(hosts, library) as (clone, client):
        scribble(client, 1)  # what both have had
        assert stream_of(clone) == volume.capture.info.stream
        shutil.copytree(state_of(hosts.source).parent, state_of(clone).parent)
        hosts.source.start()
        hosts.source.wait_health("v1", "healthy")
        scribble(volume.client, 2, first=1000)
        volume.settle()
        clone.start()
        scribble(client, 3, first=2000)
        clone.wait_health("v1", "broken")
        scribble(volume.client, 4, first=1500)
        volume.settle()
        hosts.source.wait_health("v1", "healthy")
        assert volume.is_identical()
        clone.stop()
    hosts.target.wait_health("v1", "healthy")


@pytest.mark.timeout(60 + 60 * RESTARTS)
def test_restarts_of_both_hosts_cause_no_alarm(make_hosts: MakeHosts) -> None:
    """No refusal, and nothing is compared."""
    hosts = make_hosts()
    hosts.start()
    rng = random.Random(1)
    for number in range(RESTARTS):
        for host in rng.sample((hosts.source, hosts.target), 2):
            scribble(hosts.volume.client, 2 * number, first=rng.randrange(3900))
            if rng.random() < 0.5:
                host.kill()
            else:
                host.stop(at_once=rng.random() < 0.5)
            scribble(hosts.volume.client, 2 * number + 1, first=rng.randrange(3900))
            host.start()
        recover(hosts)
    log = hosts.target.log("v1-applier")
    assert log.count("event=unknown-position") == 1
    assert set(re.findall(r"event=refused reason=(\w+)", log)) <= {"BUSY"}
    assert set(re.findall(r"event=condition condition=(\w+)", log)) == {"CONSISTENT"}


# Other sources.


@contextlib.contextmanager
def same_random(library: Path) -> Iterator[None]:
    """What is started gets the same random numbers each time."""
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


@contextlib.contextmanager
def another_source(hosts: Hosts, library: Path | None = None) -> Iterator[tuple[Host, NbdClient]]:
    """A host with a capture of its own, and the same bdr.toml else; it is not started."""
    directory = hosts.volume.directory.parent / "other"
    directory.mkdir()
    device = directory / "source"
    with device.open("wb") as file:
        file.truncate(hosts.volume.size)
    with contextlib.ExitStack() as stack:
        with same_random(library) if library else contextlib.nullcontext():
            _, nbd, ring = stack.enter_context(nbd_server(str(device), directory, writes=8192))
        client = stack.enter_context(NbdClient(nbd))
        other = Host(directory / "s")
        other.volumes["v1"] = hosts.source.volumes["v1"] | {"chardev": ring}
        stack.callback(other.stop)
        yield other, client


def stream_of(host: Host) -> bytes:
    capture = open_capture(host.volumes["v1"]["chardev"], Role.OBSERVER)
    try:
        return capture.info.stream
    finally:
        capture.close()
