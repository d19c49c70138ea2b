# SPDX-License-Identifier: GPL-2.0-only
"""A missing entry is a torn tail, unless a witness says that it was durable once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdr.common.journal import entry as entry_format
from bdr.common.journal.entry import Kind, decode_entry_header, entry_bytes
from bdr.common.journal.layout import BLOCK_BYTES, LOG_OFFSET, UNSYNCED_BYTES_MAX, Cursor
from bdr.common.wire.batch import BATCH_SLOTS_MAX
from tests.unit.journal_rig import Target, forge, header_at, put, refused, with_jobs


def test_hole_in_what_was_durable_is_refused() -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    put(target, offset + BLOCK_BYTES + 100, b"rot")
    assert "acknowledged as durable once" in refused(target)


def test_hole_that_only_the_superblock_knows_of_is_refused() -> None:
    target = with_jobs()
    target.engine.apply_next()
    target.engine.checkpoint()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    assert "acknowledged as durable once" in refused(target)


def test_hole_whose_witness_stands_a_lap_further_is_refused() -> None:
    target = Target(blocks=12)
    for at in range(6):
        target.add(target.jobs.write([at * 8], b"x"))
    target.apply_all()
    target.engine.checkpoint()
    target.engine.checkpoint()
    for at in range(3):
        target.add(target.jobs.write([at * 8, 100 + at * 8], b"y"))
    put(target, LOG_OFFSET, bytes(512))
    assert "acknowledged as durable once" in refused(target)


def test_later_entries_of_the_same_group_are_no_witness() -> None:
    target = with_jobs()
    target.add(*(target.jobs.write([at * 8], b"group") for at in range(4)))
    offset, _ = header_at(target, 4)
    put(target, offset, bytes(512))
    found = target.recover()
    assert found.jobs == 4


def test_superblock_written_within_a_group_is_no_witness() -> None:
    target = with_jobs(1)
    target.apply_all()
    target.engine.append(target.jobs.write([8], b"lost"))
    target.engine.append(target.jobs.write([16], b"after it"))
    target.engine.checkpoint()
    offset, _ = header_at(target, 1)
    put(target, offset, bytes(512))
    assert target.recover().jobs == 0


def test_skip_of_the_same_group_is_no_witness() -> None:
    target = Target(blocks=9)
    for at in range(3):
        target.add(target.jobs.write([at * 8], b"x"))
    target.apply_all()
    target.engine.checkpoint()
    target.engine.checkpoint()
    target.engine.append(target.jobs.write([0], b"lost"))
    target.engine.append(target.jobs.write([8], b"behind a skip"))
    offset, _ = header_at(target, 3)
    skip = decode_entry_header(target.journal.read(LOG_OFFSET + 8 * BLOCK_BYTES, BLOCK_BYTES))
    assert skip is not None
    assert skip.kind is Kind.SKIP
    put(target, offset, bytes(512))
    assert target.recover().jobs == 0


def test_payload_that_looks_like_a_witness_is_none() -> None:
    target = with_jobs(2)
    _, header = header_at(target, 1)
    fake = bytearray(BLOCK_BYTES)
    entry_format._seal(fake, b"", replace(header, durable=99, cursor=Cursor(0, 99)))
    job = target.jobs.write([0], b"x")
    target.engine.append(replace(job, payload=bytes(fake)))
    target.engine.commit()
    offset, _ = header_at(target, 2)
    put(target, offset, bytes(512))
    assert target.recover().jobs == 2


@pytest.mark.parametrize("changes", [{"run": 1}, {"run": 99}, {"journal": bytes(range(16))}])
def test_entry_of_another_run_or_journal_is_no_witness(changes: dict[str, object]) -> None:
    target = with_jobs()
    offset, _ = header_at(target, 1)
    put(target, offset, bytes(512))
    forge(target, 2, durable=99, **changes)
    assert target.recover().jobs == 1
    _, sound = header_at(target, 0)
    forge(target, 2, run=sound.run, journal=sound.journal)
    refused(target)


def test_witness_behind_the_longest_group_and_a_skip_is_found() -> None:
    """A skip does not count against the group, but it moves the witness on."""
    entry = entry_bytes(BATCH_SLOTS_MAX)
    target = Target(blocks=10 * entry // BLOCK_BYTES - 1)
    sectors = [at % 128 * 8 for at in range(BATCH_SLOTS_MAX)]
    for _ in range(7):
        target.add(target.jobs.write(sectors, b"before"))
    target.apply_all()
    target.engine.checkpoint()
    target.engine.checkpoint()
    lost_at = target.engine.replayed_bytes + target.engine.superblock.checkpoint.position
    for _ in range(7):
        target.engine.append(target.jobs.write(sectors, b"group"))
    assert target.engine.unapplied_bytes == 0
    rest = (UNSYNCED_BYTES_MAX - 7 * entry) // BLOCK_BYTES - 8
    target.engine.append(target.jobs.write(sectors[:rest], b"group"))
    assert target.engine.unapplied_bytes == 0
    # What does not fit into the group any more is the first of the next, and the witness.
    witness_at = target.engine.replayed_bytes + target.engine.superblock.checkpoint.position
    target.engine.append(target.jobs.write(sectors[:16], b"witness"))
    assert target.engine.unapplied_bytes == witness_at - lost_at > UNSYNCED_BYTES_MAX
    put(target, LOG_OFFSET + lost_at, bytes(512))
    refused(target)
