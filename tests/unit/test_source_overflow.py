# SPDX-License-Identifier: GPL-2.0-only
"""When a source leaves OVERFLOW, and when regions of failed writes join a scan."""

from __future__ import annotations

from dataclasses import replace

from bdr.common.capture.api import CaptureStatus
from bdr.common.ring.layout import Mode
from bdr.common.source.events import LinkUp, Resume
from bdr.common.source.overflow import OverflowSettings
from bdr.common.source.settings import SourceSettings
from tests.support.source_rig import STATUS, SourceRig, of, streaming, topics

FAILED = replace(STATUS, active_regions=1)
BOTH = replace(STATUS, active_regions=1, resync_regions=1)
FULL = replace(STATUS, mode=Mode.OVERFLOW, gap=100)


def with_waits(**waits_s: float) -> SourceSettings:
    return SourceSettings(overflow=OverflowSettings(**waits_s), status_interval_s=0.0)


def resumes(rig: SourceRig, status: CaptureStatus) -> bool:
    """Whether a look that finds this has the capture resume."""
    return bool(of(Resume, rig.look(status)))


def test_capture_resumes_when_the_ring_has_drained_below_the_share() -> None:
    full = replace(STATUS, mode=Mode.OVERFLOW, head=40 + 1025, gap=1065, last_gap=1065)
    rig = streaming(full)
    assert not resumes(rig, full)
    assert resumes(rig, replace(full, tail=41))


def test_capture_does_not_resume_while_the_target_is_away() -> None:
    empty = replace(STATUS, mode=Mode.OVERFLOW, tail=100, gap=100, last_gap=100)
    rig = SourceRig(empty)
    assert not resumes(rig, empty)
    rig.handle(LinkUp())
    assert not resumes(rig, empty)
    rig.welcome(100)
    assert resumes(rig, empty)


def test_overflow_within_a_resume_is_noticed() -> None:
    """Both looks find the mode OVERFLOW."""
    rig = streaming()
    assert resumes(rig, replace(FULL, overflows=1))
    again = rig.look(replace(FULL, overflows=2))
    assert topics(again) == ["overflow"]
    assert not of(Resume, again)


def test_overflow_is_announced_once() -> None:
    rig = streaming()
    full = replace(FULL, head=4000, overflows=1)
    assert topics(rig.look(full)) == ["overflow"]
    assert topics(rig.look(full)) == []


# Failed writes.


def test_failed_writes_are_merged_when_no_scan_is_under_way() -> None:
    rig = streaming()
    rig.look(STATUS)
    assert not resumes(rig, BOTH)
    assert resumes(rig, FAILED)


def test_failed_writes_do_not_wait_for_a_scan_that_does_not_end() -> None:
    """A region that cannot be read keeps its bit."""
    rig = streaming(settings=with_waits(failed_wait_s=3.0))
    rig.tick(1.0)
    rig.look(replace(STATUS, resync_regions=1))
    rig.capture.show(BOTH)
    assert not of(Resume, rig.tick(3.9))
    assert of(Resume, rig.tick(4.0))


def merges(rig: SourceRig, status: CaptureStatus, *, last_at: int) -> list[int]:
    """When the capture resumes, if every look in the 25 s before finds this."""
    found = []
    for now_at in range(last_at - 25, last_at):
        rig.now_at = float(now_at)
        found += [now_at for _ in range(3) if resumes(rig, status)]
        rig.ack(0)
    return found


def test_failed_writes_that_go_on_let_a_scan_have_ever_longer() -> None:
    """Each RESUME makes it begin anew: at one a minute a slow link would never end it."""
    rig = streaming(settings=with_waits(failed_wait_s=1.0, failed_wait_max_s=5.0))
    rig.look(replace(BOTH, active_regions=0))
    assert merges(rig, BOTH, last_at=26) == [1, 3, 7, 12, 17, 22]
    rig.look(STATUS)
    assert merges(rig, BOTH, last_at=51)[:2] == [26, 28]


def test_overflow_in_the_middle_of_a_scan_lets_it_have_longer_too() -> None:
    """Its RESUME makes the scan begin anew like any other."""
    rig = streaming(settings=with_waits(failed_wait_s=1.0, failed_wait_max_s=5.0))
    rig.look(replace(BOTH, active_regions=0))
    assert resumes(rig, replace(BOTH, mode=Mode.OVERFLOW))
    assert merges(rig, BOTH, last_at=26) == [2, 6, 11, 16, 21]


# Overflows that come again.


def overflow_lasts_s(rig: SourceRig, now_at: float) -> float:
    """An overflow begins now and its ring has drained; until when is it left?"""
    began_at = rig.now_at = now_at
    full = replace(FULL, overflows=rig.node.order.status.overflows + 1)
    while not resumes(rig, full):
        rig.now_at += 0.25
        rig.ack(0)  # the target is alive
        assert rig.now_at < began_at + 60
    rig.look(replace(STATUS, overflows=full.overflows))
    return rig.now_at - began_at


def test_overload_that_lasts_makes_pauses_longer_up_to_a_limit() -> None:
    rig = streaming()
    now_at, found = 1.0, []
    for _ in range(8):
        found.append(round(overflow_lasts_s(rig, now_at)))
        now_at += found[-1] + 0.1
    assert found == [0, 1, 2, 4, 8, 16, 16, 16]


def test_load_that_falls_is_forgiven() -> None:
    rig = streaming()
    now_at = 1.0
    for _ in range(4):
        now_at += overflow_lasts_s(rig, now_at) + 0.1
    for _ in range(60):
        now_at += 1
        rig.tick(now_at)
        rig.ack(0)
    assert overflow_lasts_s(rig, now_at) == 0
