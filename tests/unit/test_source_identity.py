# SPDX-License-Identifier: GPL-2.0-only
"""Who a source is: its record, and its generation."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bdr.common.copies import Kept
from bdr.common.errors import StateDiskError, StateError
from bdr.common.source import identity
from bdr.common.source.generation import INTERVAL_S, Generation
from bdr.common.source.identity import (
    FINDINGS_RANGES_MAX,
    NO_TARGET,
    Findings,
    SourceRecord,
    of_kept,
)
from bdr.common.storage.copies_file import CopiesFile
from bdr.common.storage.source_file import SourceFile
from bdr.common.wire.codec import GENERATIONS_MAX

RECORD = SourceRecord(
    b"source-of-tests!", "v", 1024, "wwid 7", (b"gener-02", b"gener-01"), NO_TARGET
)
FOUND = Findings(9, 4096, 512, 1024, ((8, 1), (16, 1)))
NOW: dict[str, Any] = {"volume": "v", "device_sectors": 1024, "device": "wwid 7"}


def bound(record: SourceRecord = RECORD, **found: Any) -> SourceRecord:
    return record.bound_to(**(NOW | found), where="here")


def test_same_device_is_the_same_source() -> None:
    assert bound() == RECORD


def test_device_may_grow_and_get_a_name() -> None:
    assert bound(device_sectors=2048) == replace(RECORD, device_sectors=2048)
    assert bound(replace(RECORD, device="")) == RECORD


@pytest.mark.parametrize(
    "found",
    [{"volume": "w"}, {"device": "wwid 8"}, {"device": ""}, {"device_sectors": 1023}],
)
def test_another_device_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        bound(**found)


def test_record_has_its_frozen_names_on_disk() -> None:
    values = {
        "source": b"source-of-tests!",
        "volume": "v",
        "device_sectors": 1024,
        "device": "wwid 7",
        "generations": b"gener-02gener-01",
        "assumed_for": bytes(16),
        "findings": {
            "verified_utc": 0,
            "compared_bytes": 0,
            "ignored_bytes": 0,
            "differing_bytes": 0,
            "unrepaired": b"",
        },
    }
    assert RECORD.values() == values
    assert of_kept(Kept(9, values), where="here") == RECORD
    assert of_kept(None, where="here") is None


@pytest.mark.parametrize(
    "change",
    [
        {"future": 1},
        {"source": b"short"},
        {"source": 5},
        {"generations": b""},
        {"generations": b"gener-0"},
        {"generations": 5},
        {"findings": 5},
        {"findings": {}},
        {"findings": Findings().values() | {"future": 1}},
        {"findings": Findings().values() | {"verified_utc": -1}},
        {"findings": Findings().values() | {"unrepaired": b"123"}},
    ],
)
def test_record_of_another_form_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        of_kept(Kept(9, RECORD.values() | change), where="here")


def test_record_without_generations_is_an_error() -> None:
    values = {name: value for name, value in RECORD.values().items() if name != "generations"}
    with pytest.raises(StateError):
        of_kept(Kept(9, values), where="here")


def test_file_keeps_the_id_and_every_generation_that_it_made(tmp_path: Path) -> None:
    path = str(tmp_path / "v.source")
    ids: set[bytes] = set()
    made: list[bytes] = []
    for start in range(3):
        file = SourceFile(path)
        record = file.begin(**NOW)
        ids.add(record.source)
        if not start:
            made += record.generations
        assert list(record.generations) == made
        made.insert(0, file.save_new_generation())
        file.save_assumption(b"target-of-tests!")
        file.save_findings(replace(FOUND, verified_utc=start))
        file.close()
    assert len(ids) == 1
    assert len(set(made)) == 4
    file = SourceFile(path)
    record = file.begin(**NOW)
    assert record.assumed_for == b"target-of-tests!"
    assert record.findings == replace(FOUND, verified_utc=2)
    file.close()


def test_as_many_generations_are_kept_as_a_hello_may_have() -> None:
    record = RECORD
    for number in range(GENERATIONS_MAX + 5):
        record = record.with_generation(number.to_bytes(8, "little"))
    assert len(record.generations) == GENERATIONS_MAX
    assert record.generations[0] == (GENERATIONS_MAX + 4).to_bytes(8, "little")
    kept = Kept(9, record.values())
    assert of_kept(kept, where="here") == record
    # And as many findings.
    many = ((1 << 48, 1 << 40),) * FINDINGS_RANGES_MAX
    most = (1 << 64) - 1
    findings = Findings(most, most, most, most, many)
    full = replace(record, device="d" * 200, findings=findings)
    assert of_kept(Kept(9, full.values()), where="here") == full
    assert identity.COPIES.encode(full.values(), 1)


def test_two_threads_that_save_lose_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader saves generations in a thread of its own, and the assumption in its loop's."""
    file = SourceFile(str(tmp_path / "v.source"))
    file.begin(**NOW)
    other = threading.Thread(target=file.save_assumption, args=[b"target-of-tests!"])
    save = CopiesFile.save

    def save_while_the_other_begins(self: CopiesFile, values: dict[str, Any]) -> None:
        monkeypatch.setattr(CopiesFile, "save", save)
        other.start()
        other.join(0.2)  # returns at once where nothing keeps it out
        save(self, values)

    monkeypatch.setattr(CopiesFile, "save", save_while_the_other_begins)
    generation = file.save_new_generation()
    other.join()
    file.close()
    again = SourceFile(str(tmp_path / "v.source"))
    record = again.begin(**NOW)
    assert (record.generations[0], record.assumed_for) == (generation, b"target-of-tests!")
    again.close()


