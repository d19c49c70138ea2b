# SPDX-License-Identifier: GPL-2.0-only
"""A SQLite database: a client that commits to it, and its check."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

ROW_BYTES_MAX = 3000
ROWS = 3000
"""Of so many the blobs are kept: the database does not fill the device."""
CHECKPOINT_PAGES = 100


class SqliteClient:
    """Each transaction adds a row and counts it; some change an older one."""

    def __init__(self, path: Path, journal_mode: str) -> None:
        self._rng = random.Random(1)
        self._database = sqlite3.connect(path, isolation_level=None)
        for statement in (
            f"pragma journal_mode = {journal_mode}",
            "pragma synchronous = full",
            f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}",
            "create table rows (number integer primary key, data blob, word text)",
            "create index words on rows (word)",
            "create table counts (count integer)",
            "insert into counts values (0)",
        ):
            self._database.execute(statement)

    def prepare(self, number: int) -> None:
        do = self._database.execute
        do("begin immediate")
        data = self._rng.randbytes(self._rng.randrange(ROW_BYTES_MAX))
        do("insert into rows values (?, ?, ?)", (number, data, self._rng.randbytes(12).hex()))
        do("update counts set count = count + 1")
        if number % 7 == 0:
            data = self._rng.randbytes(self._rng.randrange(3 * ROW_BYTES_MAX))
            row = self._rng.randrange(1, number)
            do("update rows set data = ? where number = ?", (data, row))
        do("update rows set data = null where number = ?", (number - ROWS,))

    def commit(self) -> None:
        self._database.execute("commit")

    def close(self) -> None:
        self._database.close()


def is_unrecovered(path: Path) -> bool:
    """Whether a log or a rollback journal with content is beside the database."""
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    return any(file.exists() and file.stat().st_size for file in beside)


def newest_row(path: Path) -> int:
    """Opens the database, which recovers it; returns the last row's number.

    Raises:
        AssertionError: it is damaged, or a row before the last is missing.
    """
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("pragma integrity_check").fetchall()
        assert found == [("ok",)], found
        count, last = database.execute(
            "select count(*), coalesce(max(number), 0) from rows"
        ).fetchone()
        (counted,) = database.execute("select count from counts").fetchone()
        assert count == last == counted
    return int(last)
