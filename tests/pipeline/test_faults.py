# SPDX-License-Identifier: GPL-2.0-only
"""Kills, cuts and full disks while writes go on: always a prefix, never a scan."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.services.target.journal_store import open_journal
from deploy.command import run, wait_for
from tests.pipeline.pair import BLOCK_BYTES, DEADLINE_S, MIB, VOLUME, Pair
from tests.pipeline.proxy import BadLink
from tests.pipeline.stamped import StampedWriter

BLOCKS = 2048
KILLS = int(os.environ.get("BDR_TEST_KILLS", "100"))
CUT_S = float(os.environ.get("BDR_TEST_CUT_S", "10"))
SNAPSHOT_EVERY = 10


@pytest.fixture
def stamped(make_pair: Callable[..., Pair]) -> Iterator[tuple[Pair, StampedWriter]]:
    """A pair with a journal, and a writer at work."""
    pair = make_pair(size=BLOCKS * BLOCK_BYTES, writes=65536)
    pair.start()
    writer = StampedWriter(pair.nbd, blocks=BLOCKS, seed=1)
    yield pair, writer
    writer.stop()


def recovered_prefix(pair: Pair, writer: StampedWriter) -> int:
    """Which prefix a target that dies at this moment would come up with."""
    copies = pair.directory / "copies"
    copies.mkdir()
    try:
        with pair.frozen("v-applier"):
            acknowledged = pair.status().tail
            for name in ("target", "state", "state.journal"):
                run("cp", "--sparse=always", str(pair.directory / name), str(copies / name))
        store, record = open_journal(
            path=str(copies / "state.journal"),
            size_bytes=None,
            device=TargetDevice(str(copies / "target")),
            record_file=RecordFile(str(copies / "state")),
            volume=VOLUME,
        )
        store.close()
        prefix = writer.prefix_of(copies / "target")
        # Each write is one slot, so slots and writes count alike.
        assert prefix == record.slot
        assert prefix >= acknowledged
        return prefix
    finally:
        shutil.rmtree(copies)


def assert_caught_up_without_a_scan(pair: Pair, writer: StampedWriter) -> None:
    """Identical once the writer has ended; every session went on from a known place."""
    written = writer.stop()
    pair.settle()
    assert pair.becomes_identical()
    assert writer.prefix_of(pair.target) == written
    assert pair.status().overflows == 0
    log = pair.stack.log("v-applier")
    assert log.count("event=unknown-position") == 1
    assert set(re.findall(r"event=refused reason=(\w+)", log)) <= {"BUSY"}


@pytest.mark.timeout(600)
def test_a_hundred_kills_of_any_stage_leave_a_prefix_and_lose_nothing(
    stamped: tuple[Pair, StampedWriter],
) -> None:
    pair, writer = stamped
    rng = random.Random(2)
    before = 0

    def is_past(slot: int) -> bool:
        return pair.status().tail > slot

    for kill in range(1, KILLS + 1):
        pair.kill(pair.stages()[kill % 4] if kill <= 8 else rng.choice(pair.stages()))
        if kill % SNAPSHOT_EVERY == 0:
            tail = pair.status().tail
            wait_for(
                partial(is_past, tail),
                what="progress after the kills",
                timeout_s=DEADLINE_S,
            )
            prefix = recovered_prefix(pair, writer)
            assert prefix > before
            before = prefix
    assert_caught_up_without_a_scan(pair, writer)


@pytest.mark.timeout(300)
def test_a_target_killed_at_any_moment_comes_up_as_a_prefix(
    stamped: tuple[Pair, StampedWriter],
) -> None:
    pair, writer = stamped
    wait_for(lambda: pair.status().tail > 0, what="the first batch", timeout_s=DEADLINE_S)
    prefixes = [recovered_prefix(pair, writer) for _ in range(20)]
    assert prefixes == sorted(prefixes)
    assert_caught_up_without_a_scan(pair, writer)


@pytest.mark.timeout(300)
def test_senders_come_and_go_while_writes_go_on(stamped: tuple[Pair, StampedWriter]) -> None:
    pair, writer = stamped
    sender = pair.source_programs[1]
    for instance in (3, 4, 5):
        pair.stack.add([replace(sender, instance=instance)])
    for name in ("v-sender-1", "v-sender-4", "v-sender-2"):
        pair.stack.stop(name)
    pair.stack.start("v-sender-1")
    assert_caught_up_without_a_scan(pair, writer)


@pytest.fixture
def over_a_bad_link(
    make_pair: Callable[..., Pair],
) -> Iterator[tuple[Pair, StampedWriter, BadLink]]:
    """As `stamped`, with a link that can be cut between the two sides."""
    pair = make_pair(size=BLOCKS * BLOCK_BYTES, writes=65536)
    with BadLink(pair.port, pair.port + 1) as link:
        pair.address = link.address
        pair.start()
        writer = StampedWriter(pair.nbd, blocks=BLOCKS, seed=3, pause_s=0.002)
        wait_for(lambda: pair.status().tail > 0, what="the first batch", timeout_s=DEADLINE_S)
        yield pair, writer, link
        link.flow()
        link.mend()
        writer.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["cut", "stalled"])
def test_a_link_that_fails_for_long_costs_no_scan(
    over_a_bad_link: tuple[Pair, StampedWriter, BadLink], kind: str
) -> None:
    pair, writer, link = over_a_bad_link
    (link.cut if kind == "cut" else link.stall)()
    # The outage's length is what is tested: nothing is waited for by it.
    time.sleep(CUT_S)
    behind = pair.status()
    assert behind.head > behind.tail, "nothing was written meanwhile"
    recovered_prefix(pair, writer)
    (link.mend if kind == "cut" else link.flow)()
    assert_caught_up_without_a_scan(pair, writer)


@pytest.mark.timeout(300)
def test_a_slow_link_delays_and_loses_nothing(
    over_a_bad_link: tuple[Pair, StampedWriter, BadLink],
) -> None:
    pair, writer, link = over_a_bad_link
    sessions = pair.stack.log("v-reader").count("event=streaming")
    link.delay_s = 0.15
    slot = pair.status().head + 500
    wait_for(lambda: pair.status().tail > slot, what="500 more slots", timeout_s=DEADLINE_S)
    recovered_prefix(pair, writer)
    # Slow is not lost: nothing was sent twice.
    assert pair.stack.log("v-reader").count("event=streaming") == sessions
    assert_caught_up_without_a_scan(pair, writer)


@pytest.mark.timeout(300)
def test_a_failing_target_leaves_the_applier_down_until_it_is_mended(
    make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    """The target is a file on a file system that is too full for it."""
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(small))
    try:
        target = small / "target"
        with target.open("wb") as file:
            file.truncate(16 * MIB)
        pair = make_pair(size=16 * MIB)
        pair.target.unlink()
        pair.target.symlink_to(target)
        pair.start()
        for at in range(8):
            pair.client.write(at * MIB, random.Random(at).randbytes(MIB))
        code, why = pair.ended_with("v-applier")
        assert code == 66
        assert "No space left on device" in why
        run("mount", "-o", "remount,size=64M", str(small))
        pair.stack.start("v-applier")
        pair.settle()
        assert pair.becomes_identical()
        pair.stack.stop("v-applier")
    finally:
        run("umount", "--lazy", str(small))


def test_the_judge_of_prefixes_tells_a_hole_from_a_prefix(pair: Pair) -> None:
    writer = StampedWriter(pair.nbd, blocks=64, seed=4, pause_s=0)
    wait_for(lambda: writer.completed > 500, what="500 writes", timeout_s=DEADLINE_S)
    written = writer.stop()
    assert writer.prefix_of(pair.source) == written
    stamps = [
        int.from_bytes(pair.source.read_bytes()[at * BLOCK_BYTES :][:8], "little")
        for at in range(64)
    ]
    older = sorted(stamps)[-2]
    with pair.source.open("r+b") as file:
        # The last write but one is missing, the last is there.
        file.seek(stamps.index(older) * BLOCK_BYTES)
        file.write((older - 1).to_bytes(8, "little") * (BLOCK_BYTES // 8))
    with pytest.raises(AssertionError, match="came before"):
        writer.prefix_of(pair.source)