def test_two_files_have_two_ids(tmp_path: Path) -> None:
    files = [SourceFile(str(tmp_path / name)) for name in "ab"]
    assert len({file.begin(**NOW).source for file in files}) == 2
    for file in files:
        file.close()


def test_file_is_for_one_process(tmp_path: Path) -> None:
    file = SourceFile(str(tmp_path / "v.source"))
    with pytest.raises(StateDiskError):
        SourceFile(str(tmp_path / "v.source"))
    file.close()


# The generation: only a durable one is told.

A, B, C = b"gener-0a", b"gener-0b", b"gener-0c"


def test_nothing_is_due_while_nothing_goes() -> None:
    generation = Generation((A,))
    assert not any(generation.is_due(float(at)) for at in range(100))
    assert (generation.newest, generation.known) == (A, (A,))


def test_first_batch_makes_a_new_one_and_it_is_told_when_it_is_durable() -> None:
    generation = Generation((A,))
    generation.dispatched(10.0)
    assert generation.is_due(10.0)
    assert generation.newest == A
    generation.saved(B)
    assert (generation.newest, generation.known) == (B, (B, A))


def test_one_is_made_at_most_once_a_second_and_not_before_the_last_is_durable() -> None:
    generation = Generation((A,))
    generation.dispatched(10.0)
    assert generation.is_due(10.0)
    generation.dispatched(10.1)
    assert not generation.is_due(10.0 + 2 * INTERVAL_S)
    generation.saved(B)
    assert not generation.is_due(10.0 + INTERVAL_S - 0.01)
    assert generation.is_due(10.0 + INTERVAL_S)
    generation.saved(C)
    assert generation.known == (C, B, A)
    assert not generation.is_due(100.0)


def test_batch_that_goes_while_one_is_saved_makes_the_next() -> None:
    """It may have been sent before the saved one was told."""
    generation = Generation((A,))
    generation.dispatched(10.0)
    assert generation.is_due(10.0)
    generation.dispatched(10.5)
    generation.saved(B)
    assert generation.is_due(11.0)


def test_oldest_is_forgotten() -> None:
    generation = Generation(tuple(at.to_bytes(8, "little") for at in range(GENERATIONS_MAX)))
    generation.saved(A)
    assert len(generation.known) == GENERATIONS_MAX
    assert generation.known[:2] == (A, bytes(8))
