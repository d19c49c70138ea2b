# SPDX-License-Identifier: GPL-2.0-only
"""A PostgreSQL server over a data directory, and a client of it that commits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deploy.command import run, wait_for
from tests.databases.background import in_background
from tests.databases.requirements import require

USER = "postgres"
# The server refuses to run as root.
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
START_S = 90.0
BENCH_CLIENTS = 4
BENCH_RATE = 100
"""Transactions a second at most: a fast machine does not fill the devices."""
SETTINGS = """
listen_addresses = ''
shared_buffers = 32MB
min_wal_size = 32MB
max_wal_size = 64MB
checkpoint_timeout = 30s
autovacuum_naptime = 5s
logging_collector = off
"""


def programs() -> Path:
    """Where Debian keeps the newest server's programs; without one the test is skipped."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    found = sorted(versions, key=lambda path: float(path.parts[4]))
    require(bool(found), "PostgreSQL server")
    return found[-1].parent


class Server:
    """Runs while it is open.

    Args:
        data: its data directory.
        sockets: directory of its socket and its log; is made.
    """

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data, self.sockets = data, sockets
        self.programs = programs()
        self.log = sockets / "server.log"
        sockets.mkdir(exist_ok=True)
        shutil.chown(sockets, USER)

    def initialize(self) -> None:
        """Makes the data directory."""
        self.data.mkdir()
        shutil.chown(self.data, USER, USER)
        options = ("--data-checksums", "--auth=trust", "--locale=C.UTF-8")
        run(*AS_USER, str(self.programs / "initdb"), f"--pgdata={self.data}", *options)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Started, which recovers what was not shut down; then shut down."""
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                [
                    *(*AS_USER, "--pdeathsig", "QUIT", str(self.programs / "postgres")),
                    *("-D", str(self.data), "-k", str(self.sockets)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for(
                lambda: self._is_ready() or server.poll() is not None,
                what="PostgreSQL",
                timeout_s=START_S,
            )
            assert server.poll() is None, self.log.read_text()[-3000:]
            yield
            server.send_signal(signal.SIGINT)  # "fast": with a checkpoint
            assert server.wait(START_S) == 0, self.log.read_text()[-3000:]
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGQUIT)  # "immediate", its children first
                server.wait(START_S)

    def _is_ready(self) -> bool:
        words = [str(self.programs / "pg_isready"), "-q", "-h", str(self.sockets)]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def _words(self, program: str, *options: str) -> list[str]:
        return [str(self.programs / program), "-h", str(self.sockets), "-U", USER, *options]

    def tool(self, program: str, *options: str) -> str:
        """Runs a client program to its end.

        Raises:
            SetupError: it failed.
        """
        return run(*self._words(program, *options))

    def query(self, text: str) -> list[list[int]]:
        """Rows of integers."""
        options = ("-d", USER, "-XAtq", "-F,", "-v", "ON_ERROR_STOP=1", "-c", text)
        return [
            [int(value) for value in line.split(",")]
            for line in self.tool("psql", *options).splitlines()
        ]

    @contextlib.contextmanager
    def bench(self) -> Iterator[None]:
        """pgbench in the background; it must not end by itself."""
        options = ("-n", "-c", str(BENCH_CLIENTS), "-R", str(BENCH_RATE), "-T", "3600", USER)
        with in_background(self._words("pgbench", *options)):
            yield

    def connect(self, client: int) -> PsqlClient:
        """A client of this number; for `Clients`."""
        options = ("-d", USER, "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-")
        return PsqlClient(self._words("psql", *options), client)


class PsqlClient:
    """Inserts a row and counts it, by a psql that reads from a pipe."""

    TABLES = """
        create table commits (client int, number bigint, primary key (client, number));
        create table counts (client int primary key, count bigint);
        insert into counts select client, 0 from generate_series(0, 15) client;
    """

    def __init__(self, command: list[str], client: int) -> None:
        self._client = client
        self._psql = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PGOPTIONS": "-c synchronous_commit=on"},
        )
        assert self._psql.stdin
        assert self._psql.stdout
        self._to: IO[str] = self._psql.stdin
        self._from: IO[str] = self._psql.stdout

    def prepare(self, number: int) -> None:
        self._do(
            f"begin; insert into commits values ({self._client}, {number}); "
            f"update counts set count = count + 1 where client = {self._client};"
        )

    def commit(self) -> None:
        self._do("commit;")

    def _do(self, statements: str) -> None:
        self._to.write(f"{statements}\n\\echo done\n")
        self._to.flush()
        line = self._from.readline()
        if line != "done\n":
            raise AssertionError(f"psql: {line}{self._from.read()}")

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._to.close()
        self._psql.wait(30)
        self._from.close()


def newest_commits(server: Server) -> dict[int, int]:
    """Of each client, its last row.

    Raises:
        AssertionError: one before it is missing, or they were counted otherwise.
    """
    rows = server.query(
        "select client, count(number), coalesce(max(number), 0), max(counts.count) "
        "from counts left join commits using (client) group by client order by client"
    )
    assert rows
    for client, count, last, counted in rows:
        assert count == last == counted, f"client {client}: {count} rows, the last is {last}"
    return {client: last for client, _, last, _ in rows if last}


def check(server: Server) -> None:
    """Every index against its table, and the sums of pgbench, while the server runs.

    Raises:
        AssertionError: what is there contradicts itself.
        SetupError: amcheck found something.
    """
    server.tool("pg_amcheck", "-d", USER, "--heapallindexed", "--parent-check")
    (sums,) = server.query(
        "select (select sum(abalance) from pgbench_accounts),"
        " (select sum(tbalance) from pgbench_tellers),"
        " (select sum(bbalance) from pgbench_branches),"
        " (select coalesce(sum(delta), 0) from pgbench_history)"
    )
    assert len(set(sums)) == 1, sums


def check_pages(server: Server) -> None:
    """The checksum of every page of a server that was shut down."""
    run(*AS_USER, str(server.programs / "pg_checksums"), "--check", "-D", str(server.data))
