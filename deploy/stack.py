# SPDX-License-Identifier: GPL-2.0-only
"""A private supervisord with the processes of volumes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from bdr.common.host.programs import Program, files
from deploy.command import SetupError, end, wait_for

ROOT = Path(__file__).parent.parent


def accepts(path: Path) -> bool:
    """Whether a server is listening; the socket's file exists earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Stack:
    """Runs supervisord in `directory` until `close`; also a context manager.

    Args:
        directory: for its socket, program files and logs; its path must be short
            enough for a Unix socket.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_dir = directory / "log"
        self._programs = directory / "programs"
        for made in (directory, self.log_dir, self._programs):
            made.mkdir(parents=True, exist_ok=True)
        control = directory / "supervisor.sock"
        self._process = subprocess.Popen(
            [
                # supervisord ends with this process in any case.
                *("setpriv", "--pdeathsig", "TERM"),
                str(Path(sys.executable).parent / "supervisord"),
                "--configuration",
                str(ROOT / "supervisord.conf"),
                "--silent",
            ],
            cwd=ROOT,
            env=os.environ | {"BDR_RUN_DIR": str(directory), "BDR_LOG_DIR": str(self.log_dir)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        wait_for(
            lambda: accepts(control) or self._process.poll() is not None,
            what="supervisord's socket",
            timeout_s=60,
        )
        if self._process.poll() is not None:
            assert self._process.stderr
            raise SetupError(f"supervisord: {self._process.stderr.read().decode().strip()}")
        self._transport = SupervisorTransport(None, None, f"unix://{control}")
        self._server = ServerProxy("http://127.0.0.1", self._transport)
        self._rpc = self._server.supervisor
        self._all: list[Program] = []

    def add(self, programs: Iterable[Program]) -> None:
        """Writes the program files and starts the programs; running ones continue."""
        added = list(programs)
        self._all += added
        for name, text in files(self._all, log_dir=str(self.log_dir)).items():
            (self._programs / name).write_text(text)
        self._server.bdr.update()
        for program in added:
            self._wait_running(program.name)

    def start(self, name: str) -> None:
        """Starts a program that is stopped."""
        self._rpc.startProcess(self._namespec(name))

    def stop(self, name: str) -> None:
        """Stops a program; ignored if it is not running."""
        try:
            self._rpc.stopProcess(self._namespec(name))
        except Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise

    def pid(self, name: str) -> int:
        """Process id of a program, 0 if it is not running."""
        info = self._rpc.getProcessInfo(self._namespec(name))
        assert isinstance(info, dict)
        return int(info["pid"])

    def _namespec(self, name: str) -> str:
        return next((program.namespec for program in self._all if program.name == name), name)

    def _wait_running(self, name: str) -> None:
        wait_for(lambda: self.pid(name) > 0, what=f"the start of {name}", timeout_s=10)

    def exit_code(self, name: str) -> int:
        """The last exit code of a program."""
        info = self._rpc.getProcessInfo(self._namespec(name))
        assert isinstance(info, dict)
        return int(info["exitstatus"])

    def log(self, name: str) -> str:
        """The log of a program."""
        path = self.log_dir / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """Stops every program, then supervisord."""
        self._transport.close()
        end(self._process)
        if self._process.stderr:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def source_programs(
    volume: str,
    *,
    chardev: str,
    address: str,
    port: int,
    run_dir: Path,
    senders: int = 2,
    scanners: int = 0,
    assume_clean: bool = False,
) -> list[Program]:
    """The processes of a volume on its source host."""
    common = ["--volume", volume, "--chardev", chardev, "--run-dir", str(run_dir)]
    common += ["--address", address, "--port", str(port)]
    flags = ["--assume-clean"] if assume_clean else []
    return [
        Program(
            volume,
            "reader",
            1,
            [*_service("reader"), *common, "--state", f"{run_dir}/{volume}.source", *flags],
        ),
        *(
            Program(volume, "sender", instance, [*_service("sender"), *common])
            for instance in range(1, senders + 1)
        ),
        *(
            Program(volume, "scanner", instance, [*_service("scanner"), *common])
            for instance in range(1, scanners + 1)
        ),
    ]


def target_programs(
    volume: str, *, target: str, state: Path, address: str, port: int, options: Iterable[str] = ()
) -> list[Program]:
    """The processes of a volume on its target host."""
    command = [*_service("applier"), "--volume", volume, "--target", target]
    command += ["--state", str(state), "--address", address, "--port", str(port), *options]
    return [Program(volume, "applier", 1, command)]


def _service(stage: str) -> list[str]:
    return [sys.executable, "-m", f"bdr.services.{stage}"]
