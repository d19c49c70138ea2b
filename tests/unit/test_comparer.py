# SPDX-License-Identifier: GPL-2.0-only
"""A scanner's comparer, one situation at a time."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from bdr.common.errors import PERMANENT_EXIT_CODES, StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan import events as c
from bdr.common.scan.digests import block_digests, digest, digests_wanted
from bdr.common.scan.plan import Chunk, pack_bits
from bdr.common.scan.repairer import Repairer
from bdr.common.scan.settings import ComparerSettings
from bdr.common.wire.control import Checksums, Digests
from bdr.common.wire.reasons import DigestsRefused
from bdr.common.wire.scan import Acquire, Commit, Committed, Grant, Renew, Revoked

STREAM = b"stream-of-tests!"
CHUNKS = [(0, 16), (64, 8)]
SOURCE = Random(1).randbytes(24 * SECTOR_BYTES)
"""Content of the chunks, one behind the other: blocks 0 and 1, and block 8."""


class Desk:
    """A comparer whose reader, target and threads are this test."""

    def __init__(self, settings: ComparerSettings | None = None, *, buffers: int = 1) -> None:
        settings = settings or ComparerSettings(buffers=buffers)
        self.machine = Repairer(stream=STREAM, settings=settings)
        self.now_at = 100.0
        self.machine.handle(c.Tick(self.now_at))
        self.machine.handle(c.LinksUp())

    def ask(self) -> list[int]:
        """Numbers of the questions that it asks now."""
        return [
            action.request.request
            for action in self.machine.handle(c.RoomSeen(0))
            if isinstance(action, c.SendToReader) and isinstance(action.request, Acquire)
        ]

    def begin(self, chunks: list[Chunk] = CHUNKS) -> tuple[c.Read, Checksums]:
        """It asks, and gets lease 5 of epoch 7."""
        (request,) = self.ask()
        return self.grant(request, chunks)

    def grant(self, request: int, chunks: list[Chunk] = CHUNKS) -> tuple[c.Read, Checksums]:
        read, asked = self.machine.handle(c.Answered(Grant(request, 5, STREAM, 7, chunks)))
        assert isinstance(read, c.Read)
        assert isinstance(asked, c.SendToTarget)
        return read, asked.message

    def read(self, read: c.Read, bad: dict[int, list[int]] | None = None) -> list[c.Action]:
        return self.machine.handle(c.ChunksRead(read.job, digests_of(SOURCE), bad or {}))

    def target_has(self, asked: Checksums, data: bytes) -> list[c.Action]:
        message = Digests(asked.request, digests_of(data), DigestsRefused.NONE, "")
        return self.machine.handle(c.DigestsArrived(message))

    def compare_blocks(self, actions: list[c.Action], theirs: bytes) -> list[c.Action]:
        """Both sides' blocks of every chunk that is asked for."""
        hashing, asked = actions
        assert isinstance(hashing, c.HashBlocks)
        assert isinstance(asked, c.SendToTarget)
        both = []
        for content in (SOURCE, theirs):
            both.append(
                [
                    block_digests(content[at : at + sectors * SECTOR_BYTES])
                    for at, (_, sectors) in zip(hashing.offsets, hashing.chunks, strict=True)
                ]
            )
        answer = Digests(asked.message.request, b"".join(both[1]), DigestsRefused.NONE, "")
        first = self.machine.handle(c.DigestsArrived(answer))
        return first + self.machine.handle(c.BlocksHashed(hashing.job, both[0]))


def digests_of(data: bytes) -> bytes:
    return digest(data[: 16 * 512]) + digest(data[16 * 512 :])


def with_other_block(block: int) -> bytes:
    at = block * 4096
    return SOURCE[:at] + bytes(4096) + SOURCE[at + 4096 :]


def commits(actions: list[c.Action]) -> list[Commit]:
    return [
        action.request
        for action in actions
        if isinstance(action, c.SendToReader) and isinstance(action.request, Commit)
    ]


