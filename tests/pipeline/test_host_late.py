# SPDX-License-Identifier: GPL-2.0-only
"""What a host lacks may come late: no process has to be started by hand then."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.errors import DeviceError
from deploy.command import end, wait_for
from deploy.nbd_source import nbd_server
from tests.nbdkit.client import NbdClient
from tests.pipeline.hosts import (
    BIN,
    DEADLINE_S,
    MIB,
    Host,
    Hosts,
    MakeHosts,
    Volume,
    bdr,
    make_hosts,
)

__all__ = ["make_hosts"]  # a fixture


def waits(host: Host, name: str) -> bool:
    """Whether the status shows a process as waiting, with the reason."""
    states = {stage["name"]: stage for stage in host.status("v1")["stages"]}
    stage = states.get(name)
    return stage is not None and stage["state"] == "waiting" and bool(stage["waits_for"])


def wait_waiting(host: Host, name: str) -> None:
    wait_for(lambda: waits(host, name), what=f"{name} to wait", timeout_s=DEADLINE_S)
    assert host.status("v1")["health"] in ("broken", "degraded")


def replicates(hosts: Hosts) -> None:
    """Healthy on both sides, and what is written arrives."""
    for host in (hosts.target, hosts.source):
        host.wait_health("v1", "healthy")
    hosts.volume.client.write(0, os.urandom(4096))
    hosts.volume.settle()
    assert hosts.volume.is_identical()


@pytest.mark.parametrize("missing", ["target", "state", "journal"])
def test_a_device_or_directory_that_comes_late(
    make_hosts: MakeHosts, directory: Path, missing: str
) -> None:
    hosts = make_hosts()
    late = directory / "late"
    if missing == "target":
        hosts.target.volumes["v1"]["target"] = str(late)
    else:
        hosts.target.volumes["v1"][missing] = str(late / "file")
    hosts.source.start()
    hosts.target.start()
    wait_waiting(hosts.target, "v1-applier")
    pid = hosts.target.pids()["v1-applier"]
    if missing == "target":
        late.symlink_to(hosts.volume.target)
    else:
        late.mkdir()
    replicates(hosts)
    # It was the same process all the time: nothing was restarted.
    assert hosts.target.pids()["v1-applier"] == pid


def test_a_port_that_is_in_use_for_a_time(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    with socket.create_server(("127.0.0.1", hosts.volume.port)):
        hosts.source.start()
        hosts.target.start()
        wait_waiting(hosts.target, "v1-applier")
    replicates(hosts)


def test_a_capture_that_comes_late(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    ring = Path(hosts.volume.ring)
    away = ring.with_name("away")
    ring.rename(away)
    hosts.target.start()
    hosts.source.start()
    for name in ("v1-reader", "v1-sender-1", "v1-scanner-1"):
        wait_waiting(hosts.source, name)
    away.rename(ring)
    replicates(hosts)


def test_a_capture_that_goes_and_comes_back(make_hosts: MakeHosts) -> None:
    """As its nbdkit does, when it is restarted."""
    hosts = make_hosts()
    hosts.start()
    volume = hosts.volume
    volume.server.kill()
    volume.server.wait(DEADLINE_S)
    wait_waiting(hosts.source, "v1-reader")  # the others notice when it begins anew
    with (
        nbd_server(str(volume.source), volume.directory, writes=8192) as (_, nbd, _ring),
        NbdClient(nbd) as client,
    ):
        client.write(4096, os.urandom(4096))
        hosts.source.wait_health("v1", "healthy")
        wait_for(volume.is_identical, what="the write", timeout_s=DEADLINE_S)


def test_a_process_that_waits_can_be_stopped(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.target.volumes["v1"]["target"] += "-missing"
    hosts.target.start()
    wait_waiting(hosts.target, "v1-applier")
    assert "stopped" in hosts.target.supervisorctl("stop", "v1-applier")
    hosts.target.stop(at_once=False)
    said = (hosts.target.log_dir / "supervisord.log").read_text()
    assert "SIGKILL" not in said


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of its own."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "bdr-test", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("journal", ["32MiB", None], ids=["journal", "no journal"])
def test_a_target_without_room_goes_on_when_there_is_some(
    make_hosts: MakeHosts, directory: Path, journal: str | None
) -> None:
    settings = {"journal_size": journal} if journal else {"journal": "none"}
    with small_disk(directory / "disk", "6m"):
        hosts = make_hosts(target=settings)
        target = directory / "disk" / "target"
        with target.open("wb") as file:
            file.truncate(hosts.volume.size)
        hosts.volume.target = target
        hosts.target.volumes["v1"]["target"] = str(target)
        hosts.start()
        filler = directory / "disk" / "filler"
        filler.write_bytes(bytes(4 * MIB))
        for at in range(0, 3 * MIB, 1 << 16):
            hosts.volume.client.write(at, os.urandom(1 << 16))
        wait_waiting(hosts.target, "v1-applier")
        filler.unlink()
        replicates(hosts)
        hosts.target.stop()  # before its disk is away


def test_a_state_without_room_goes_on_when_there_is_some(
    make_hosts: MakeHosts, directory: Path
) -> None:
    with small_disk(directory / "disk", "64k"):
        filler = directory / "disk" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        hosts = make_hosts(
            source={"state": str(directory / "disk" / "source")},
            target={"state": str(directory / "disk" / "state"), "journal": "none"},
        )
        hosts.target.start()
        hosts.source.start()
        wait_waiting(hosts.source, "v1-reader")
        filler.unlink()
        replicates(hosts)
        hosts.source.stop()
        hosts.target.stop()


def test_a_side_in_the_foreground_ends_at_the_start_and_waits_later(directory: Path) -> None:
    """A wrong word is the user's to see at once; what happens later passes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(small_disk(directory / "disk", "6m"))
        volume = stack.enter_context(Volume(directory, "x", size=16 * MIB, writes=8192).open())
        target = directory / "disk" / "target"
        run_dir = directory / "r"
        server = ["server", "--address", "127.0.0.1", "--port", str(volume.port)]
        server += ["--state-dir", str(directory / "state"), "--run-dir", str(run_dir)]
        server += ["--target", str(target)]
        assert bdr(*server).returncode == DeviceError.exit_code
        with target.open("wb") as file:
            file.truncate(volume.size)
        sides = [server, ["client", "--address", "127.0.0.1", "--port", str(volume.port)]]
        sides[1] += ["--chardev", volume.ring, "--state-dir", str(directory / "state")]
        sides[1] += ["--noreplication"]
        for words in sides:
            process = subprocess.Popen(
                [str(BIN / "bdr"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(end, process, timeout_s=DEADLINE_S)
        volume.client.write(0, os.urandom(4096))
        volume.settle()
        filler = directory / "disk" / "filler"
        filler.write_bytes(bytes(4 * MIB))
        for at in range(0, 3 * MIB, 1 << 16):
            volume.client.write(at, os.urandom(1 << 16))
        wait_for(
            lambda: "waits:" in bdr("status", "--run-dir", str(run_dir)).stdout,
            what="the server to wait",
            timeout_s=DEADLINE_S,
        )
        filler.unlink()
        volume.settle()
        assert volume.source.read_bytes() == target.read_bytes()


def test_run_as_process_1_keeps_its_stages(directory: Path, make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    host = hosts.target
    host.write_config()
    process = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(str(BIN / "bdr"), "run", "--config", str(host.config)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(host.supervision.is_running, what="bdr run", timeout_s=DEADLINE_S)
        wait_for((host.run_dir / "supervisord.pid").exists, what="its pid", timeout_s=DEADLINE_S)
        assert int((host.run_dir / "supervisord.pid").read_text()) == 1
        hosts.source.start()
        hosts.source.wait_health("v1", "healthy")
        hosts.volume.client.write(0, os.urandom(4096))
        hosts.volume.settle()
        said = (host.log_dir / "supervisord.log").read_text()
        assert said.count("spawned: 'v1-applier'") == 1
        assert said.count("spawned: 'v1-monitor'") == 1
        host.supervision.stop_all()
    finally:
        process.kill()  # it ignores SIGTERM; its namespace ends with it
        process.wait(DEADLINE_S)


@pytest.mark.parametrize("name", ["a b", "100%(x)s", 'it\'s "x";#\\ü'])
def test_paths_with_special_characters(directory: Path, make_hosts: MakeHosts, name: str) -> None:
    hosts = make_hosts()
    odd = directory / name
    odd.mkdir()
    target = odd / "target"
    target.symlink_to(hosts.volume.target)
    for host, own in ((hosts.target, odd / "t"), (hosts.source, odd / "s")):
        own.mkdir()
        host.move(own)
    hosts.target.volumes["v1"]["target"] = str(target)
    hosts.target.volumes["v1"]["state"] = str(odd / "t.state")
    hosts.target.volumes["v1"]["journal"] = str(odd / "t.journal")
    hosts.start()
    replicates(hosts)
    assert "v1-applier" in hosts.target.supervisorctl("status")
    assert hosts.target.log("v1-applier")
