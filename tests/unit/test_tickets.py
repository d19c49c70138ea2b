# SPDX-License-Identifier: GPL-2.0-only
"""The reader's ticket office: who scans what, what is left out, what is cleared and when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bdr.common.capture.api import Bitmap, CaptureInfo
from bdr.common.errors import WireError
from bdr.common.ring.layout import Mode, Op
from bdr.common.ring.slots import encode
from bdr.common.source import scheduler as t
from bdr.common.source import sequencer as s
from bdr.common.source.rate_limit import PaceSettings
from bdr.common.wire import control as wire
from bdr.common.wire.control import Ack, Condition, Mark
from tests.unit.test_sequencer import STATUS, STREAM, welcome

PEER = b"scanner"
REGIONS = 256
INFO = CaptureInfo(
    stream=STREAM,
    device_sectors=REGIONS * 128,
    capacity=1 << 16,
    region_sectors=128,
    regions=REGIONS,
    underlying="",
)


class Desk:
    """A sequencer and an office, with bitmaps."""

    def __init__(
        self,
        dirty: set[int],
        *,
        condition: Condition = Condition.INCONSISTENT,
        info: CaptureInfo = INFO,
        settings: t.OfficeSettings | None = None,
    ) -> None:
        self.bits = {Bitmap.RESYNC: set(dirty), Bitmap.ACTIVE: set()}
        self.now_s = 1.0
        self.slots = 0
        """In the ring at the start."""
        self.dispatched: list[wire.BatchHeader] = []
        self.numbers: list[wire.BatchHeader] = []
        self.empty = replace(
            STATUS,
            head=STATUS.tail,
            unpublished=STATUS.tail,
            device_sectors=info.device_sectors,
        )
        self.machine = s.Sequencer(volume="v", info=info, status=self.empty)
        self.office = t.TicketOffice(
            info=info, machine=self.machine, read_bits=self.read, settings=settings
        )
        self.machine.handle(s.LinkUp())
        self.perform(welcome(self.machine, STATUS.tail, condition))
        self.look()
        self.step()

    def read(self, bitmap: Bitmap, first: int, count: int) -> bytes:
        flags = [region in self.bits[bitmap] for region in range(first, first + count)]
        return np.packbits(flags, bitorder="little").tobytes()

    def look(self, **changes: object) -> None:
        end = max(STATUS.tail + self.slots, self.machine.cursor)
        status = replace(
            replace(self.empty, head=end, unpublished=end),
            active_regions=len(self.bits[Bitmap.ACTIVE]),
            resync_regions=len(self.bits[Bitmap.RESYNC]),
            **changes,  # type: ignore[arg-type]
        )
        self.perform(self.machine.handle(s.CaptureSeen(status)))

    def perform(self, actions: list[s.Action]) -> None:
        for action in actions:
            match action:
                case s.Number(header):
                    self.numbers.append(header)
                case s.Dispatch(header):
                    self.dispatched.append(header)
                case s.Resume():
                    self.bits[Bitmap.RESYNC] |= self.bits[Bitmap.ACTIVE]
                    self.bits[Bitmap.ACTIVE].clear()
                    self.look()

    def step(self) -> list[t.Answer]:
        answers: list[t.Answer] = []
        is_told = True
        while is_told:
            is_told = False
            for action in self.office.step(self.now_s):
                match action:
                    case t.Reply(_, answer):
                        answers.append(answer)
                    case t.Clear(first, count):
                        is_told = True
                        self.bits[Bitmap.RESYNC] -= set(range(first, first + count))
                        self.look()
                    case t.Tell(event):
                        is_told = True
                        self.perform(self.machine.handle(event))
        return answers

    def say(self, request: t.Request) -> list[t.Answer]:
        answers: list[t.Answer] = []
        for action in self.office.request(PEER, request):
            match action:
                case t.Reply(_, answer):
                    answers.append(answer)
                case t.MarkRegions(first, count):
                    self.bits[Bitmap.RESYNC] |= set(range(first, first + count))
                    self.look()
        return answers + self.step()

    def ask(self, number: int = 1) -> t.Work:
        (work,) = self.say(t.Ask(number))
        assert isinstance(work, t.Work)
        return work

    def commit(self, work: t.Work, batches: int = 0, *, again: bytes = b"", bad: bytes = b""):
        return self.say(t.Commit(work.ticket, batches, 0, again, bad))

    def write(self, sector: int, sectors: int = 8) -> None:
        """A live batch of one write is dispatched."""
        self.perform(self.machine.handle(s.SendersReady(1)))
        headers = encode(op=Op.WRITE, sector=np.array([sector], np.uint64), sectors=sectors)
        self.office.dispatched(headers, bytes(4096))

    def ack(self, number: int) -> None:
        self.perform(self.machine.handle(s.MessageArrived(Ack(7, number, number))))

    @property
    def dirty(self) -> set[int]:
        return self.bits[Bitmap.RESYNC]


def pieces(work: t.Work) -> list[tuple[int, int]]:
    return wire.decode_ranges(work.ranges)


def test_work_is_the_dirty_pieces_and_each_is_handed_out_once() -> None:
    desk = Desk({0, 1, 40})
    assert pieces(desk.ask(1)) == [(0, 256), (40 * 128, 128)]
    assert desk.say(t.Ask(2)) == []


def test_equal_pieces_are_cleared_when_what_was_dispatched_before_is_durable() -> None:
    desk = Desk({0, 1})
    work = desk.ask()
    desk.write(9999)
    (committed,) = desk.commit(work)
    assert isinstance(committed, t.Committed)
    assert desk.dirty == {0, 1}
    desk.ack(1)
    desk.step()
    assert desk.dirty == set()


def test_differing_pieces_are_cleared_when_their_batches_are_durable() -> None:
    desk = Desk({0, 1})
    work = desk.ask()
    (committed,) = desk.commit(work, batches=2)
    assert isinstance(committed, t.Committed)
    assert (committed.number, committed.first) == (1, 40)
    assert [header.number for header in desk.numbers] == [1, 2]
    assert desk.numbers[0].kind is wire.BatchKind.RESYNC
    desk.ack(1)
    desk.step()
    assert desk.dirty == {0, 1}
    desk.ack(2)
    desk.step()
    assert desk.dirty == set()


def test_sectors_that_a_live_batch_covers_meanwhile_are_excluded() -> None:
    desk = Desk({1})
    desk.write(128)  # before: the scanner's read has it
    work = desk.ask()
    desk.write(128 + 16, 3)
    (committed,) = desk.commit(work, batches=1)
    assert isinstance(committed, t.Committed)
    excluded = np.unpackbits(np.frombuffer(committed.excluded, np.uint8), bitorder="little")
    assert np.flatnonzero(excluded).tolist() == [16, 17, 18]
    assert committed.number == 3


def test_consistent_replica_is_declared_inconsistent_before_anything_is_handed_out() -> None:
    desk = Desk({3}, condition=Condition.CONSISTENT)
    assert desk.say(t.Ask(1)) == []
    assert desk.machine.has_mark_due
    desk.perform(desk.machine.handle(s.SendersReady(0)))
    assert desk.dispatched[-1].mark is Mark.RESYNC
    (work,) = desk.step()
    assert isinstance(work, t.Work)


def test_in_front_of_a_gap_no_scan_makes_the_replica_inconsistent() -> None:
    desk = Desk({3}, condition=Condition.CONSISTENT)
    desk.look(gap=70)
    desk.say(t.Ask(1))
    assert not desk.machine.has_mark_due


@pytest.mark.parametrize("event", [s.LinkDown(), s.LinkUp()], ids=["link lost", "greets again"])
def test_epoch_lost_drops_tickets_and_what_was_not_acknowledged(event: s.Event) -> None:
    desk = Desk({0, 40})
    first = desk.ask()
    desk.commit(first, batches=1)
    desk.bits[Bitmap.RESYNC].add(80)
    desk.look()
    second = desk.ask(2)
    assert pieces(second) == [(80 * 128, 128)]
    desk.machine.handle(event)
    assert desk.step() == [t.Dropped(second.ticket)]
    assert desk.commit(second) == [t.Dropped(second.ticket)]
    desk.machine.handle(s.LinkUp())
    desk.perform(welcome(desk.machine, 40, Condition.INCONSISTENT))
    desk.step()
    assert desk.dirty == {0, 40, 80}
    assert pieces(desk.ask(3)) == [(0, 128), (40 * 128, 128), (80 * 128, 128)]


def test_region_marked_during_its_own_repair_is_repaired_again() -> None:
    """What RESUME merges cannot be told from what is under way: all of it begins anew."""
    desk = Desk({0})
    work = desk.ask()
    desk.commit(work, batches=1)
    desk.bits[Bitmap.ACTIVE].add(0)
    desk.look(mode=Mode.OVERFLOW)  # drained: it resumes
    assert desk.bits[Bitmap.ACTIVE] == set()
    desk.ack(1)
    desk.step()
    assert desk.dirty == {0}
    assert pieces(desk.ask(2)) == [(0, 128)]


def test_pieces_taken_back_wait_until_the_repair_under_way_is_durable() -> None:
    desk = Desk({0})
    desk.commit(desk.ask(), batches=1)
    desk.office.scanner_lost()
    # Its batch has arrived, so nothing greets again.
    desk.perform(desk.machine.handle(s.MessageArrived(Ack(7, 1, 0))))
    desk.step()
    assert desk.say(t.Ask(2)) == []
    desk.ack(1)
    (work,) = desk.step()
    assert isinstance(work, t.Work)


def test_region_marked_by_hand_during_its_own_repair_is_repaired_again() -> None:
    desk = Desk({0})
    desk.commit(desk.ask(), batches=1)
    desk.say(t.MarkDirty(5, wire.encode_ranges([(8, 8)])))
    desk.ack(1)
    desk.step()
    assert desk.dirty == {0}


def test_scanner_lost_with_batches_that_have_not_arrived_greets_again() -> None:
    desk = Desk({0})
    desk.commit(desk.ask(), batches=1)
    desk.office.scanner_lost()
    desk.step()
    assert desk.machine.phase is s.Phase.GREETING


def test_ticket_of_a_frozen_scanner_is_handed_to_another() -> None:
    desk = Desk({0})
    work = desk.ask(1)
    desk.now_s += 31
    dropped, again = desk.say(t.Ask(2))
    assert dropped == t.Dropped(work.ticket)
    assert isinstance(again, t.Work)
    assert pieces(again) == pieces(work)
    assert desk.commit(work, batches=1) == [t.Dropped(work.ticket)]


def test_ticket_that_waits_for_its_place_is_not_taken_away() -> None:
    """Over a slow link the repairs in front of it may take longer than a ticket may."""
    desk = Desk(set(range(0, REGIONS, 2)))
    most = desk.machine.settings.resync_batches
    desk.commit(desk.ask(1), batches=most)
    desk.bits[Bitmap.RESYNC].add(1)
    desk.look()
    work = desk.ask(2)
    assert desk.commit(work, batches=1) == []
    desk.now_s += 31
    assert desk.step() == []
    desk.ack(most)
    (answer,) = desk.step()
    assert isinstance(answer, t.Committed)
    assert answer.ticket == work.ticket


def test_pieces_that_were_not_judged_are_handed_out_again() -> None:
    desk = Desk({0, 1, 40})
    work = desk.ask(1)
    desk.commit(work, again=wire.encode_ranges([(0, 256)]))
    desk.step()
    assert desk.dirty == {0, 1}
    assert pieces(desk.ask(2)) == [(0, 256)]


def test_unreadable_region_stays_dirty_and_is_tried_again_later() -> None:
    desk = Desk({0, 1})
    desk.commit(desk.ask(1), batches=1, bad=wire.encode_ranges([(128, 8)]))
    desk.ack(1)
    desk.step()
    assert desk.dirty == {1}
    assert desk.office.unreadable == [(128, 8)]
    assert desk.say(t.Ask(2)) == []
    desk.look()
    assert not desk.machine.has_mark_due  # not consistent
    desk.now_s += 61
    (work,) = desk.step()
    assert isinstance(work, t.Work)
    assert pieces(work) == [(128, 128)]


def test_region_longer_than_a_piece_is_cleared_when_all_of_it_is_done() -> None:
    info = replace(INFO, region_sectors=8192, regions=4, device_sectors=3 * 8192 + 100)
    desk = Desk({0, 3}, info=info)
    work = desk.ask()
    assert pieces(work) == [(0, 2048), (2048, 2048), (4096, 2048), (6144, 2048), (24576, 100)]
    desk.commit(work, again=wire.encode_ranges([(2048, 2048)]))
    desk.step()
    assert desk.dirty == {0}
    desk.commit(desk.ask(2))
    desk.step()
    assert desk.dirty == set()


def test_consistent_is_marked_at_the_head_of_the_look_that_finds_nothing_dirty() -> None:
    desk = Desk({0})
    work = desk.ask()
    desk.slots = 5
    desk.commit(work)
    desk.step()
    assert desk.dirty == set()
    assert not desk.machine.has_mark_due
    for _ in range(5):
        desk.write(9999)
    assert desk.machine.has_mark_due
    desk.perform(desk.machine.handle(s.SendersReady(0)))
    assert desk.dispatched[-1].mark is Mark.CONSISTENT


def test_window_of_resync_batches_makes_a_commit_wait() -> None:
    desk = Desk(set(range(0, REGIONS, 2)))
    most = desk.machine.settings.resync_batches
    for number in range(2):
        (answer,) = desk.commit(desk.ask(number), batches=most // 2)
        assert isinstance(answer, t.Committed)
    desk.bits[Bitmap.RESYNC].add(1)
    desk.look()
    work = desk.ask(9)
    assert desk.commit(work, batches=1) == []
    desk.ack(1)
    (answer,) = desk.step()
    assert isinstance(answer, t.Committed)
    assert answer.number == most + 1


def test_pace_is_kept() -> None:
    settings = t.OfficeSettings(pieces=1, pace=PaceSettings(rate=128 * 512))
    desk = Desk(set(range(0, REGIONS, 2)), settings=settings)
    asked = 0
    for _ in range(10):
        desk.now_s += 1
        asked += len(desk.say(t.Ask(int(desk.now_s))))
    assert 8 <= asked <= 12


def test_no_ticket_is_opened_before_the_target_has_the_slots_in_front_of_a_gap() -> None:
    """One of them would be left out, and hide the newer write that the ring has missed; or it
    would arrive after the digests, which the missed write may equal."""
    desk = Desk({0})
    desk.bits[Bitmap.ACTIVE].add(1)
    desk.slots = 60
    desk.look(mode=Mode.OVERFLOW)  # drained enough: it resumes
    assert desk.say(t.Ask(2)) == []
    for _ in range(59):
        desk.write(9999)
    assert desk.step() == []
    desk.write(0)
    assert desk.step() == []
    desk.ack(59)
    assert desk.step() == []
    desk.ack(60)
    (work,) = desk.step()
    assert isinstance(work, t.Work)


def test_bitmap_is_not_read_again_while_all_that_is_dirty_is_out() -> None:
    """Else every round of a reader would read all of it, for as long as a scanner waits."""
    desk = Desk({0, 1})
    work = desk.ask(1)
    desk.say(t.Ask(2))
    reads = 0

    def counted(bitmap: Bitmap, first: int, count: int) -> bytes:
        nonlocal reads
        reads += 1
        return desk.read(bitmap, first, count)

    desk.office._read_bits = counted
    for _ in range(10):
        assert desk.step() == []
    assert reads == 0
    desk.commit(work, again=wire.encode_ranges([(128, 128)]))
    desk.step()
    assert reads > 0


# Examining.


def test_examination_begins_when_everything_dispatched_before_is_durable() -> None:
    desk = Desk(set(), condition=Condition.CONSISTENT)
    desk.write(0)
    assert desk.say(t.Examine(1, wire.encode_ranges([(0, 2048)]))) == []
    desk.ack(1)
    (work,) = desk.step()
    assert isinstance(work, t.Work)


def test_examination_ends_when_what_it_may_have_seen_is_dispatched_and_left_out() -> None:
    desk = Desk({2}, condition=Condition.CONSISTENT)
    (work,) = desk.say(t.Examine(1, wire.encode_ranges([(0, 2048)])))
    assert isinstance(work, t.Work)
    desk.look(head=42)
    assert desk.say(t.Conclude(work.ticket)) == []
    for sector in range(60):
        desk.write(sector * 8)
    (concluded,) = desk.step()
    assert isinstance(concluded, t.Concluded)
    busy = np.unpackbits(np.frombuffer(concluded.busy, np.uint8), bitorder="little")
    # What was written, and the dirty region.
    assert np.flatnonzero(busy).tolist() == list(range(480))


@pytest.mark.parametrize(
    "ranges", [[], [(0, 4096)], [(8, 8), (0, 8)], [(INFO.device_sectors, 8)], [(0, 0)]]
)
def test_examination_of_what_are_no_pieces_gets_no_ticket(ranges: list[tuple[int, int]]) -> None:
    desk = Desk(set())
    assert desk.say(t.Examine(1, wire.encode_ranges(ranges))) == []
    assert not desk.office.is_noting


def test_ranges_that_are_none_are_a_wire_error() -> None:
    desk = Desk({0})
    work = desk.ask()
    with pytest.raises(WireError):
        desk.commit(work, again=b"123")


@pytest.mark.parametrize("kind", [*t._REQUESTS.values()])
def test_requests_survive_the_socket(kind: type[t.Request]) -> None:
    values = {"ask": 3, "ticket": 4, "batches": 1, "blocks": 2}
    blobs = dict.fromkeys(("again", "unreadable", "ranges"), wire.encode_ranges([(1, 2)]))
    fields = {name: (values | blobs)[name] for name in kind.__dataclass_fields__}
    assert t.decode_request(t.encode(kind(**fields))) == kind(**fields)


def test_pieces_are_not_handed_out_again_while_their_bits_are_being_cleared() -> None:
    desk = Desk(set(range(REGIONS)), settings=t.OfficeSettings(pieces=4))
    seen: list[tuple[int, int]] = []
    for number in range(REGIONS):
        for work in desk.say(t.Ask(number)):
            if isinstance(work, t.Work):
                seen += pieces(work)
                desk.office.request(PEER, t.Commit(work.ticket, 0, 0, b"", b""))
    assert sum(count for _, count in seen) == INFO.device_sectors
    assert desk.dirty == set()