GIVEN_BACK = Commit(5, 0, 0, CHUNKS, [])


def test_asks_once_for_each_buffer_and_again_when_nobody_answers() -> None:
    desk = Desk(buffers=3)
    asks = desk.ask()
    assert len(asks) == 3
    assert desk.ask() == []
    again = desk.machine.handle(c.Tick(desk.now_at + 2.1))
    assert again == [c.SendToReader(Acquire(request)) for request in asks]


@pytest.mark.parametrize("batches", [0, 32])
def test_asks_for_nothing_without_its_links_or_with_much_to_send(batches: int) -> None:
    machine = Repairer(stream=STREAM)
    if batches:
        machine.handle(c.LinksUp())
    assert machine.handle(c.RoomSeen(batches)) == []


@pytest.mark.parametrize("is_read_first", [True, False])
def test_equal_chunks_are_committed_without_batches(is_read_first: bool) -> None:
    desk = Desk()
    read, asked = desk.begin()
    assert (read.chunks, asked.epoch, asked.block_sectors) == (CHUNKS, 7, 0)
    if is_read_first:
        assert desk.read(read) == []
        actions = desk.target_has(asked, SOURCE)
    else:
        assert desk.target_has(asked, SOURCE) == []
        actions = desk.read(read)
    assert commits(actions) == [Commit(5, 0, 0, [], [])]
    assert desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b""))) == []
    assert desk.machine.compared_bytes == len(SOURCE)
    assert len(desk.ask()) == 1


def test_differing_block_is_sent_at_the_place_that_the_reader_gives_it() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    actions = desk.compare_blocks(desk.target_has(asked, with_other_block(1)), with_other_block(1))
    assert commits(actions) == [Commit(5, 1, 1, [], [])]
    excluded = np.zeros(24, np.bool_)
    excluded[3] = True
    committed = Committed(5, 7, 9, 40, pack_bits(excluded))
    (batch,) = desk.machine.handle(c.Answered(committed))
    assert isinstance(batch, c.SendBatch)
    assert (batch.epoch, batch.number, batch.first) == (7, 9, 40)
    (part,) = batch.parts
    assert (part.sector, part.offset, part.length) == (0, 0, 16 * 512)
    assert part.blocks.tolist() == [False, True]
    assert part.excluded is not None
    assert np.flatnonzero(part.excluded).tolist() == [3]


def test_blocks_beyond_a_batch_go_into_the_next_one() -> None:
    desk = Desk(ComparerSettings(buffers=1, batch_blocks=2))
    read, asked = desk.begin()
    desk.read(read)
    theirs = bytes(len(SOURCE))
    actions = desk.compare_blocks(desk.target_has(asked, theirs), theirs)
    assert commits(actions) == [Commit(5, 2, 3, [], [])]
    batches = desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b"")))
    assert [batch.number for batch in batches if isinstance(batch, c.SendBatch)] == [9, 10]


def test_requests_for_blocks_are_split_where_an_answer_would_not_fit() -> None:
    desk = Desk(ComparerSettings(buffers=1, digests=2))
    read, asked = desk.begin()
    desk.read(read)
    theirs = bytes(len(SOURCE))
    _, first, second = desk.target_has(asked, theirs)
    assert isinstance(first, c.SendToTarget)
    assert isinstance(second, c.SendToTarget)
    assert first.message.ranges == [CHUNKS[0]]
    assert second.message.ranges == [CHUNKS[1]]
    blocks = [block_digests(SOURCE[: 16 * 512]), block_digests(SOURCE[16 * 512 :])]
    desk.machine.handle(c.BlocksHashed(read.job, blocks))
    # In the other order, and only one of them differs.
    desk.machine.handle(
        c.DigestsArrived(Digests(second.message.request, blocks[1], DigestsRefused.NONE, ""))
    )
    theirs_first = block_digests(with_other_block(0)[: 16 * 512])
    actions = desk.machine.handle(
        c.DigestsArrived(Digests(first.message.request, theirs_first, DigestsRefused.NONE, ""))
    )
    assert commits(actions) == [Commit(5, 1, 1, [], [])]


