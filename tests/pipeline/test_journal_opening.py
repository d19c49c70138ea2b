# SPDX-License-Identifier: GPL-2.0-only
"""Which journal a store opens: whose it is, its size, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bdr.common.errors import StateDiskError, StateError, UsageError
from bdr.common.journal.layout import log_bytes_of
from bdr.common.storage.journal_file import JournalFile
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import NO_JOURNAL
from bdr.common.wire.condition import Condition
from bdr.services.target.journal_store import JournalStore, open_journal
from tests.pipeline.journal_host import (
    MIB,
    SIZE,
    Host,
    damage,
    host,
    inspect,
    with_writes,
)

__all__ = ["host"]  # a fixture


def test_clean_stop_allows_to_go_on_without_a_journal_and_back(host: Host) -> None:
    with_writes(host)
    assert "it was closed" in inspect(host.journal).output
    worker = host.open(journal="none")
    assert host.record.slot == 16
    assert host.record.journal == NO_JOURNAL
    assert host.record.at_start().condition is Condition.CONSISTENT
    worker.put(host.session())
    worker.put(host.write(4096, os.urandom(65536)))
    worker.put(host._job(replace(host.record, clean=True)))
    worker.close()
    worker = host.open()
    # The journal of before is not replayed over what came since.
    assert host.record.slot == 32
    assert host.is_applied()
    worker.close()


def test_killed_applier_does_not_start_without_its_journal(host: Host) -> None:
    with_writes(host, close=False)
    with pytest.raises(StateError, match="start the applier once with that journal"):
        host.open(journal="none")


def test_unclean_stop_without_journal_is_no_prefix_for_the_journal_either(host: Host) -> None:
    worker = host.open(journal="none")
    worker.put(host.session())
    worker.put(host.write(0, os.urandom(65536)))
    worker.close()
    worker = host.open()
    assert host.record.condition is Condition.CATCHING_UP
    worker.close()
    worker = host.open()
    assert host.record.condition is Condition.CATCHING_UP
    worker.close()


@pytest.mark.parametrize("how", ["deleted", "other", "zeroed", "damaged", "truncated"])
def test_journal_in_use_that_is_not_there_is_refused(host: Host, how: str) -> None:
    with_writes(host, close=False)
    if how == "deleted":
        host.journal.unlink()
    elif how == "zeroed":
        host.journal.write_bytes(bytes(SIZE))
    elif how == "damaged":
        damage(host.journal, 100)
        damage(host.journal, 4096 + 100)
    elif how == "truncated":
        os.truncate(host.journal, SIZE - 4096)
    else:
        with_writes(other := Host(host.directory.joinpath("other")), close=False)
        other.journal.rename(host.journal)
    content = host.target.read_bytes()
    with pytest.raises(StateError, match="delete the journal and the state file"):
        host.open()
    assert host.target.read_bytes() == content


def test_journal_of_a_lost_state_file_is_refused(host: Host) -> None:
    with_writes(host, close=False)
    host.state.unlink()
    with pytest.raises(StateError, match="in use, by another state file"):
        host.open()
    host.journal.unlink()
    host.open().close()


def test_closed_journal_of_a_deleted_state_file_begins_anew(host: Host) -> None:
    with_writes(host)
    host.state.unlink()
    worker = host.open()
    assert host.record.condition is Condition.INCONSISTENT
    assert host.record.slot == 0
    worker.close()


def test_bytes_that_are_no_journal_are_never_overwritten(host: Host) -> None:
    host.journal.write_bytes(b"precious" * 4096)
    with pytest.raises(StateError, match="no journal"):
        host.open()
    assert host.journal.read_bytes() == b"precious" * 4096


def test_file_system_that_begins_with_zeros_is_no_blank_journal(host: Host) -> None:
    """btrfs has its first superblock at 64 KiB, and leaves what is before to others."""
    with host.journal.open("wb") as file:
        file.truncate(3 * SIZE)
        file.seek(65536 + 64)
        file.write(b"_BHRfS_M")
    with pytest.raises(StateError, match="no journal"):
        host.open()
    assert host.journal.stat().st_size == 3 * SIZE


def test_blank_file_that_is_bigger_than_the_journal_stays_so(host: Host) -> None:
    with host.journal.open("wb") as file:
        file.truncate(3 * SIZE)
    for _ in range(2):
        host.open().close()
        assert host.journal.stat().st_size == 3 * SIZE


@pytest.mark.parametrize("what", ["target", "state"])
def test_target_or_state_named_as_journal_is_refused(host: Host, what: str) -> None:
    with pytest.raises(StateDiskError, match="named as target or state file too"):
        host.open(journal=str(host.directory / what))


def test_journal_locked_by_another_applier_is_refused(host: Host, directory: Path) -> None:
    worker = host.open()
    other = Host(directory / "other")
    with pytest.raises(StateDiskError, match="locked by another applier"):
        other.open(journal=str(host.journal))
    assert inspect(host.journal).exit_code == 75
    worker.close()


def test_journal_too_small_is_refused(host: Host) -> None:
    with pytest.raises(UsageError, match="--journal-size"):
        host.open(size=SIZE - 1)


@pytest.mark.parametrize("size", [SIZE, 24 * MIB, 40 * MIB])
@pytest.mark.parametrize("close", [True, False])
def test_journal_changes_its_size_between_runs(host: Host, size: int, close: bool) -> None:
    worker = host.open(size=24 * MIB)
    worker.put(host.session())
    for at in range(30):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    if close:
        worker.close()
    else:
        host.crash(worker)
    worker = host.open(size=size)
    assert host.journal.stat().st_size == size
    for at in range(50):
        worker.put(host.write(at * MIB, os.urandom(MIB)))
    host.crash(worker)
    worker = host.open(size=None)
    assert host.journal.stat().st_size == size
    worker.close()
    assert host.is_applied()


def test_journal_on_a_block_device(host: Host) -> None:
    backing = host.directory / "backing"
    with backing.open("wb") as file:
        file.truncate(20 * MIB)
    found = subprocess.run(
        ["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True
    )
    device = found.stdout.strip()
    try:
        worker = host.open(journal=device, size=None)
        worker.put(host.session())
        for at in range(50):
            worker.put(host.write(at * MIB, os.urandom(MIB)))
        host.crash(worker)
        worker = host.open(journal=device, size=None)
        assert host.is_applied()
        store = host.store
        assert isinstance(store, JournalStore)
        assert store._engine.superblock.log_bytes == log_bytes_of(20 * MIB)
        worker.close()
        with pytest.raises(StateError, match="name a bigger one"):
            host.open(journal=device, size=32 * MIB)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_store_opens_only_what_exists(host: Host) -> None:
    with pytest.raises(StateDiskError, match="existing, writable directory"):
        open_journal(
            path=str(host.directory / "missing" / "journal"),
            size_bytes=None,
            device=TargetDevice(str(host.target)),
            record_file=RecordFile(str(host.state)),
            volume="v",
        )


def test_page_cache_is_dropped_before_the_journal_is_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that a killed process left are made durable and read from the disk again."""
    with_writes(host, close=False)
    calls: list[str] = []
    for name in ("drop_page_cache", "read"):
        original = getattr(JournalFile, name)

        def recorded(
            file: JournalFile, *args: int, name: str = name, original: Any = original
        ) -> Any:
            calls.append(name)
            return original(file, *args)

        monkeypatch.setattr(JournalFile, name, recorded)
    host.open().close()
    assert calls[:2] == ["drop_page_cache", "read"]
