# SPDX-License-Identifier: GPL-2.0-only
"""A command's comparer: what it makes of both sides' content, and of a target that refuses."""

from __future__ import annotations

import itertools
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from bdr.common.errors import StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan import events as e
from bdr.common.scan.digests import block_digests, digest
from bdr.common.scan.plan import Chunk, pack_bits
from bdr.common.scan.settings import ComparerSettings
from bdr.common.scan.verifier import Findings, Verifier, VerifySettings, chunks_of
from bdr.common.storage.target_device import TargetDevice
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Committed, Grant, Revoked, Verified, VerifyBegin, VerifyEnd
from bdr.services.target.checksummer import Checksummer
from bdr.services.target.store import StoreWorker

STREAM = b"stream-of-tests!"
MIB = 2048
"""Sectors."""

Answer = Callable[[Checksums], Digests]


class Desk:
    """A verifier whose reader, target and threads are this test.

    Args:
        ranges: that are verified.
        differing: sectors that differ, until they are taken out.
        answer: in place of a target that gives its digests.
    """

    def __init__(
        self,
        ranges: list[Chunk],
        *,
        differing: set[int] | None = None,
        answer: Answer | None = None,
        verify: VerifySettings | None = None,
        buffers: int = 2,
    ) -> None:
        self.machine = Verifier(
            stream=STREAM,
            ranges=ranges,
            settings=ComparerSettings(buffers=buffers),
            verify=verify,
        )
        self.differing = differing if differing is not None else set()
        self.answer = answer or self.digests
        self.busy: set[int] = set()
        """Sectors where writes pass."""
        self.bad: set[int] = set()
        """Sectors that the source cannot read."""
        self.grants: list[list[Chunk]] = []
        self.ended: list[int] = []
        """Leases, as the verifier ended them."""
        self.shown = 0
        """Bytes of progress."""
        self.now_at = 100.0
        self.last: list[e.Action] = []
        self._chunks: dict[int, list[Chunk]] = {}
        self.handle(e.Tick(self.now_at))
        self.handle(e.LinksUp())

    # Content: zeros, at the target ones where it differs.

    def content(self, sector: int, sectors: int, *, of_target: bool) -> bytes:
        data = bytearray(sectors * SECTOR_BYTES)
        for at in self.differing if of_target else ():
            if sector <= at < sector + sectors:
                data[(at - sector) * SECTOR_BYTES] = 1
        return bytes(data)

    def digests(self, asked: Checksums) -> Digests:
        make = block_digests if asked.block_sectors else digest
        found = [make(self.content(*chunk, of_target=True)) for chunk in asked.ranges]
        return Digests(asked.request, b"".join(found), DigestsRefused.NONE, "")

    # Events.

    def handle(self, event: e.Event) -> None:
        """Has it take an event, and answers at once whatever it asks."""
        waiting: deque[e.Event] = deque([event])
        while waiting:
            for action in self.machine.handle(waiting.popleft()):
                waiting.extend(self._perform(action))

    def _perform(self, action: e.Action) -> Iterator[e.Event]:
        match action:
            case e.SendToReader(VerifyBegin(request, ranges)):
                self.grants.append(ranges)
                lease = len(self.grants)
                self._chunks[lease] = ranges
                yield e.Answered(Grant(request, lease, STREAM, 7, ranges))
            case e.SendToReader(VerifyEnd(lease)):
                self.ended.append(lease)
                flags = [
                    at in self.busy
                    for sector, sectors in self._chunks[lease]
                    for at in range(sector, sector + sectors)
                ]
                yield e.Answered(Verified(lease, pack_bits(np.array(flags)) if any(flags) else b""))
            case e.SendToTarget(asked):
                yield e.DigestsArrived(self.answer(asked))
            case e.Read(job, _, chunks):
                own = b"".join(digest(self.content(*chunk, of_target=False)) for chunk in chunks)
                bad = {index: found for index, found in self._bad(chunks) if found}
                yield e.ChunksRead(job, own, bad)
            case e.HashBlocks(job, _, chunks):
                blocks = [block_digests(self.content(*chunk, of_target=False)) for chunk in chunks]
                yield e.BlocksHashed(job, blocks)
            case e.Progress(size):
                self.shown += size
            case e.Finished() | e.Interrupted() | e.Stop():
                self.last.append(action)

    def _bad(self, chunks: list[Chunk]) -> Iterator[tuple[int, list[int]]]:
        for index, (sector, sectors) in enumerate(chunks):
            yield (
                index,
                sorted({(at - sector) // 8 for at in self.bad if 0 <= at - sector < sectors}),
            )

    def run(self, *, rounds: int = 2000, stop: Callable[[], bool] = lambda: False) -> Findings:
        """Rounds of a loop, until it is finished."""
        for _ in range(rounds):
            if self.machine.is_finished or stop():
                break
            self.handle(e.RoomSeen(0))
            self.now_at += 0.05
            self.handle(e.Tick(self.now_at))
        return self.machine.findings


def finished(desk: Desk) -> Findings:
    """What was found by the end, which is said once."""
    found = desk.run()
    assert desk.last == [e.Finished()]
    assert desk.machine.handle(e.RoomSeen(0)) == []
    assert desk.machine.handle(e.Tick(desk.now_at + 100)) == []
    return found


# Ranges.


def test_ranges_are_cut_into_chunks_of_a_mebibyte() -> None:
    assert chunks_of([(0, 2 * MIB + 8), (3 * MIB + 1, 7)]) == [
        (0, MIB),
        (MIB, MIB),
        (2 * MIB, 8),
        (3 * MIB + 1, 7),
    ]


def test_leases_are_of_so_many_chunks_and_of_all_of_them_once() -> None:
    desk = Desk([(0, 5 * MIB)], verify=VerifySettings(lease_chunks=2))
    found = finished(desk)
    assert [len(chunks) for chunks in desk.grants] == [2, 2, 1]
    assert [*itertools.chain(*desk.grants)] == chunks_of([(0, 5 * MIB)])
    assert desk.ended == [1, 2, 3]
    assert found == Findings(compared_bytes=5 << 20)
    assert desk.shown == 5 << 20


def test_nothing_to_verify_is_finished_at_once() -> None:
    assert finished(Desk([])) == Findings()


# What differs.


def test_blocks_that_differ_are_named_joined_and_in_order() -> None:
    desk = Desk([(0, 3 * MIB)], differing={2 * MIB + 3, 9, 17, 15, 40})
    found = finished(desk)
    assert found.differing == [(8, 16), (40, 8), (2 * MIB, 8)]
    assert found.busy == found.unreadable == []


def test_last_block_that_differs_ends_with_its_range() -> None:
    assert finished(Desk([(0, 12)], differing={11})).differing == [(8, 4)]


def test_block_that_differs_where_a_write_passed_is_looked_at_again() -> None:
    desk = Desk([(0, MIB)], differing={9, 65})
    desk.busy = {14}
    desk.run(stop=lambda: bool(desk.ended))
    desk.busy = set()
    desk.differing.discard(9)
    found = finished(desk)
    assert found.differing == [(64, 8)]
    assert found.busy == []
    assert desk.grants == [[(0, MIB)], [(8, 8)]]
    assert found.compared_bytes == desk.shown == 1 << 20


def test_block_that_still_differs_when_no_write_passes_is_named() -> None:
    desk = Desk([(0, MIB)], differing={9})
    desk.busy = {8}
    desk.run(stop=lambda: bool(desk.ended))
    desk.busy = set()
    assert finished(desk).differing == [(8, 8)]


def test_block_that_is_always_busy_is_counted_as_that_after_some_tries() -> None:
    desk = Desk([(0, MIB)], differing={9, 65}, verify=VerifySettings(tries=3))
    desk.busy = {9, 65}
    found = finished(desk)
    assert (found.differing, found.busy) == ([], [(8, 8), (64, 8)])
    assert desk.grants == [[(0, MIB)]] + [[(8, 8), (64, 8)]] * 3


def test_equal_block_where_a_write_passed_is_no_matter() -> None:
    desk = Desk([(0, MIB)])
    desk.busy = {9}
    assert finished(desk) == Findings(compared_bytes=1 << 20)


def test_blocks_that_the_source_cannot_read_are_named_and_not_called_different() -> None:
    desk = Desk([(0, MIB)], differing={9, 65})
    desk.bad = {12, 200}
    found = finished(desk)
    assert found.unreadable == [(8, 8), (200, 8)]
    assert found.differing == [(64, 8)]
    assert found.reasons == set()


# A target that refuses.


@pytest.fixture(params=["epoch-wait0", "epoch", "vg-waiting", "plain"])
def unreadable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Answer]:
    """A target of this name, which ends after half a MiB, behind its checksummer."""
    path = tmp_path / request.param
    path.write_bytes(bytes(SECTOR_BYTES * MIB))
    device = TargetDevice(str(path))
    os.truncate(path, SECTOR_BYTES * MIB // 2)
    worker = SimpleNamespace(wait_applied=_nothing)
    checksummer = Checksummer(device, cast(StoreWorker, worker))

    def answer(asked: Checksums) -> Digests:
        checksummer.put(b"verifier", asked)
        select.select([checksummer], [], [], 10)
        ((_, digests),) = checksummer.answers()
        return digests

    yield answer
    checksummer.close()
    device.close()


def _nothing() -> None:
    """All that was accepted is on the device."""


def test_range_that_the_target_cannot_read_is_unreadable_whatever_its_device_is_called(
    unreadable: Answer,
) -> None:
    """Once `epoch` or `wait` in a path made it an interruption, which was tried again and again."""
    found = finished(Desk([(0, 8), (MIB // 2, 8)], answer=unreadable))
    assert found.unreadable == [(MIB // 2, 8)]
    assert found.differing == found.busy == []
    assert len(found.reasons) == 1


@pytest.mark.parametrize("reason", [DigestsRefused.BAD_RANGES, DigestsRefused.UNREADABLE])
def test_chunks_of_a_lease_that_is_refused_for_good_are_verified_each_by_itself(
    reason: DigestsRefused,
) -> None:
    def answer(asked: Checksums) -> Digests:
        if any(sector == MIB for sector, _ in asked.ranges):
            return Digests(asked.request, b"", reason, "wait for no epoch")
        return desk.digests(asked)

    desk = Desk([(0, 3 * MIB)], differing={9}, answer=answer)
    found = finished(desk)
    assert found.unreadable == [(MIB, MIB)]
    assert found.reasons == {"wait for no epoch"}
    assert found.differing == [(8, 8)]
    assert desk.grants[1:] == [[(0, MIB)], [(MIB, MIB)], [(2 * MIB, MIB)]]
    assert found.compared_bytes == desk.shown == 3 << 20
    assert sorted(desk.ended) == [1, 2, 3, 4]


def test_blocks_that_the_target_cannot_read_are_unreadable_too() -> None:
    """The chunk differs, and then its blocks cannot be had."""

    def answer(asked: Checksums) -> Digests:
        if asked.block_sectors:
            return Digests(asked.request, b"", DigestsRefused.UNREADABLE, "no")
        return desk.digests(asked)

    desk = Desk([(0, 64)], differing={9}, answer=answer)
    assert finished(desk).unreadable == [(0, 64)]


@pytest.mark.parametrize("reason", [DigestsRefused.NO_SESSION, DigestsRefused.BUSY])
def test_target_that_cannot_answer_now_is_asked_again(reason: DigestsRefused) -> None:
    """Whatever its text says."""
    refusals = [Digests(0, b"", reason, "cannot be read")] * 3

    def answer(asked: Checksums) -> Digests:
        if not refusals:
            return desk.digests(asked)
        refusal = refusals.pop()
        return Digests(asked.request, refusal.digests, refusal.refused, refusal.text)

    desk = Desk([(0, 64)], differing={9}, answer=answer)
    found = finished(desk)
    assert (found.differing, found.unreadable, found.reasons) == ([(8, 8)], [], set())
    assert desk.machine.abandoned == 3
    assert desk.ended == [1, 2, 3, 4]


def test_target_whose_answer_is_nonsense_is_asked_again() -> None:
    nonsense = [bytes(48), bytes(8)]

    def answer(asked: Checksums) -> Digests:
        if not nonsense:
            return desk.digests(asked)
        return Digests(asked.request, nonsense.pop(), DigestsRefused.NONE, "")

    desk = Desk([(0, 64)], answer=answer)
    assert finished(desk) == Findings(compared_bytes=64 * SECTOR_BYTES)
    assert desk.machine.abandoned == 2


@pytest.mark.parametrize("reason", [DigestsRefused.NO_SESSION, DigestsRefused.BUSY])
def test_target_that_cannot_answer_for_long_interrupts(reason: DigestsRefused) -> None:
    desk = Desk([(0, 64)], answer=lambda asked: Digests(asked.request, b"", reason, "cannot read"))
    desk.run()
    assert desk.last == [e.Interrupted()]
    assert desk.machine.is_finished
    assert 119.9 < desk.now_at < 120.2
    assert desk.machine.handle(e.Tick(desk.now_at + 100)) == []


# Losses.


def begun(ranges: list[Chunk]) -> tuple[Verifier, list[e.Action]]:
    """A verifier that has asked, of a reader that says nothing yet."""
    machine = Verifier(stream=STREAM, ranges=ranges)
    machine.handle(e.Tick(100.0))
    machine.handle(e.LinksUp())
    return machine, machine.handle(e.RoomSeen(0))


def test_question_is_repeated_until_it_is_answered() -> None:
    machine, (asked,) = begun([(0, 64)])
    assert machine.handle(e.Tick(102.1)) == [asked]


def test_second_lease_for_one_question_is_ended() -> None:
    machine, (asked,) = begun([(0, 64)])
    assert isinstance(asked, e.SendToReader)
    assert isinstance(asked.request, VerifyBegin)
    grant = Grant(asked.request.request, 5, STREAM, 7, [(0, 64)])
    machine.handle(e.Answered(grant))
    second = Grant(asked.request.request, 6, STREAM, 7, [(0, 64)])
    assert machine.handle(e.Answered(second)) == [e.SendToReader(VerifyEnd(6))]


def test_lease_below_another_capture_ends_the_process_to_be_started_anew() -> None:
    machine, (asked,) = begun([(0, 64)])
    grant = Grant(asked.request.request, 5, b"another-stream..", 7, [(0, 64)])  # type: ignore[union-attr]
    (stop,) = machine.handle(e.Answered(grant))
    assert isinstance(stop, e.Stop)
    assert isinstance(stop.error, StaleCaptureError)


def test_answer_that_only_a_scanner_gets_is_noted() -> None:
    machine, _ = begun([(0, 64)])
    (note,) = machine.handle(e.Answered(Committed(1, 1, 1, 1, b"")))
    assert isinstance(note, e.LogEvent)


@pytest.mark.parametrize("loss", [e.LinkLost(), e.Answered(Revoked(5))], ids=["link", "revoked"])
@pytest.mark.parametrize("is_read", [False, True])
def test_chunks_of_a_lease_that_is_lost_are_verified_in_another(
    loss: e.Event, is_read: bool
) -> None:
    ranges = [(0, 64)]
    machine, (asked,) = begun(ranges)
    request = asked.request.request  # type: ignore[union-attr]
    read, _ = machine.handle(e.Answered(Grant(request, 5, STREAM, 7, ranges)))
    assert isinstance(read, e.Read)
    result = e.ChunksRead(read.job, bytes(16), {})
    if is_read:
        machine.handle(result)
    machine.handle(loss)
    machine.handle(e.LinksUp())
    if not is_read:
        machine.handle(result)
    (again,) = machine.handle(e.RoomSeen(0))
    assert isinstance(again, e.SendToReader)
    assert isinstance(again.request, VerifyBegin)
    assert again.request.ranges == ranges
    assert again.request.request != request
    assert not machine.is_finished


def test_question_that_is_lost_is_asked_anew() -> None:
    machine, (asked,) = begun([(0, 64)])
    assert machine.handle(e.LinkLost()) == [e.DropUnsent()]
    machine.handle(e.LinksUp())
    (again,) = machine.handle(e.RoomSeen(0))
    assert again.request.ranges == asked.request.ranges  # type: ignore[union-attr]