def test_blocks_that_cannot_be_read_are_named_and_not_sent() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.target_has(asked, SOURCE)
    actions = desk.read(read, {0: [1]})
    theirs = bytes(len(SOURCE))
    actions = desk.compare_blocks(actions, theirs)
    # Chunk 1 is equal; of chunk 0 block 0 differs, and block 1 cannot be read.
    assert commits(actions) == [Commit(5, 1, 1, [], [(8, 8)])]
    assert c.LogEvent("unreadable", {"sectors": "[(8, 8)]"}) in actions
    (batch,) = desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b"")))
    assert isinstance(batch, c.SendBatch)
    assert [part.blocks.tolist() for part in batch.parts] == [[True, False]]


@pytest.mark.parametrize(
    ("digests", "refused"),
    [
        (b"", DigestsRefused.NO_SESSION),
        (b"", DigestsRefused.BUSY),
        (b"", DigestsRefused.BAD_RANGES),
        (b"", DigestsRefused.UNREADABLE),
        (b"x" * 32, DigestsRefused.UNREADABLE),
        (b"x" * 16, DigestsRefused.NONE),
    ],
)
def test_lease_goes_back_when_the_target_refuses_or_answers_nonsense(
    digests: bytes, refused: DigestsRefused
) -> None:
    """Whatever its text says."""
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    actions = desk.machine.handle(c.DigestsArrived(Digests(asked.request, digests, refused, "")))
    assert commits(actions) == [GIVEN_BACK]
    assert desk.machine.abandoned == 1
    assert desk.ask() == []  # it rests
    desk.machine.handle(c.Tick(desk.now_at + 0.3))
    assert len(desk.ask()) == 1


def test_lease_goes_back_when_it_takes_too_long() -> None:
    desk = Desk()
    desk.begin()
    actions = desk.machine.handle(c.Tick(desk.now_at + 25.1))
    assert commits(actions) == [GIVEN_BACK]


def test_grant_for_a_question_asked_twice_is_given_back() -> None:
    desk = Desk()
    (request,) = desk.ask()
    desk.grant(request)
    second = Grant(request, 6, STREAM, 7, CHUNKS)
    actions = desk.machine.handle(c.Answered(second))
    assert commits(actions) == [Commit(6, 0, 0, second.ranges, [])]


@pytest.mark.parametrize(
    ("loss", "forgotten"),
    [(c.LinkLost(), [c.DropUnsent()]), (c.Answered(Revoked(5)), [])],
    ids=["link lost", "revoked"],
)
def test_buffer_of_a_forgotten_job_is_not_used_while_a_thread_reads_into_it(
    loss: c.Event, forgotten: list[c.Action]
) -> None:
    desk = Desk()
    read, asked = desk.begin()
    assert desk.machine.handle(loss) == forgotten
    desk.machine.handle(c.LinksUp())
    assert desk.ask() == []
    assert desk.target_has(asked, SOURCE) == []  # nobody waits for it
    assert desk.read(read) == []
    assert len(desk.ask()) == 1


def test_commit_of_a_forgotten_job_sends_nothing() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    desk.target_has(asked, SOURCE)
    desk.machine.handle(c.LinkLost())
    assert desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b""))) == []
    assert desk.machine.compared_bytes == 0


def test_committed_lease_that_was_not_compared_sends_nothing() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    desk.compare_blocks(desk.target_has(asked, with_other_block(1)), with_other_block(1))
    desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b"")))
    read, asked = desk.begin()
    assert desk.machine.handle(c.Answered(Committed(5, 7, 9, 40, b""))) == []
    assert desk.machine.open_leases == 1
    desk.read(read)
    assert commits(desk.target_has(asked, SOURCE)) == [Commit(5, 0, 0, [], [])]


