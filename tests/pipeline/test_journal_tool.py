# SPDX-License-Identifier: GPL-2.0-only
"""`bdr journal` on what the journal's store leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.journal_host import (
    SIZE,
    Host,
    damage,
    host,
    inspect,
    with_writes,
)

__all__ = ["host"]  # a fixture


def test_tool_tells_what_a_journal_holds(host: Host) -> None:
    with_writes(host, close=False)
    before = host.journal.read_bytes()
    result = inspect(host.journal)
    assert result.exit_code == 0
    for said in ("volume      v,", "2 jobs of 16 slots", "sound       yes", "start the applier"):
        assert said in result.output
    assert host.journal.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: damage(path, 4096 + 60), "copy 1 damaged"),
        (lambda path: None, "copy 0 intact, copy 1 intact"),
    ],
)
def test_tool_finds_sound_what_recovers(
    host: Host, spoil: Callable[[Path], None], said: str
) -> None:
    with_writes(host, close=False)
    spoil(host.journal)
    result = inspect(host.journal)
    assert result.exit_code == 0
    assert said in result.output


def spoil_both(path: Path) -> None:
    damage(path, 60)
    damage(path, 4096 + 60)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_both, "copy 0 damaged and copy 1 damaged"),
        (lambda path: damage(path, 8192 + 50), "acknowledged as durable once"),
        (lambda path: os.truncate(path, SIZE - 512), "it was truncated"),
        (lambda path: path.write_bytes(b"x" * SIZE), "no journal"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_tool_finds_unsound_what_is_refused(
    host: Host, spoil: Callable[[Path], None], said: str
) -> None:
    with_writes(host, close=False)
    spoil(host.journal)
    result = inspect(host.journal)
    assert result.exit_code == 72
    assert "sound       no" in result.output
    assert said in result.output


def test_tool_takes_a_blank_journal_for_sound(host: Host) -> None:
    host.journal.write_bytes(bytes(SIZE))
    result = inspect(host.journal)
    assert (result.exit_code, "blank" in result.output) == (0, True)
