# SPDX-License-Identifier: GPL-2.0-only
"""Which copy of the superblock counts: each row of the decision table, by a damaged disk."""

from __future__ import annotations

import pytest

from bdr.common.journal import superblock as superblock_format
from bdr.common.journal.errors import JournalRefusedError
from bdr.common.journal.layout import BLOCK_BYTES, COPIES
from bdr.common.journal.superblock import Copy
from bdr.common.journal.superblock_choice import BLANK_BYTES, choose
from tests.unit.journal_rig import JOBS_BEFORE, Target, put, refused, with_jobs


@pytest.mark.parametrize("damaged", range(COPIES))
@pytest.mark.parametrize("how", ["zeroed", "torn", "foreign"])
def test_either_copy_alone_recovers_everything_at_any_moment(damaged: int, how: str) -> None:
    target = Target(blocks=16)
    wrong = {
        "zeroed": bytes(4096),
        "torn": superblock_format.SUPERBLOCK_MAGIC,
        "foreign": b"\xeb" * 4096,
    }
    for at in range(40):
        job = target.jobs.write([at % 100 * 8], b"%d" % at)
        while not target.engine.fits(1):
            target.apply_all()
            target.engine.checkpoint()
        target.add(job)
        if at % 3 == 0:
            target.engine.apply_next()
        if at % 5 == 0:
            target.engine.checkpoint()
        whole = bytes(target.journal.disk.content)
        put(target, damaged * BLOCK_BYTES, wrong[how])
        found = target.recover()
        assert found.record == target.jobs.record
        assert Copy.INTACT in found.copies
        put(target, 0, whole)


@pytest.mark.parametrize("damaged", range(COPIES))
def test_both_copies_are_intact_again_after_recovery(damaged: int) -> None:
    target = with_jobs()
    put(target, damaged * BLOCK_BYTES, b"\xff" * 100)
    found = target.restart()
    assert found.jobs == JOBS_BEFORE
    assert set(target.recover().copies) == {Copy.INTACT}


def test_choose_takes_the_higher_generation() -> None:
    target = with_jobs()
    target.apply_all()
    for _ in range(3):
        target.engine.checkpoint()
        superblock, _ = choose(target.journal.read, where="j")
        assert superblock == target.engine.superblock


def test_both_copies_damaged_are_refused() -> None:
    target = with_jobs()
    put(target, 100, b"\xff")
    put(target, BLOCK_BYTES + 100, b"\xff")
    assert "copy 0 damaged and copy 1 damaged" in refused(target)


def test_damaged_and_blank_copies_are_refused() -> None:
    target = with_jobs()
    put(target, 100, b"\xff")
    put(target, BLOCK_BYTES, bytes(BLOCK_BYTES))
    assert "copy 0 damaged and copy 1 blank" in refused(target)


@pytest.mark.parametrize("offset", [0, 2 * BLOCK_BYTES, 65536 + 64, BLANK_BYTES - 1])
def test_zeros_with_a_byte_among_them_are_no_blank_journal(offset: int) -> None:
    content = bytearray(2 * BLANK_BYTES)
    content[offset] = 1
    with pytest.raises(JournalRefusedError):
        choose(lambda at, length: bytes(content[at : at + length]), where="j")


def test_foreign_bytes_are_refused() -> None:
    target = with_jobs()
    put(target, 0, b"#!/bin/sh\n" * 900)
    assert "no journal" in refused(target)


@pytest.mark.parametrize("copies", [(0,), (1,), (0, 1)])
def test_other_version_is_refused_even_beside_an_intact_copy(
    copies: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = with_jobs()
    superblock = target.recover().superblock
    monkeypatch.setattr(superblock_format, "VERSION", 2)
    block = superblock_format.encode_superblock(superblock)
    monkeypatch.setattr(superblock_format, "VERSION", 1)
    for copy in copies:
        put(target, copy * BLOCK_BYTES, block)
    message = refused(target)
    assert "found format version 2; wanted version 1" in message


def test_flipped_bits_of_the_superblock_never_change_what_is_found() -> None:
    target = with_jobs()
    wanted = target.recover()
    whole = bytes(target.journal.disk.content)
    for bit in range(0, 2 * BLOCK_BYTES * 8, 61):
        put(target, bit // 8, bytes([whole[bit // 8] ^ 1 << bit % 8]))
        found = target.recover()
        assert (found.record, found.end, found.jobs) == (wanted.record, wanted.end, wanted.jobs)
        put(target, bit // 8, whole[bit // 8 : bit // 8 + 1])
