# SPDX-License-Identifier: GPL-2.0-only
"""BDR's supervisord: its files, and calls to it while it runs.

The run directory holds everything:

=================  ==========================================================
supervisord.conf   the shipped one, with its variables filled in, so that plain
                   `supervisorctl -c RUN_DIR/supervisord.conf` works
supervisor.sock    its control socket, mode 0700
programs/          one file per process, written by `bdr`
VOLUME/            sockets of a volume's processes
=================  ==========================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

from bdr.common.errors import PermanentError, RetryableError, UsageError
from bdr.common.host import programs
from bdr.common.host.programs import APPLIER_STOP_WAIT_S, STOP_WAIT_S, Program
from bdr.services.supervise.files import make_directory, shipped, write_whole

NAME = "supervisord.conf"
_DOWN = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")
ANSWER_S = 5.0
"""Timeout for calls that supervisord answers immediately."""
STOPPED_S = APPLIER_STOP_WAIT_S + 4 * STOP_WAIT_S
"""Timeout for calls that wait until processes have stopped; supervisord kills them before."""


class NotRunningError(RetryableError):
    """No supervisord answers."""

    exit_code = 2


class SupervisordError(PermanentError):
    """A call to supervisord failed."""


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]
    """A connection with a timeout, which supervisor's own lacks."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost")
        self.socketfile = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._timeout_s)


class Supervision:
    """One run directory.

    Args:
        run_dir: see the module's text.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.programs_dir = self.run_dir / "programs"
        self.conf = self.run_dir / NAME
        self.socket = self.run_dir / "supervisor.sock"

    # Files.

    def prepare(self, *, log_dir: str) -> None:
        """Creates the directories and supervisord's configuration.

        Raises:
            UsageError: a directory cannot be created or written to.
        """
        for path, mode in (
            (self.run_dir, 0o755),
            (self.programs_dir, 0o700),
            (Path(log_dir), 0o750),
        ):
            make_directory(path, mode=mode)
        text = shipped(NAME).read_text()
        # A list of patterns, separated by blanks. Relative to the file, it needs no quoting.
        text = text.replace("files=%(ENV_BDR_RUN_DIR)s/", "files=")
        for variable, value in (("RUN_DIR", str(self.run_dir)), ("LOG_DIR", log_dir)):
            text = text.replace(f"%(ENV_BDR_{variable})s", value.replace("%", "%%"))
        write_whole(self.conf, text)

    def write(self, wanted: Iterable[Program], *, log_dir: str | None) -> None:
        """Writes these programs to the include directory, and removes all others."""
        files = programs.files(wanted, log_dir=log_dir)
        for name, text in files.items():
            path = self.programs_dir / name
            if not path.exists() or path.read_text() != text:
                write_whole(path, text)
        for path in self.programs_dir.glob("*.conf"):
            if path.name not in files:
                path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Prevents two `bdr` commands from changing the set of processes concurrently."""
        fd = os.open(self.run_dir / "bdr.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # The running supervisord.

    def is_running(self) -> bool:
        """Whether supervisord accepts connections on the socket; false for a stale socket file."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ANSWER_S)
            try:
                probe.connect(str(self.socket))
            except PermissionError as error:
                raise UsageError(
                    f"supervisord at {self.socket}: not permitted to this user; run as root"
                ) from error
            except OSError:
                return False
        return True

    def processes(self) -> list[dict[str, Any]]:
        """supervisord's information on each process.

        Raises:
            NotRunningError: no supervisord answers.
        """
        found = self._call("supervisor.getAllProcessInfo", timeout_s=ANSWER_S)
        return cast("list[dict[str, Any]]", found)

    def update(self) -> dict[str, list[str]]:
        """Updates the running processes to the program files, and waits for it.

        Returns:
            Names of processes that were added, removed and changed.

        Raises:
            NotRunningError: no supervisord answers.
            SupervisordError: the call failed.
        """
        return cast("dict[str, list[str]]", self._call("bdr.update", timeout_s=STOPPED_S))

    def stop_all(self) -> None:
        """Stops all processes concurrently, and waits for it.

        Raises:
            NotRunningError: no supervisord answers.
        """
        self._call("supervisor.stopAllProcesses", timeout_s=STOPPED_S)

    def stop(self, name: str) -> bool:
        """Stops one process, and waits for it; returns whether it ran.

        Raises:
            NotRunningError: no supervisord answers.
        """
        ran = any(
            state["name"] == name and state["statename"] not in _DOWN for state in self.processes()
        )
        if ran:
            self._call("supervisor.stopProcess", name, timeout_s=STOPPED_S)
        return ran

    def start(self, name: str) -> None:
        """Starts one process, and does not wait for it.

        Raises:
            NotRunningError: no supervisord answers.
        """
        self._call("supervisor.startProcess", name, False, timeout_s=ANSWER_S)

    def _call(self, method: str, *words: object, timeout_s: float) -> object:
        if not self.is_running():
            found = "a stale socket" if self.socket.exists() else "none"
            raise NotRunningError(
                f"supervisord: found {found} at {self.socket}; wanted a running one: start it "
                "with `bdr run` or `systemctl start bdr`"
            )
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        transport._get_connection = lambda: _Connection(str(self.socket), timeout_s)
        server = ServerProxy("http://127.0.0.1", transport)
        try:
            namespace, name = method.split(".")
            return getattr(getattr(server, namespace), name)(*words)
        except Fault as fault:
            raise SupervisordError(f"supervisord: {method}: {fault.faultString}") from fault
        except TimeoutError as error:
            raise NotRunningError(
                f"supervisord at {self.socket}: no answer within {timeout_s:g} s; it hangs, or "
                "was stopped"
            ) from error
        except OSError as error:
            raise NotRunningError(
                f"supervisord at {self.socket}: {error.strerror or error}; it has just ended, or "
                "this user may not talk to it"
            ) from error
        finally:
            transport.close()
