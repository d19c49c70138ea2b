# SPDX-License-Identifier: GPL-2.0-only
"""A device is recognised by its content: another one, or one of another moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from bdr.common.storage.record_file import RecordFile
from deploy.command import wait_for
from tests.pipeline.hosts import DEADLINE_S, MIB, Host, Hosts, MakeHosts, Volume, make_hosts

__all__ = ["make_hosts"]  # a fixture

COMPARED = {"assume_clean": False}
"""Settings of a source."""


def fill(volume: Volume, seed: int) -> None:
    """Data all over the first quarter."""
    rng = random.Random(seed)
    for at in range(0, 4 * MIB, 64 << 10):
        volume.client.write(at, rng.randbytes(64 << 10))


def scribble(volume: Volume, seed: int) -> None:
    """Again and again to the same blocks, as a file system does to its journal."""
    rng = random.Random(seed)
    for at in range(100):
        volume.client.write(5 * MIB + at % 20 * 4096, rng.randbytes(4096))


def filled(make_hosts: MakeHosts, *, journal: str = "file", volumes: int = 1) -> Hosts:
    """Both hosts in step, with data."""
    target = {} if journal == "file" else {"journal": "none"}
    hosts = make_hosts(source=COMPARED, target=target, volumes=volumes)
    for at, volume in enumerate(hosts.volumes):
        fill(volume, at)
    hosts.start()
    for at, volume in enumerate(hosts.volumes):
        scribble(volume, at)
        volume.settle()
    return hosts


def end_applier(hosts: Hosts, *, is_clean: bool) -> None:
    """Stops the target, or kills its applier with entries behind the journal's checkpoint."""
    target = hosts.target
    if is_clean:
        target.stop()
        return

    head = hosts.volume.capture.status().head

    def is_checkpointed() -> bool:
        values = (stage["values"] for stage in target.status("v1")["stages"])
        return any((each.get("slot"), each.get("journal_bytes")) == (head, 0) for each in values)

    wait_for(is_checkpointed, what="a checkpoint of all entries", timeout_s=DEADLINE_S)
    scribble(hosts.volume, 11)
    hosts.volume.settle()
    applier = target.pids()["v1-applier"]
    os.kill(applier, signal.SIGSTOP)
    target.kill()
    os.kill(applier, signal.SIGKILL)


def wait_reason(host: Host, fact: str, volume: str = "v1") -> None:
    """Waits until the volume is broken, for a reason that has this fact."""

    def is_shown() -> bool:
        status = host.status(volume)
        return status["health"] == "broken" and fact in " ".join(status["reasons"])

    wait_for(is_shown, what=f"{fact} in the status of {volume}", timeout_s=DEADLINE_S)


def comparisons(host: Host, volume: str = "v1") -> int:
    """How often everything was compared."""
    return host.log(f"{volume}-applier").count("event=unknown-position")


@pytest.mark.parametrize(("journal", "is_clean"), [("file", True), ("file", False), ("none", True)])
def test_another_device_is_refused_and_left_alone_until_it_is_adopted(
    make_hosts: MakeHosts, journal: str, is_clean: bool
) -> None:
    hosts = filled(make_hosts, journal=journal)
    target, volume = hosts.target, hosts.volume
    end_applier(hosts, is_clean=is_clean)
    other = volume.directory / "other"
    other.write_bytes(bytes(2 * volume.size))
    target.volumes["v1"]["target"] = str(other)
    target.start()
    for host in (target, hosts.source):
        wait_reason(host, "bdr adopt v1")
    assert target.log("v1-applier").count("event=wrong-device") == 1
    assert not any(other.read_bytes())

    # The right one again: nothing was lost, and nothing is compared.
    target.stop()
    before = comparisons(target)
    target.volumes["v1"]["target"] = str(volume.target)
    target.start()
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert volume.is_identical()
    assert comparisons(target) == before

    # Or a person takes the other one.
    target.stop()
    target.volumes["v1"]["target"] = str(other)
    target.start()
    wait_reason(target, "bdr adopt v1")
    done = target.bdr("adopt", "v1")
    assert done.returncode == 0, done.stderr
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert comparisons(target) == before + 1
    assert other.read_bytes()[: volume.size] == volume.source.read_bytes()
    # It is the replica's from now on.
    target.stop()
    target.start()
    hosts.source.wait_health("v1", "healthy")
    assert comparisons(target) == before + 1


