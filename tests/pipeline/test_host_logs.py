# SPDX-License-Identifier: GPL-2.0-only
"""Logs that are not read, or cannot be written, do not stop replication."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdr.common.host import programs
from deploy.command import end, wait_for
from tests.pipeline.blocked import fill_output
from tests.pipeline.hosts import BIN, DEADLINE_S, MIB, MakeHosts, Volume, bdr, make_hosts
from tests.pipeline.pair import Pair
from tests.pipeline.proxy import BadLink

__all__ = ["make_hosts"]  # a fixture

STAGES = ("v-applier", "v-reader", "v-sender-1", "v-sender-2")


@pytest.fixture
def linked(make_pair: Callable[..., Pair]) -> Iterator[tuple[Pair, BadLink]]:
    """A pair, and the link between its sides."""
    pair = make_pair()
    with BadLink(pair.port, pair.port + 1) as link:
        pair.address = link.address
        pair.start()
        pair.client.write(0, b"first".ljust(4096))
        pair.settle()
        yield pair, link


def interrupt(link: BadLink, pair: Pair) -> None:
    """A loss of all connections, which every stage logs, and a write meanwhile."""
    link.cut()
    pair.client.write(4096, os.urandom(4096))
    link.mend()
    pair.settle()


def supervisord_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_stages_whose_logs_are_not_read_go_on(linked: tuple[Pair, BadLink]) -> None:
    pair, link = linked
    pids = {name: pair.stack.pid(name) for name in STAGES}
    supervisord = supervisord_of(pids["v-reader"])
    os.kill(supervisord, signal.SIGSTOP)
    try:
        for pid in pids.values():
            fill_output(pid)
        for _ in range(3):
            interrupt(link, pair)
        # It can be ended, too.
        os.kill(pids["v-sender-2"], signal.SIGTERM)
        state = Path(f"/proc/{pids['v-sender-2']}/stat")
        wait_for(
            lambda: state.read_text().rpartition(")")[2].split()[0] == "Z",
            what="its end",
            timeout_s=DEADLINE_S,
        )
    finally:
        os.kill(supervisord, signal.SIGCONT)
    # What was queued is written now; a sender that still pauses misses an interruption.
    wait_for(
        lambda: pair.stack.log("v-sender-1").count("event=connected") >= 2,
        what="the lines of the sender",
        timeout_s=DEADLINE_S,
    )
    interrupt(link, pair)
    assert pair.becomes_identical()


def test_logs_whose_directory_is_gone_are_lost_and_nothing_else(
    linked: tuple[Pair, BadLink],
) -> None:
    pair, link = linked
    log_dir = pair.stack.log_dir
    shutil.rmtree(log_dir)
    # A process can be started, although its log cannot.
    before = pair.stack.pid("v-sender-1")
    os.kill(before, signal.SIGKILL)
    wait_for(
        lambda: pair.stack.pid("v-sender-1") not in (0, before),
        what="another sender",
        timeout_s=DEADLINE_S,
    )
    interrupt(link, pair)
    log_dir.mkdir()
    interrupt(link, pair)
    wait_for(
        lambda: "event=connected" in pair.stack.log("v-sender-1"),
        what="its log",
        timeout_s=DEADLINE_S,
    )


def test_logs_that_cannot_be_rotated_are_lost_and_nothing_else(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "LOG_BYTES", 100)
    pair = make_pair()
    with BadLink(pair.port, pair.port + 1) as link:
        pair.address = link.address
        pair.start()
        pair.settle()
        shutil.rmtree(pair.stack.log_dir)
        pids = [pair.stack.pid(name) for name in STAGES]
        for _ in range(3):
            interrupt(link, pair)
        assert [pair.stack.pid(name) for name in STAGES] == pids
        pair.stack.log_dir.mkdir()
        interrupt(link, pair)
        wait_for(
            lambda: any("lines-lost" in path.read_text() for path in pair.stack.log_dir.iterdir()),
            what="the number of lost lines",
            timeout_s=DEADLINE_S,
        )


def test_status_answers_while_no_log_of_a_host_is_read(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    host = hosts.source
    pids = host.pids()
    with host.frozen():
        for pid in pids.values():
            fill_output(pid)
        hosts.target.supervisorctl("restart", "v1-applier")  # all stages of the source log this
        hosts.volume.client.write(0, os.urandom(4096))
        hosts.volume.settle()
        host.wait_health("v1", "healthy")
    assert hosts.volume.is_identical()


def test_an_output_of_run_that_is_not_read_blocks_no_command(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.start()
    hosts.target.stop()
    reading, writing = os.pipe()
    try:
        hosts.target.output = writing
        hosts.target.start()
        hosts.target.wait_health("v1", "healthy")
        supervisord = int((hosts.target.run_dir / "supervisord.pid").read_text())
        fill_output(supervisord, 1)
        hosts.target.supervisorctl("restart", "v1-applier")
        hosts.target.wait_health("v1", "healthy")
        assert hosts.target.bdr("status", "v1").returncode == 0
    finally:
        os.close(reading)
        os.close(writing)


class Unread:
    """A `bdr client` or `bdr server` whose output nothing reads."""

    def __init__(self, run_dir: Path, *words: str, is_closed: bool) -> None:
        self.run_dir = run_dir
        self._reading, writing = os.pipe()
        self._is_closed = is_closed
        self.process = subprocess.Popen(
            [str(BIN / "bdr"), *words, "--run-dir", str(run_dir), "--debug"],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        os.close(writing)

    def block(self) -> None:
        if self._is_closed:
            os.close(self._reading)
        else:
            fill_output(self.process.pid, 1)

    def health(self) -> str:
        done = bdr("status", "--json", "--run-dir", str(self.run_dir))
        return str(json.loads(done.stdout)["health"]) if done.stdout else "unknown"

    def close(self) -> None:
        end(self.process, timeout_s=DEADLINE_S)
        if not self._is_closed:
            os.close(self._reading)


@pytest.mark.parametrize("is_closed", [False, True], ids=["not read", "closed"])
def test_sides_whose_output_goes_nowhere_go_on(directory: Path, is_closed: bool) -> None:
    with contextlib.ExitStack() as stack:
        volume = stack.enter_context(Volume(directory, "x", size=16 * MIB, writes=8192).open())
        link = stack.enter_context(BadLink(volume.port, volume.port + 1))
        both = ["--port", str(volume.port), "--state-dir", str(directory / "state")]
        server = Unread(
            directory / "server",
            *("server", "--address", "127.0.0.1", "--target", str(volume.target), *both),
            is_closed=is_closed,
        )
        stack.callback(server.close)
        client = Unread(
            directory / "client",
            *("client", "--address", link.address, "--chardev", volume.ring, *both),
            *("--underdev", str(volume.source), "--noreplication"),
            is_closed=is_closed,
        )
        stack.callback(client.close)
        wait_for(lambda: client.health() == "healthy", what="healthy", timeout_s=DEADLINE_S)
        for side in (client, server):
            side.block()
        for number in range(3):
            link.cut()
            volume.client.write(number * 4096, os.urandom(4096))
            link.mend()
            volume.settle()
        for side in (client, server):
            wait_for(lambda: side.health() == "healthy", what="healthy", timeout_s=DEADLINE_S)  # noqa: B023
        assert volume.is_identical()
    assert client.process.returncode == 0
    assert server.process.returncode == 0


def test_a_side_without_standard_streams_writes_no_log_to_its_device(directory: Path) -> None:
    target = directory / "target"
    target.write_bytes(bytes(16 * MIB))
    words = [str(BIN / "bdr"), "server", "--target", str(target), "--run-dir", str(directory / "r")]
    words += ["--state-dir", str(directory / "state"), "--port", "0"]
    with Volume(directory, "x", size=MIB, writes=8192).open() as volume:
        words[-1] = str(volume.port)
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], start_new_session=True
        )
        try:
            wait_for(
                lambda: "applier" in bdr("status", "--run-dir", str(directory / "r")).stdout,
                what="its applier",
                timeout_s=DEADLINE_S,
            )
        finally:
            end(process, timeout_s=DEADLINE_S)
    assert not target.read_bytes().strip(b"\0")
