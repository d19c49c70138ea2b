# SPDX-License-Identifier: GPL-2.0-only
"""A scanner's half of the protocol, one situation at a time."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from bdr.common.errors import PERMANENT_EXIT_CODES, StaleCaptureError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.scan import comparer as c
from bdr.common.scan.comparer import Comparer, ComparerSettings
from bdr.common.scan.digests import block_digests, digest, digests_wanted
from bdr.common.scan.plan import Piece, pack_bits
from bdr.common.source import scheduler
from bdr.common.wire import control as wire

STREAM = b"stream-of-tests!"
PIECES = [(0, 16), (64, 8)]
SOURCE = Random(1).randbytes(24 * SECTOR_BYTES)
"""Content of the pieces, one behind the other: blocks 0 and 1, and block 8."""


class Desk:
    """A comparer whose reader, target and threads are this test."""

    def __init__(self, settings: ComparerSettings | None = None, *, buffers: int = 1) -> None:
        settings = settings or ComparerSettings(buffers=buffers)
        self.machine = Comparer(stream=STREAM, settings=settings)
        self.now_s = 100.0
        self.machine.handle(c.Tick(self.now_s))
        self.machine.handle(c.LinksUp())

    def ask(self) -> list[int]:
        """Numbers of the questions that it asks now."""
        return [
            action.request.ask
            for action in self.machine.handle(c.RoomSeen(0))
            if isinstance(action, c.TellOffice) and isinstance(action.request, scheduler.Ask)
        ]

    def begin(self, pieces: list[Piece] = PIECES) -> tuple[c.Read, wire.Checksums]:
        """It asks, and gets ticket 5 of epoch 7."""
        (ask,) = self.ask()
        return self.work(ask, pieces)

    def work(self, ask: int, pieces: list[Piece] = PIECES) -> tuple[c.Read, wire.Checksums]:
        ranges = wire.encode_ranges(pieces)
        read, asked = self.machine.handle(c.Answered(scheduler.Work(ask, 5, STREAM, 7, ranges)))
        assert isinstance(read, c.Read)
        assert isinstance(asked, c.AskTarget)
        return read, asked.message

    def read(self, read: c.Read, bad: dict[int, list[int]] | None = None) -> list[c.Action]:
        return self.machine.handle(c.PiecesRead(read.job, digests_of(SOURCE), bad or {}))

    def target_has(self, asked: wire.Checksums, data: bytes) -> list[c.Action]:
        message = wire.Digests(asked.request, digests_of(data), "")
        return self.machine.handle(c.DigestsArrived(message))

    def compare_blocks(self, actions: list[c.Action], theirs: bytes) -> list[c.Action]:
        """Both sides' blocks of every piece that is asked for."""
        hashing, asked = actions
        assert isinstance(hashing, c.HashBlocks)
        assert isinstance(asked, c.AskTarget)
        both = []
        for content in (SOURCE, theirs):
            both.append(
                [
                    block_digests(content[at : at + sectors * SECTOR_BYTES])
                    for at, (_, sectors) in zip(hashing.offsets, hashing.pieces, strict=True)
                ]
            )
        answer = wire.Digests(asked.message.request, b"".join(both[1]), "")
        first = self.machine.handle(c.DigestsArrived(answer))
        return first + self.machine.handle(c.BlocksHashed(hashing.job, both[0]))


def digests_of(data: bytes) -> bytes:
    return digest(data[: 16 * 512]) + digest(data[16 * 512 :])


def with_other_block(block: int) -> bytes:
    at = block * 4096
    return SOURCE[:at] + bytes(4096) + SOURCE[at + 4096 :]


def commits(actions: list[c.Action]) -> list[scheduler.Commit]:
    return [
        action.request
        for action in actions
        if isinstance(action, c.TellOffice) and isinstance(action.request, scheduler.Commit)
    ]


GIVEN_BACK = scheduler.Commit(5, 0, 0, wire.encode_ranges(PIECES), b"")


def test_asks_once_for_each_buffer_and_again_when_nobody_answers() -> None:
    desk = Desk(buffers=3)
    asks = desk.ask()
    assert len(asks) == 3
    assert desk.ask() == []
    again = desk.machine.handle(c.Tick(desk.now_s + 2.1))
    assert again == [c.TellOffice(scheduler.Ask(ask)) for ask in asks]


@pytest.mark.parametrize("batches", [0, 32])
def test_asks_for_nothing_without_its_links_or_with_much_to_send(batches: int) -> None:
    machine = Comparer(stream=STREAM)
    if batches:
        machine.handle(c.LinksUp())
    assert machine.handle(c.RoomSeen(batches)) == []


