# SPDX-License-Identifier: GPL-2.0-only
"""What a capture knows of time: when slots were reserved, and since when something is missing."""

from __future__ import annotations

import errno
import itertools
import time

from bdr.common.capture import abi
from bdr.common.capture.api import Bitmap, Role
from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import MARKS_INTERVAL_NS, MISSED_NOTHING, MISSED_UNKNOWN, Mode
from tests.nbdkit.client import NbdClient
from tests.nbdkit.raw import Raw
from tests.nbdkit.server import Server, wait_until

REGIONS = 256


def clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def latest_ns(capture: NbdCapture) -> int:
    """Clock of the last mark; 0 without one."""
    return max((clock_ns for _, clock_ns in capture.marks()), default=0)


def test_marks_contain_the_clock_of_every_write(server: Server, client: NbdClient) -> None:
    observer = server.observer()
    assert observer.marks() == []
    assert observer.status().marks == 0
    written: list[tuple[int, int]] = []
    """Clock before and after, by slot."""
    while observer.status().marks < 4:
        before_ns = clock_ns()
        client.write(0, bytes(512))
        written.append((before_ns, clock_ns()))
        wait_until(lambda: clock_ns() - written[-1][1] > MARKS_INTERVAL_NS // 5)
    marks = observer.marks()
    assert len(marks) == 4
    assert marks[0][0] == 0
    for (_, earlier_ns), (_, later_ns) in itertools.pairwise(marks):
        assert later_ns >= earlier_ns + MARKS_INTERVAL_NS
    for slot, ns in marks:
        assert written[slot][0] <= ns <= written[slot][1]
    status = observer.status()
    assert marks[-1][1] < status.clock_ns < clock_ns()
    observer.close()


def test_released_marks_are_dropped_except_for_the_last(
    client: NbdClient, capture: NbdCapture
) -> None:
    for _ in range(3):
        wait_until(lambda: clock_ns() > latest_ns(capture) + MARKS_INTERVAL_NS)
        client.write(0, bytes(2 * 4096))
    assert [slot for slot, _ in capture.marks()] == [0, 2, 4]
    capture.release(tail=3, cursor=3)
    assert [slot for slot, _ in capture.marks()] == [2, 4]
    capture.release(tail=6, cursor=6)
    assert [slot for slot, _ in capture.marks()] == [4]
    assert capture.status().marks == 3


def test_marks_request_with_more_than_its_code_is_refused(server: Server) -> None:
    with Raw(server) as raw:
        assert raw.open(Role.OBSERVER) == 0
        for fields in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            assert raw.ask(abi.IOC_MARKS_READ, abi.MARKS.pack(*fields)) == errno.EINVAL
        assert raw.ask(abi.IOC_MARKS_READ, abi.MARKS.pack(0, 0, 0)) == 0


def test_missed_since_is_the_clock_of_the_first_missed_write(
    client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, bytes(64 * 4096))
    assert capture.status().missed_since_ns == MISSED_NOTHING
    client.flush()
    assert capture.status().missed_since_ns == MISSED_NOTHING, "a flush leaves nothing out"
    before_ns = clock_ns()
    client.write(0, bytes(512))
    after_ns = clock_ns()
    client.write(1 << 20, bytes(512))
    since_ns = capture.status().missed_since_ns
    assert before_ns <= since_ns <= after_ns
    capture.resume()
    capture.clear_bitmap(first=0, count=1)
    assert capture.status().missed_since_ns == since_ns
    capture.clear_bitmap(first=0, count=REGIONS)
    assert capture.status().missed_since_ns == MISSED_NOTHING
    # Missed again.
    client.write(0, bytes(512))
    assert capture.status().mode is Mode.OVERFLOW
    assert capture.status().missed_since_ns > since_ns


def test_missed_since_is_unknown_once_regions_are_marked_otherwise(
    client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, bytes(65 * 4096))
    client.write(0, bytes(512))
    assert 0 < capture.status().missed_since_ns < MISSED_UNKNOWN
    capture.mark_bitmap(first=7, count=1)
    assert capture.status().missed_since_ns == MISSED_UNKNOWN
    capture.clear_bitmap(first=7, count=1)
    assert capture.status().missed_since_ns == MISSED_UNKNOWN, "others are still missing"
    capture.resume()
    capture.clear_bitmap(first=0, count=REGIONS)
    assert capture.read_bitmap(Bitmap.ACTIVE, first=0, count=REGIONS) == bytes(REGIONS // 8)
    assert capture.status().missed_since_ns == MISSED_NOTHING
