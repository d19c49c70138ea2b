# SPDX-License-Identifier: GPL-2.0-only
"""Runs a volume's processes as forks of one that has imported everything.

In a virtual machine without KVM, on a busy host, each new Python takes half a minute to
import what a stage needs. Here a nursery imports it once and forks each stage: they are
processes of their own all the same, to be stopped and killed, and whatever ends by
accident is started anew, as supervisord does.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdr.common.errors import PERMANENT_EXIT_CODES
from bdr.common.host.programs import Program
from bdr.services.runtime.process import end_with_parent
from deploy.command import wait_for
from deploy.stack import Stack

MODULES = ("applier", "reader", "sender", "scanner", "cli.main", "cli.scan", "cli.verifier")
POLL_MS = 20


class ForkedStack(Stack):
    """As `Stack`, but for what it does not need; to be made before any thread is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_dir = directory / "log"
        self.log_dir.mkdir(parents=True)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._nursery = os.fork()
        if not self._nursery:
            self._socket.close()
            end_with_parent(signal.SIGKILL)
            _in_child(_Nursery(theirs).run)
        theirs.close()

    def add(self, programs: Iterable[Program]) -> None:
        for program in programs:
            log = str(self.log_dir / f"{program.name}.log")
            self._ask("start", program.name, command=[*program.command], log=log)

    def run_once(self, words: Sequence[str], *, timeout_s: float) -> tuple[int, str]:
        """Runs `bdr` with these words; its exit code, and what it said."""
        name = f"command-{words[0]}"
        command = [sys.executable, "-m", "bdr.services.cli.main", *words]
        log = str(self.log_dir / f"{name}.log")
        self._ask("start", name, command=command, log=log, is_once=True)
        wait_for(lambda: not self.pid(name), what=f"the end of {words}", timeout_s=timeout_s)
        return self.exit_code(name), self.log(name)

    def start(self, name: str) -> None:
        self._ask("start", name)

    def stop(self, name: str) -> None:
        self._ask("stop", name)

    def pid(self, name: str) -> int:
        return int(self._ask("tell", name)["pid"])

    def exit_code(self, name: str) -> int:
        return int(self._ask("tell", name)["code"])

    def close(self) -> None:
        self._socket.close()  # which ends it, and its children
        os.waitpid(self._nursery, 0)

    def _ask(self, what: str, name: str, **more: object) -> dict[str, Any]:
        self._socket.send(json.dumps({"what": what, "name": name, **more}).encode())
        answer = json.loads(self._socket.recv(1 << 16))
        assert isinstance(answer, dict)
        return answer


@dataclass
class _Child:
    command: list[str] = field(default_factory=list)
    log: str = ""
    pid: int = 0
    code: int = 0
    is_wanted: bool = False


class _Nursery:
    """The process that forks."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._children: dict[str, _Child] = {}

    def run(self) -> None:
        for module in MODULES:
            importlib.import_module(f"bdr.services.{module}")
        while True:
            if select.select([self._requests], [], [], POLL_MS / 1000)[0]:
                asked = self._requests.recv(1 << 16)
                if not asked:
                    break
                self._requests.send(json.dumps(self._serve(json.loads(asked))).encode())
            self._reap()
        for child in self._children.values():
            self._stop(child)

    def _serve(self, asked: dict[str, Any]) -> dict[str, int]:
        child = self._children.setdefault(asked["name"], _Child())
        match asked["what"]:
            case "start":
                child.command = asked.get("command", child.command)
                child.log = asked.get("log", child.log)
                child.is_wanted = not asked.get("is_once", False)
                if not child.pid:
                    self._fork(child)
            case "stop":
                self._stop(child)
        return {"pid": child.pid, "code": child.code}

    def _stop(self, child: _Child) -> None:
        child.is_wanted = False
        if child.pid:
            os.kill(child.pid, signal.SIGCONT)
            os.kill(child.pid, signal.SIGTERM)
            _, status = os.waitpid(child.pid, 0)
            child.pid, child.code = 0, os.waitstatus_to_exitcode(status)

    def _reap(self) -> None:
        for child in self._children.values():
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid, child.code = 0, os.waitstatus_to_exitcode(status)
                    if child.is_wanted and child.code not in PERMANENT_EXIT_CODES:
                        self._fork(child)

    def _fork(self, child: _Child) -> None:
        child.pid = os.fork()
        if child.pid:
            return
        self._requests.close()
        end_with_parent(signal.SIGKILL)
        log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _in_child(lambda: _run(child.command, log))


def _run(command: list[str], log: int) -> None:
    for standard in (1, 2):
        os.dup2(log, standard)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    assert command[1] == "-m"
    importlib.import_module(command[2]).main(command[3:], standalone_mode=True)


def _in_child(what: Any) -> None:
    """Does it, and ends this process: what its parent has on its stack is not its own."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        what()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