@pytest.mark.parametrize("is_read_first", [True, False])
def test_equal_pieces_are_committed_without_batches(is_read_first: bool) -> None:
    desk = Desk()
    read, asked = desk.begin()
    assert (read.pieces, asked.epoch, asked.block_sectors) == (PIECES, 7, 0)
    if is_read_first:
        assert desk.read(read) == []
        actions = desk.target_has(asked, SOURCE)
    else:
        assert desk.target_has(asked, SOURCE) == []
        actions = desk.read(read)
    assert commits(actions) == [scheduler.Commit(5, 0, 0, b"", b"")]
    assert desk.machine.handle(c.Answered(scheduler.Committed(5, 7, 9, 40, b""))) == []
    assert desk.machine.compared_bytes == len(SOURCE)
    assert len(desk.ask()) == 1


def test_differing_block_is_sent_at_the_place_that_the_reader_gives_it() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    actions = desk.compare_blocks(desk.target_has(asked, with_other_block(1)), with_other_block(1))
    assert commits(actions) == [scheduler.Commit(5, 1, 1, b"", b"")]
    excluded = np.zeros(24, np.bool_)
    excluded[3] = True
    committed = scheduler.Committed(5, 7, 9, 40, pack_bits(excluded))
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
    assert commits(actions) == [scheduler.Commit(5, 2, 3, b"", b"")]
    batches = desk.machine.handle(c.Answered(scheduler.Committed(5, 7, 9, 40, b"")))
    assert [batch.number for batch in batches if isinstance(batch, c.SendBatch)] == [9, 10]


def test_requests_for_blocks_are_split_where_an_answer_would_not_fit() -> None:
    desk = Desk(ComparerSettings(buffers=1, digests=2))
    read, asked = desk.begin()
    desk.read(read)
    theirs = bytes(len(SOURCE))
    _, first, second = desk.target_has(asked, theirs)
    assert isinstance(first, c.AskTarget)
    assert isinstance(second, c.AskTarget)
    assert wire.decode_ranges(first.message.ranges) == [PIECES[0]]
    assert wire.decode_ranges(second.message.ranges) == [PIECES[1]]
    blocks = [block_digests(SOURCE[: 16 * 512]), block_digests(SOURCE[16 * 512 :])]
    desk.machine.handle(c.BlocksHashed(read.job, blocks))
    # In the other order, and only one of them differs.
    desk.machine.handle(c.DigestsArrived(wire.Digests(second.message.request, blocks[1], "")))
    theirs_first = block_digests(with_other_block(0)[: 16 * 512])
    actions = desk.machine.handle(
        c.DigestsArrived(wire.Digests(first.message.request, theirs_first, ""))
    )
    assert commits(actions) == [scheduler.Commit(5, 1, 1, b"", b"")]


def test_blocks_that_cannot_be_read_are_named_and_not_sent() -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.target_has(asked, SOURCE)
    actions = desk.read(read, {0: [1]})
    theirs = bytes(len(SOURCE))
    actions = desk.compare_blocks(actions, theirs)
    # Piece 1 is equal; of piece 0 block 0 differs, and block 1 cannot be read.
    assert commits(actions) == [scheduler.Commit(5, 1, 1, b"", wire.encode_ranges([(8, 8)]))]
    assert c.Note("unreadable", {"sectors": "[(8, 8)]"}) in actions
    (batch,) = desk.machine.handle(c.Answered(scheduler.Committed(5, 7, 9, 40, b"")))
    assert isinstance(batch, c.SendBatch)
    assert [part.blocks.tolist() for part in batch.parts] == [[True, False]]


@pytest.mark.parametrize("answer", [(b"", "the device failed"), (b"x" * 16, "")])
def test_ticket_goes_back_when_the_target_refuses_or_answers_nonsense(
    answer: tuple[bytes, str],
) -> None:
    desk = Desk()
    read, asked = desk.begin()
    desk.read(read)
    actions = desk.machine.handle(c.DigestsArrived(wire.Digests(asked.request, *answer)))
    assert commits(actions) == [GIVEN_BACK]
    assert desk.machine.abandoned == 1
    assert desk.ask() == []  # it rests
    desk.machine.handle(c.Tick(desk.now_s + 0.3))
    assert len(desk.ask()) == 1


