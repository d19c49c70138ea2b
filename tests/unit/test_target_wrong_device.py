# SPDX-License-Identifier: GPL-2.0-only
"""A target whose device is not the one that has the replica: it answers, and touches nothing."""

from __future__ import annotations

import pytest

from bdr.common.target import events
from bdr.common.wire.control import Checksums, Digests, Ping, Rewind
from bdr.common.wire.reasons import DigestsRefused, RefusedReason
from tests.support.target_rig import EPOCH, HELLO, TargetRig, jobs, messages, refusal_of

WHY = "found another disk"


@pytest.fixture
def rig() -> TargetRig:
    made = TargetRig(wrong_device=WHY)
    made.tick(100.0)
    return made


def test_every_source_is_refused_and_the_reason_is_the_devices(rig: TargetRig) -> None:
    refused = refusal_of(rig.say(HELLO))
    assert (refused.reason, refused.text) == (RefusedReason.WRONG_DEVICE, WHY)
    assert rig.node.wrong_device == WHY
    assert not rig.node.has_source


def test_nothing_follows_for_a_disk_that_is_not_open(rig: TargetRig) -> None:
    ping = Ping(EPOCH, HELLO.generations[0], 0)
    assert [type(each) for each in messages(rig.say(ping))] == [Rewind]
    (digests,) = messages(rig.say(Checksums(1, EPOCH, 8, [(0, 8)])))
    assert isinstance(digests, Digests)
    assert digests.refused is DigestsRefused.NO_SESSION
    assert jobs(rig.handle(events.Stopping())) == []
    assert not rig.node.jobs.waiting
