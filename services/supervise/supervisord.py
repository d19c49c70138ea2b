# SPDX-License-Identifier: GPL-2.0-only
"""A supervisord of BDR: its files, and what is asked of it while it runs.

The run directory holds everything:

=================  ==========================================================
supervisord.conf   the shipped one, with its variables filled in, so that plain
                   `supervisorctl -c RUN_DIR/supervisord.conf` works
supervisor.sock    its control socket, mode 0700
programs/          one file a process, written by `bdr`
VOLUME/            sockets of a volume's processes
=================  ==========================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

from bdr.common.errors import PermanentError, RetryableError, UsageError
from bdr.common.host import programs
from bdr.common.host.config import Config, Source
from bdr.common.host.programs import Program
from bdr.services.runtime import log

NAME = "supervisord.conf"
_DOWN = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")
ANSWER_S = 5.0
"""A supervisord that lives answers a question at once."""


class NotRunningError(RetryableError):
    """No supervisord answers."""

    exit_code = 2


class SupervisordError(PermanentError):
    """supervisord refused."""


def shipped(name: str) -> Path:
    """A file that comes with BDR: in the checkout, or where an installation has it."""
    checkout = Path(__file__).resolve().parents[2] / name
    if checkout.exists():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "bdr" / Path(name).name


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]
    """supervisor's own waits for ever."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
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
        """Makes the directories and supervisord's configuration.

        Raises:
            UsageError: a directory cannot be made or written to.
        """
        for path, mode in (
            (self.run_dir, 0o755),
            (self.programs_dir, 0o700),
            (Path(log_dir), 0o750),
        ):
            make_directory(path, mode=mode)
        text = shipped(NAME).read_text()
        for variable, value in (("RUN_DIR", str(self.run_dir)), ("LOG_DIR", log_dir)):
            text = text.replace(f"%(ENV_BDR_{variable})s", value.replace("%", "%%"))
        _write(self.conf, text)

    def write(self, wanted: Iterable[Program], *, log_dir: str | None) -> None:
        """Makes the include directory hold these programs and no others."""
        files = programs.files(wanted, log_dir=log_dir)
        for name, text in files.items():
            path = self.programs_dir / name
            if not path.exists() or path.read_text() != text:
                _write(path, text)
        for path in self.programs_dir.glob("*.conf"):
            if path.name not in files:
                path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps two `bdr` commands from changing the set of processes at once."""
        fd = os.open(self.run_dir / "bdr.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # The running supervisord.

    def is_running(self) -> bool:
        """Whether one answers on the socket; a stale socket file is none."""
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
        """What supervisord knows of each process.

        Raises:
            NotRunningError: no supervisord answers.
        """
        found = self._ask("supervisor.getAllProcessInfo", timeout_s=ANSWER_S)
        return cast("list[dict[str, Any]]", found)

    def update(self) -> dict[str, list[str]]:
        """Makes the running processes those of the program files, and waits for it.

        Returns:
            Names of processes that were added, removed and changed.

        Raises:
            NotRunningError: no supervisord answers.
            SupervisordError: it refused.
        """
        return cast("dict[str, list[str]]", self._ask("bdr.update"))

    def stop_all(self) -> None:
        """Stops every process, all at once, and waits for it.

        Raises:
            NotRunningError: no supervisord answers.
        """
        self._ask("supervisor.stopAllProcesses")

    def stop(self, name: str) -> bool:
        """Stops one process, and waits for it; returns whether it ran.

        Raises:
            NotRunningError: no supervisord answers.
        """
        ran = any(
            state["name"] == name and state["statename"] not in _DOWN for state in self.processes()
        )
        if ran:
            self._ask("supervisor.stopProcess", name)
        return ran

    def start(self, name: str) -> None:
        """Starts one process, and does not wait for it.

        Raises:
            NotRunningError: no supervisord answers.
        """
        self._ask("supervisor.startProcess", name, False)

    def _ask(self, method: str, *words: object, timeout_s: float | None = None) -> object:
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


class Scaling:
    """Numbers of processes that were set by `bdr scale`, in a file that outlives reboots.

    An entry holds while bdr.toml names the number that it replaced; a new number
    in bdr.toml ends it.
    """

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir) / "scale.json"

    def counts(self, config: Config) -> dict[tuple[str, str], int]:
        """(volume, stage) to the number that replaces the configured one."""
        found = {}
        for name, stages in self._load().items():
            for stage, entry in stages.items():
                configured = configured_count(config, name, stage)
                if configured is not None and configured == entry.get("instead_of"):
                    found[name, stage] = int(entry["count"])
        return found

    def set(self, config: Config, changes: Mapping[tuple[str, str], int]) -> None:
        """Remembers numbers; the configured number itself ends an entry."""
        tree = self._load()
        for (name, stage), count in changes.items():
            configured = configured_count(config, name, stage)
            entries = tree.setdefault(name, {})
            entries.pop(stage, None)
            if count != configured:
                entries[stage] = {"count": count, "instead_of": configured}
        _write(self._path, json.dumps(tree, indent=2, sort_keys=True) + "\n")

    def _load(self) -> dict[str, dict[str, dict[str, Any]]]:
        try:
            return cast("dict[str, Any]", json.loads(self._path.read_text()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            # No reason to leave a host without replication.
            log.logger().warning(
                "scale-file-damaged", file=str(self._path), reason=str(error), taken="bdr.toml's"
            )
            return {}
        except OSError as error:
            raise UsageError(
                f"{self._path}: {error.strerror}; wanted a file that this user may read"
            ) from error


def configured_count(config: Config, volume: str, stage: str) -> int | None:
    """How many processes of a stage bdr.toml asks for; None if it cannot."""
    found = config.volume.get(volume)
    if not isinstance(found, Source):
        return None
    return {"sender": found.senders, "scanner": found.scanners}.get(stage)


def programs_of(config: Config, supervision: Supervision, scaling: Scaling) -> list[Program]:
    """Every process that ought to run on this host."""
    return programs.from_config(
        config,
        python=sys.executable,
        programs_dir=str(supervision.programs_dir),
        counts=scaling.counts(config),
    )


def make_directory(path: Path, *, mode: int) -> None:
    """Makes a directory that this user can write to.

    Raises:
        UsageError: it cannot be.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"directory {path}: {error.strerror}; wanted one that this user can make: run as "
            "root, or name another"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(
            f"directory {path}: found it not writable; wanted one that this user may write to"
        )


def _write(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; wanted a file that this user may write"
        ) from error