def test_ticket_goes_back_when_it_takes_too_long() -> None:
    desk = Desk()
    desk.begin()
    actions = desk.machine.handle(c.Tick(desk.now_s + 25.1))
    assert commits(actions) == [GIVEN_BACK]


def test_work_for_a_question_asked_twice_is_given_back() -> None:
    desk = Desk()
    (ask,) = desk.ask()
    desk.work(ask)
    second = scheduler.Work(ask, 6, STREAM, 7, wire.encode_ranges(PIECES))
    actions = desk.machine.handle(c.Answered(second))
    assert commits(actions) == [scheduler.Commit(6, 0, 0, second.ranges, b"")]


@pytest.mark.parametrize(
    "loss", [c.LinkLost(), c.Answered(scheduler.Dropped(5))], ids=["link lost", "dropped"]
)
def test_buffer_of_a_forgotten_job_is_not_used_while_a_thread_reads_into_it(
    loss: c.Event,
) -> None:
    desk = Desk()
    read, asked = desk.begin()
    assert desk.machine.handle(loss) == []
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
    assert desk.machine.handle(c.Answered(scheduler.Committed(5, 7, 9, 40, b""))) == []
    assert desk.machine.compared_bytes == 0


def test_work_below_another_capture_ends_the_process_to_be_started_anew() -> None:
    desk = Desk()
    (ask,) = desk.ask()
    other = scheduler.Work(ask, 5, b"another-stream..", 7, wire.encode_ranges(PIECES))
    (stop,) = desk.machine.handle(c.Answered(other))
    assert isinstance(stop, c.Stop)
    assert isinstance(stop.error, StaleCaptureError)
    assert stop.error.exit_code not in PERMANENT_EXIT_CODES


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_keeps_every_buffer_and_ends_every_ticket(seed: int) -> None:
    """Each ticket that it was given is committed, given back or lost with a link, once."""
    rng = Random(seed)
    desk = Desk(ComparerSettings(buffers=3, job_s=5.0))
    waiting: list[c.Action] = []
    open_tickets: set[int] = set()
    given = 0

    def take(actions: list[c.Action]) -> None:
        for action in actions:
            match action:
                case c.TellOffice(scheduler.Commit(ticket=ticket)):
                    assert ticket in open_tickets
                    open_tickets.discard(ticket)
                    waiting.append(action)
                case c.TellOffice() | c.AskTarget() | c.Read() | c.HashBlocks():
                    waiting.append(action)

    for _ in range(600):
        desk.now_s += rng.choice((0.01, 0.5))
        take(desk.machine.handle(c.Tick(desk.now_s)))
        if rng.random() < 0.03:
            threads = [w for w in waiting if isinstance(w, c.Read | c.HashBlocks)]
            waiting[:] = threads  # what was on its way is lost
            open_tickets.clear()
            take(desk.machine.handle(c.LinkLost()))
            take(desk.machine.handle(c.LinksUp()))
        take(desk.machine.handle(c.RoomSeen(rng.choice((0, 0, 40)))))
        if not waiting:
            continue
        match waiting.pop(rng.randrange(len(waiting))):
            case c.TellOffice(scheduler.Ask(ask)):
                given += 1
                open_tickets.add(given)
                ranges = wire.encode_ranges(PIECES)
                take(desk.machine.handle(c.Answered(scheduler.Work(ask, given, STREAM, 7, ranges))))
            case c.TellOffice(scheduler.Commit(ticket=ticket)):
                answer = rng.choice(
                    (scheduler.Committed(ticket, 7, 1, 1, b""), scheduler.Dropped(ticket))
                )
                take(desk.machine.handle(c.Answered(answer)))
            case c.AskTarget(asked):
                count = digests_wanted(wire.decode_ranges(asked.ranges), asked.block_sectors)
                answer = wire.Digests(asked.request, rng.randbytes(16 * count), "")
                if rng.random() < 0.2:
                    answer = wire.Digests(asked.request, b"", "not now")
                take(desk.machine.handle(c.DigestsArrived(answer)))
            case c.Read(job=job):
                bad = {0: [0]} if rng.random() < 0.1 else {}
                take(desk.machine.handle(c.PiecesRead(job, digests_of(SOURCE), bad)))
            case c.HashBlocks(job=job, pieces=pieces):
                sizes = [digests_wanted([piece], 8) for piece in pieces]
                digests = [rng.randbytes(16 * size) for size in sizes]
                take(desk.machine.handle(c.BlocksHashed(job, digests)))
    assert given > 30
    assert desk.machine.compared_bytes > 0
