# SPDX-License-Identifier: GPL-2.0-only
"""Parameters, start, end, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bdr.common.capture import abi
from tests.nbdkit.client import NbdClient
from tests.nbdkit.server import DEADLINE_S, PLUGIN, Server, wait_until

Serve = Callable[..., Server]


def start(*parameters: str, cwd: Path) -> str:
    """Standard error of a start that must fail."""
    done = subprocess.run(
        # Not `-U -`, whose directory in /tmp nbdkit leaves behind when it fails.
        ["nbdkit", "-f", "-U", "nbd.sock", str(PLUGIN), *parameters, "--run", "true"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "file= is missing"),
        (["file=disk.img"], "ring= is missing"),
        (["file=", "ring=r"], "file= is empty"),
        (["file=disk.img", "ring="], "ring= is empty"),
        (["file=nothing", "ring=r"], "nothing: No such file or directory"),
        (["file=.", "ring=r"], "wanted a regular file or a block device"),
        (["file=/dev/null", "ring=r"], "wanted a regular file or a block device"),
        (["file=fifo", "ring=r"], "wanted a regular file or a block device"),
        (["file=odd.img", "ring=r"], "has 1000 bytes; wanted a multiple of 512"),
        (["file=empty.img", "ring=r"], "has 0 bytes; wanted a multiple of 512, and not 0"),
        (["file=disk.img", "file=odd.img", "ring=r"], "file= is given twice"),
        (["file=disk.img", "ring=r", "writes=7"], "writes=7: out of range; wanted 8 to"),
        (["file=disk.img", "ring=r", "writes=268435457"], "out of range"),
        (["file=disk.img", "ring=r", "writes=many"], "writes=many: wanted the ring's capacity"),
        (["file=disk.img", "ring=r", "writes=256M"], "MiB are available"),
        (["file=disk.img", "ring=r", "region=2K"], "region=2K: wanted a power of two from 4096"),
        (["file=disk.img", "ring=r", "region=1G"], "region=1G: wanted a power of two"),
        (["file=disk.img", "ring=r", "region=96K"], "region=96K: wanted a power of two"),
        (["file=disk.img", "ring=r", "region=x"], "region=x: wanted a size in bytes"),
        (["file=disk.img", "ring=disk.img"], "exists and is no socket"),
        (["file=disk.img", "ring=missing/r"], "cannot create the lock"),
        (["file=disk.img", f"ring={'r' * 200}"], "path of a socket has at most 107 bytes"),
        (["file=disk.img", "ring=r", "color=red"], "unknown parameter color=red; wanted file="),
    ],
)
def test_wrong_parameter_is_named(disk: Path, parameters: list[str], message: str) -> None:
    directory = disk.parent
    (directory / "odd.img").write_bytes(bytes(1000))
    (directory / "empty.img").touch()
    os.mkfifo(directory / "fifo")
    before = sorted(os.listdir(directory))
    assert message in start(*parameters, cwd=directory)
    assert sorted(os.listdir(directory)) == before


def test_dump_plugin_shows_the_abi_version() -> None:
    done = subprocess.run(
        ["nbdkit", "--dump-plugin", str(PLUGIN)], capture_output=True, text=True, check=True
    )
    values = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert values["bdr_abi_version"] == str(abi.ABI_VERSION)
    assert values["thread_model"] == "parallel"
    assert values["api_version"] == "2"


def test_sockets_and_lock_have_mode_0600_whatever_the_umask(serve: Serve) -> None:
    old = os.umask(0)
    try:
        server = serve()
    finally:
        os.umask(old)
    status = os.stat(server.ring)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(f"{server.ring}.lock").st_mode) == 0o600


def test_nothing_is_left_after_the_end(serve: Serve) -> None:
    server = serve()
    server.observer().close()
    server.stop()
    assert not os.path.exists(server.ring)
    assert not os.path.exists(f"{server.ring}.lock")


def test_second_instance_of_a_ring_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    other = tmp_path / "other.img"
    other.write_bytes(bytes(4096))
    message = start(f"file={other}", f"ring={server.ring}", cwd=tmp_path)
    assert f"ring={server.ring}: in use by another process" in message
    # The first one is as it was.
    server.observer().close()


def test_second_instance_of_a_file_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    message = start(f"file={server.file}", "ring=other", cwd=tmp_path)
    assert "another process has locked it; is it served already?" in message


def test_socket_of_a_killed_server_is_replaced(serve: Serve, tmp_path: Path, disk: Path) -> None:
    server = serve()
    server.kill()
    assert os.path.exists(server.ring)
    with Server(tmp_path, disk) as successor:
        successor.consumer().close()
    assert not os.path.exists(server.ring)


def test_start_in_the_background_with_relative_paths_works(tmp_path: Path, disk: Path) -> None:
    """nbdkit forks and changes to /: threads and paths must survive that."""
    pid_file = tmp_path / "pid"
    subprocess.run(
        ["nbdkit", "-P", str(pid_file), "-U", "nbd", str(PLUGIN), "file=disk.img", "ring=ring"],
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE_S,
    )
    pid = int(pid_file.read_text())
    try:
        server = Server(tmp_path, disk)
        capture = server.consumer()
        with NbdClient(server.nbd) as client:
            client.write(0, b"x" * 512)
        assert capture.status().unpublished == 1
        assert capture.info.underlying == str(disk)
        # The parent has gone, the lock has not.
        message = start(f"file={disk}", f"ring={server.ring}", cwd=tmp_path)
        assert "in use by another process" in message or "is it served already" in message
        capture.close()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert not (tmp_path / "ring").exists()


def test_connections_that_come_and_go_leak_nothing(serve: Serve) -> None:
    server = serve()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    server.wait_idle()
    before = descriptors()
    for _ in range(100):
        server.consumer().close()
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(server.ring)
        peer.close()
    server.wait_idle()
    wait_until(lambda: descriptors() == before)