def test_two_devices_that_have_changed_names_are_refused(make_hosts: MakeHosts) -> None:
    hosts = filled(make_hosts, volumes=2)
    target = hosts.target
    one, two = hosts.volumes
    before = [comparisons(target, volume.name) for volume in hosts.volumes]

    def swap() -> None:
        target.stop()
        third = one.directory / "third"
        one.target.rename(third)
        two.target.rename(one.target)
        third.rename(two.target)
        target.start()

    swap()
    for volume in hosts.volumes:
        wait_reason(target, f"bdr adopt {volume.name}", volume.name)
    swap()
    for volume in hosts.volumes:
        hosts.source.wait_health(volume.name, "healthy")
        volume.settle()
        assert volume.is_identical()
    assert [comparisons(target, volume.name) for volume in hosts.volumes] == before


@pytest.mark.parametrize(("journal", "is_clean"), [("file", True), ("file", False), ("none", True)])
def test_device_that_went_back_to_a_copy_is_compared(
    make_hosts: MakeHosts, journal: str, is_clean: bool
) -> None:
    hosts = filled(make_hosts, journal=journal)
    target, volume = hosts.target, hosts.volume
    target.stop()
    copy = volume.target.read_bytes()
    target.start()
    hosts.source.wait_health("v1", "healthy")
    scribble(volume, 7)
    volume.settle()
    before = comparisons(target)
    end_applier(hosts, is_clean=is_clean)
    volume.target.write_bytes(copy)
    target.start()
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert volume.is_identical()
    assert comparisons(target) == before + 1
    assert target.log("v1-applier").count("event=device-of-another-moment") == 1


@pytest.mark.parametrize("is_clean", [True, False])
def test_state_that_went_back_beside_a_newer_device_is_not_replayed(
    make_hosts: MakeHosts, is_clean: bool
) -> None:
    hosts = filled(make_hosts)
    target, volume = hosts.target, hosts.volume
    state = target.directory / "state"
    copy = target.directory / "copy"
    end_applier(hosts, is_clean=is_clean)
    shutil.copytree(state, copy)
    target.start()
    hosts.source.wait_health("v1", "healthy")
    scribble(volume, 7)
    volume.settle()
    before = comparisons(target)
    target.stop()
    newer = volume.target.read_bytes()
    shutil.rmtree(state)
    copy.rename(state)
    hosts.source.stop()
    target.start()
    target.wait_health("v1", "broken")  # no source
    target.stop()
    assert volume.target.read_bytes() == newer
    assert target.bdr("promote", "v1").returncode == 72
    target.start()
    hosts.source.start()
    hosts.source.wait_health("v1", "healthy")
    volume.settle()
    assert volume.is_identical()
    assert comparisons(target) == before + 1


def test_identity_that_is_gone_is_another_device(make_hosts: MakeHosts) -> None:
    hosts = filled(make_hosts)
    target, volume = hosts.target, hosts.volume
    target.stop()
    name_device(target.directory / "state/v1.state", volume, "serial A")
    before = comparisons(target)
    target.start()
    wait_reason(target, "serial A")
    done = target.bdr("adopt", "v1")
    assert done.returncode == 0, done.stderr
    hosts.source.wait_health("v1", "healthy")
    assert comparisons(target) == before + 1


def name_device(state: Path, volume: Volume, device: str) -> None:
    """The state file is that of a disk with this number."""
    file = RecordFile(str(state))
    try:
        record = file.load(volume="v1", device_sectors=volume.size // 512, device=device)
        file.save(record, file.witness)
    finally:
        file.close()
