# SPDX-License-Identifier: GPL-2.0-only
"""`bdr client` and `bdr server`: a side from nothing but options."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.command import end, wait_for
from tests.pipeline.hosts import BIN, DEADLINE_S, MIB, Volume, bdr


class Side:
    """A `bdr client` or `bdr server`, and what it prints."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="r", dir=directory)) / "r"
        self._output = (self.run_dir.parent / "output").open("wb")
        self.process = subprocess.Popen(
            [str(BIN / "bdr"), *words, "--run-dir", str(self.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        return (self.run_dir.parent / "output").read_text()

    def health(self) -> str:
        done = bdr("status", "--json", "--run-dir", str(self.run_dir))
        return str(json.loads(done.stdout)["health"]) if done.stdout else "unknown"

    def wait_health(self, wanted: str) -> None:
        wait_for(lambda: self.health() == wanted, what=wanted, timeout_s=DEADLINE_S)

    def close(self) -> None:
        end(self.process, timeout_s=DEADLINE_S)
        self._output.close()


@pytest.fixture
def volume(directory: Path) -> Iterator[Volume]:
    with Volume(directory, "x", size=16 * MIB, writes=8192).open() as volume:
        yield volume


def client_words(volume: Volume) -> list[str]:
    words = ["client", "--address", "127.0.0.1", "--port", str(volume.port)]
    words += ["--state-dir", str(volume.source.parent / "client-state")]
    return [*words, "--chardev", volume.ring, "--underdev", str(volume.source)]


def server_words(volume: Volume, directory: Path) -> list[str]:
    words = ["server", "--address", "127.0.0.1", "--port", str(volume.port)]
    return [*words, "--target", str(volume.target), "--state-dir", str(directory / "state")]


@pytest.fixture
def sides(volume: Volume, directory: Path) -> Iterator[tuple[Side, Side]]:
    with contextlib.ExitStack() as stack:
        server = Side(directory, *server_words(volume, directory))
        stack.callback(server.close)
        client = Side(directory, *client_words(volume), "--noreplication", "--verbose")
        stack.callback(client.close)
        wait_for(lambda: client.health() == "healthy", what="healthy", timeout_s=DEADLINE_S)
        yield client, server


def test_client_and_server_replicate_and_leave_nothing_behind(
    sides: tuple[Side, Side], volume: Volume, directory: Path
) -> None:
    client, server = sides
    for at in range(200):
        volume.client.write(at * 4096, os.urandom(4096))
    volume.settle()

    # --noreplication was applied: nothing was compared, and both sides say so.
    assert 'event=assume-clean assumption="applied: ' in client.said
    assert 'assume_clean="applied: ' in server.said
    assert "compared_bytes" not in client.said

    # A second client of the same device says who has it, and disturbs nothing.
    second = bdr(*client_words(volume))
    assert second.returncode == 67
    assert "another process is the consumer" in second.stdout
    assert "bdr-reader exited permanently with code 67" in second.stderr
    assert client.health() == "healthy"

    # A second server of the same target.
    words = server_words(volume, directory)
    words[words.index("--port") + 1] = str(volume.port + 10)
    second = bdr(*words)
    assert second.returncode in (66, 72), second.stdout + second.stderr
    assert "locked by another" in second.stdout

    # Ctrl-C.
    os.kill(client.process.pid, signal.SIGINT)
    assert client.process.wait(DEADLINE_S) == 0
    volume.client.write(0, b"while it was away".ljust(4096))
    again = Side(directory, *client_words(volume), "--noprint")
    try:
        volume.settle()
    finally:
        again.close()
    server.close()
    assert server.process.returncode == 0
    assert volume.is_identical()
    # It went on where it was, by the state that outlives the run directory.
    assert server.said.count("event=unknown-position") == 1
    assert "level=info" not in again.said
    assert sorted(path.name for path in (directory / "state").iterdir()) == [
        "bdr.state",
        "bdr.state.journal",
    ]
    for side in (client, server, again):
        assert not side.run_dir.exists()


def test_commands_find_a_side_by_its_run_directory(
    sides: tuple[Side, Side], volume: Volume, directory: Path
) -> None:
    run_dir = str(sides[0].run_dir)
    volume.client.write(4096, b"written".ljust(4096))
    for command in ("status", "wait", "verify", "resync"):
        done = bdr(command, "--run-dir", run_dir)
        assert done.returncode == 0, (command, done)
    done = bdr("verify", "--run-dir", run_dir, "--json")
    assert json.loads(done.stdout)["is_equal"]

    # Where none runs, nothing is well, and nothing is made.
    nowhere = directory / "nowhere"
    for command in ("status", "wait", "top", "verify", "resync"):
        done = bdr(command, "--run-dir", str(nowhere))
        assert done.returncode in (2, 64), (command, done)
        assert f"run directory {nowhere}: found no" in done.stderr
        assert "a running `bdr client`" in done.stderr
    words = ["--chardev", volume.ring, "--address", "127.0.0.1", "--port", str(volume.port)]
    done = bdr("verify", "--run-dir", str(nowhere), *words)
    assert done.returncode == 2
    assert "no reader answers" in done.stderr
    assert not nowhere.exists()


def test_a_killed_client_leaves_no_process_behind(
    sides: tuple[Side, Side],
) -> None:
    client, _ = sides
    pid = int((client.run_dir / "supervisord.pid").read_text())
    os.kill(client.process.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="its end", timeout_s=DEADLINE_S)
    shutil.rmtree(client.run_dir)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("--port", "70000"), 64, "--port: found 70000; wanted a whole number from 1 to 65534"),
        (("--senders", "0"), 64, "--senders: found 0; wanted a whole number from 1 to 64"),
        (("--volume", "a b"), 64, "--volume: found 'a b'; wanted 1 to 64 letters"),
        (("--rpo-seconds", "0"), 64, "--rpo-seconds: found 0.0; wanted a number of seconds"),
        (("--on-event", "x 'y"), 64, '--on-event: found "x \'y": no closing quotation'),
        (("--address", ""), 64, "--address: found ''; wanted a host name or address"),
        (("--chardev", "/nonexistent"), 67, "capture /nonexistent: No such file"),
        (("--underdev", "/nonexistent"), 66, "underdev /nonexistent: No such file"),
        (("--underdev", "/dev/null"), 66, "underdev /dev/null: the capture"),
    ],
)
def test_wrong_options_are_named_at_once(
    volume: Volume, change: tuple[str, str], code: int, said: str
) -> None:
    before = set(Path("/run").glob("bdr-*"))
    done = bdr(*client_words(volume), *change)
    assert said in done.stderr
    assert done.returncode == code
    assert set(Path("/run").glob("bdr-*")) == before


def test_a_run_directory_that_exists_is_refused(volume: Volume, directory: Path) -> None:
    done = bdr(*client_words(volume), "--run-dir", str(directory))
    assert done.returncode == 64
    assert "does not exist yet" in done.stderr
    assert volume.source.exists()


def test_replica_of_a_server_is_promoted_demoted_and_adopted(
    sides: tuple[Side, Side], volume: Volume
) -> None:
    client, server = sides
    volume.client.write(4096, b"written".ljust(4096))
    volume.settle()
    for command, health in (("promote", "promoted"), ("demote", "healthy"), ("adopt", "healthy")):
        done = bdr(command, "--run-dir", str(server.run_dir), "bdr")
        assert done.returncode == 0, (command, done)
        server.wait_health(health)
    client.wait_health("healthy")
    assert server.process.poll() is None
    assert server.said.count("event=unknown-position") == 2
    volume.settle()
    assert volume.is_identical()
