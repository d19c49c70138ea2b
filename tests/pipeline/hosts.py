# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts on this one, run by `bdr run` from a bdr.toml each, driven by tests.

Everything that a user does is done as the user does it: by `bdr`, supervisorctl
and signals.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import tomli_w

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import BdrError
from bdr.services.cli.status import MonitorLocation, query
from bdr.services.runtime.process import end_with_parent
from bdr.services.supervise.supervisord import Supervision
from deploy.command import end, wait_for
from deploy.demo import free_port
from deploy.nbd_source import nbd_server
from tests.nbdkit.client import NbdClient

MIB = 1 << 20
BIN = Path(sys.executable).parent
DEADLINE_S = 60.0


def tool(name: str) -> str:
    """Path of a program that `make test` brings: without it, nothing would be tested."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert path, f"{name}: not installed; run `make test`, or deploy/test-packages.sh"
    return path


def bdr(
    *words: str, within: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [*within, str(BIN / "bdr"), *words],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        **options,
    )


def descendants(pid: int) -> list[int]:
    """Process ids of a process's children, and of theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        new = children.get(left.pop(), [])
        found += new
        left += new
    return found


class Host:
    """One host: its bdr.toml and, once started, its supervisord."""

    def __init__(self, directory: Path) -> None:
        self.within: Sequence[str] = ()
        """Words that run a command on this host, if it is not the one that the tests run on."""
        self.directory = directory
        directory.mkdir()
        self.config = directory / "bdr.toml"
        self.run_dir = directory / "r"
        self.log_dir = directory / "log"
        self.supervision = Supervision(str(self.run_dir))
        self.volumes: dict[str, dict[str, Any]] = {}
        self.host: dict[str, Any] = {
            "run_dir": str(self.run_dir),
            "state_dir": str(directory / "state"),
            "log_dir": str(self.log_dir),
        }
        self.output = subprocess.DEVNULL
        """Standard output of `bdr run`."""
        self._process: subprocess.Popen[bytes] | None = None

    def move(self, directory: Path) -> None:
        """Has its files in another directory; before it is started."""
        self.run_dir, self.log_dir = directory / "r", directory / "log"
        self.supervision = Supervision(str(self.run_dir))
        self.host |= {
            "run_dir": str(self.run_dir),
            "state_dir": str(directory / "state"),
            "log_dir": str(self.log_dir),
        }

    def write_config(self) -> None:
        """Writes bdr.toml from `host` and `volumes`."""
        self.config.write_text(tomli_w.dumps({"host": self.host, "volume": self.volumes}))

    def start(self) -> None:
        """`bdr run`, until its supervisord answers."""
        self.write_config()
        self._process = subprocess.Popen(
            [*self.within, str(BIN / "bdr"), "run", "--config", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Nothing is left running, even if the tests are killed.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        process = self._process
        wait_for(
            lambda: self.supervision.is_running() or process.poll() is not None,
            what="bdr run",
            timeout_s=DEADLINE_S,
        )
        if process.poll() is not None:
            assert process.stderr
            raise AssertionError(process.stderr.read().decode())

    def stop(self, *, at_once: bool = True) -> None:
        """SIGTERM to supervisord, as systemd does.

        Args:
            at_once: have every process stopped first; else one stage after the other.
        """
        if self._process is not None:
            if at_once:
                with contextlib.suppress(BdrError):
                    self.supervision.stop_all()
            end(self._process, timeout_s=DEADLINE_S)
            assert self._process.stderr
            self._process.stderr.close()
            self._process = None

    def kill(self) -> None:
        """SIGKILL to supervisord."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)
        assert self._process.stderr
        self._process.stderr.close()
        self._process = None

    def kill_all(self) -> None:
        """SIGKILL to supervisord and all that it runs, as when the host is lost."""
        assert self._process is not None
        # Suspended, it neither starts a process meanwhile nor releases the id of one.
        self._process.send_signal(signal.SIGSTOP)
        for pid in descendants(self._process.pid):
            os.kill(pid, signal.SIGKILL)
        self.kill()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stops supervisord, and nothing else."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def bdr(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`bdr` with this host's configuration."""
        return bdr(*words, within=self.within, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """In which `bdr` uses this host's configuration."""
        return os.environ | {"BDR_CONFIG": str(self.config)}

    def supervisorctl(self, *words: str) -> str:
        """supervisorctl, as a user calls it."""
        done = subprocess.run(
            [str(BIN / "supervisorctl"), "-c", str(self.run_dir / "supervisord.conf"), *words],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        return done.stdout + done.stderr

    def pids(self) -> dict[str, int]:
        """Process id of each program; 0 if it is not running."""
        return {str(p["name"]): int(p["pid"]) for p in self.supervision.processes()}

    def status(self, volume: str, timeout_s: float = 10.0) -> Mapping[str, Any]:
        """What `bdr status --json` prints, without what supervisord says."""
        return query(MonitorLocation(volume, str(self.run_dir / volume)), timeout_s).to_map()

    def wait_health(self, volume: str, word: str) -> None:
        """Waits until the volume's health is `word`."""
        wait_for(
            lambda: self.status(volume)["health"] == word,
            what=f"health {word} of {volume}",
            timeout_s=DEADLINE_S,
        )

    def log(self, program: str) -> str:
        """What a program has logged."""
        path = self.log_dir / f"{program}.log"
        return path.read_text() if path.exists() else ""


class Volume:
    """A source's device and its target's file."""

    def __init__(self, directory: Path, name: str, *, size: int, writes: int) -> None:
        self.name = name
        self.size = size
        self.port = free_port()
        self.directory = directory / f"volume-{name}"
        self.source = self.directory / "source"
        self.target = self.directory / "target"
        self.writes = writes

    @contextlib.contextmanager
    def open(self) -> Iterator[Self]:
        """Serves the source, and connects to it."""
        self.directory.mkdir()
        self.make_images()
        with contextlib.ExitStack() as self._captured:
            self._capture()
            yield self

    def make_images(self) -> None:
        """Makes what the source and the target hold at first: two blank files."""
        for path in (self.source, self.target):
            with path.open("wb") as file:
                file.truncate(self.size)

    def _capture(self) -> None:
        self.ring = self.serve(self._captured)
        self.capture: Capture = open_capture(self.ring, Role.OBSERVER)
        self._captured.callback(self.capture.close)

    def serve(self, stack: contextlib.ExitStack) -> str:
        """Makes the captured device, until `stack` is closed; returns the ring's path."""
        self.server, self.nbd, ring = stack.enter_context(
            nbd_server(str(self.source), self.directory, writes=self.writes)
        )
        self.client = stack.enter_context(NbdClient(self.nbd))
        return ring

    def capture_anew(self) -> None:
        """Takes the capture away, and makes it anew in the same place; the stages stay."""
        self._captured.close()
        self._capture()

    def settle(self) -> None:
        """Waits until everything written is durable on the target."""

        def is_level() -> bool:
            status = self.capture.status()
            return status.tail == status.head

        wait_for(is_level, what="the replica's last batch", timeout_s=DEADLINE_S)

    def is_identical(self) -> bool:
        """Compares both files byte by byte."""
        return self.source.read_bytes() == self.target.read_bytes()


class Hosts:
    """A source host and a target host, with their volumes; up while it is open."""

    def __init__(
        self,
        directory: Path,
        *,
        volumes: int = 1,
        size: int = 16 * MIB,
        writes: int = 8192,
        source: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = Host(directory / "s")
        self.target = Host(directory / "t")
        self.address = "127.0.0.1"
        self.volumes = [
            Volume(directory, f"v{at + 1}", size=size, writes=writes) for at in range(volumes)
        ]
        self._settings = (dict(source or {}), dict(target or {}))
        self._open = contextlib.ExitStack()

    @property
    def volume(self) -> Volume:
        """The only one."""
        (volume,) = self.volumes
        return volume

    def start(self) -> None:
        """Starts both hosts, and waits until every volume is healthy."""
        self.target.start()
        self.source.start()
        for volume in self.volumes:
            self.source.wait_health(volume.name, "healthy")
            self.target.wait_health(volume.name, "healthy")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for volume in self.volumes:
                stack.enter_context(volume.open())
                self.source.volumes[volume.name] = {
                    "role": "source",
                    "address": self.address,
                    "port": volume.port,
                    "chardev": volume.ring,
                    "assume_clean": True,
                    "rpo_seconds": 2,
                    **self._settings[0],
                }
                self.target.volumes[volume.name] = {
                    "role": "target",
                    "address": self.address,
                    "port": volume.port,
                    "target": str(volume.target),
                    **self._settings[1],
                }
            stack.callback(self.target.stop)
            stack.callback(self.source.stop)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


MakeHosts = Callable[..., Hosts]


@pytest.fixture
def make_hosts(directory: Path) -> Iterator[MakeHosts]:
    """Makes a pair of hosts; they are taken down after the test."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Hosts:
            return stack.enter_context(Hosts(directory, **settings))

        yield make