def test_grant_below_another_capture_ends_the_process_to_be_started_anew() -> None:
    desk = Desk()
    (request,) = desk.ask()
    other = Grant(request, 5, b"another-stream..", 7, CHUNKS)
    (stop,) = desk.machine.handle(c.Answered(other))
    assert isinstance(stop, c.Stop)
    assert isinstance(stop.error, StaleCaptureError)
    assert stop.error.exit_code not in PERMANENT_EXIT_CODES


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_keeps_every_buffer_and_ends_every_lease(seed: int) -> None:
    """Each lease that it was given is committed, given back or lost with a link, once."""
    rng = Random(seed)
    desk = Desk(ComparerSettings(buffers=3, job_s=5.0))
    waiting: list[c.Action] = []
    open_leases: set[int] = set()
    given = 0

    def take(actions: list[c.Action]) -> None:
        for action in actions:
            match action:
                case c.SendToReader(Commit(lease=lease)):
                    assert lease in open_leases
                    open_leases.discard(lease)
                    waiting.append(action)
                case c.SendToReader() | c.SendToTarget() | c.Read() | c.HashBlocks():
                    waiting.append(action)

    for _ in range(600):
        desk.now_at += rng.choice((0.01, 0.5))
        take(desk.machine.handle(c.Tick(desk.now_at)))
        if rng.random() < 0.03:
            threads = [w for w in waiting if isinstance(w, c.Read | c.HashBlocks)]
            waiting[:] = threads  # what was on its way is lost
            open_leases.clear()
            take(desk.machine.handle(c.LinkLost()))
            take(desk.machine.handle(c.LinksUp()))
        take(desk.machine.handle(c.RoomSeen(rng.choice((0, 0, 40)))))
        if not waiting:
            continue
        match waiting.pop(rng.randrange(len(waiting))):
            case c.SendToReader(Acquire(request)):
                given += 1
                open_leases.add(given)
                take(desk.machine.handle(c.Answered(Grant(request, given, STREAM, 7, CHUNKS))))
            case c.SendToReader(Commit(lease=lease)):
                answer = rng.choice((Committed(lease, 7, 1, 1, b""), Revoked(lease)))
                take(desk.machine.handle(c.Answered(answer)))
            case c.SendToTarget(asked):
                count = digests_wanted(asked.ranges, asked.block_sectors)
                digests = Digests(asked.request, rng.randbytes(16 * count), DigestsRefused.NONE, "")
                if rng.random() < 0.2:
                    digests = Digests(asked.request, b"", DigestsRefused.BUSY, "")
                take(desk.machine.handle(c.DigestsArrived(digests)))
            case c.Read(job=job):
                bad = {0: [0]} if rng.random() < 0.1 else {}
                take(desk.machine.handle(c.ChunksRead(job, digests_of(SOURCE), bad)))
            case c.HashBlocks(job=job, chunks=chunks):
                sizes = [digests_wanted([chunk], 8) for chunk in chunks]
                hashed = [rng.randbytes(16 * size) for size in sizes]
                take(desk.machine.handle(c.BlocksHashed(job, hashed)))
    assert given > 30
    assert desk.machine.compared_bytes > 0


# Time on a slow link.


def renewals(actions: list[c.Action]) -> list[Renew]:
    return [
        action.request
        for action in actions
        if isinstance(action, c.SendToReader) and isinstance(action.request, Renew)
    ]


def test_lease_is_renewed_until_it_is_given_back() -> None:
    desk = Desk()
    desk.begin()
    found = []
    for _ in range(24):
        desk.now_at += 1.0
        found += renewals(desk.machine.handle(c.Tick(desk.now_at)))
    assert found == [Renew(5)] * 8
    desk.now_at += 2.0
    assert commits(desk.machine.handle(c.Tick(desk.now_at))) == [GIVEN_BACK]


def test_target_has_twice_the_time_after_a_lease_that_took_too_long() -> None:
    settings = ComparerSettings()
    assert [settings.limit_s(timeouts) for timeouts in (0, 1, 2)] == [25.0, 50.0, 100.0]
    assert settings.limit_s(100) == settings.limit_s(6)
