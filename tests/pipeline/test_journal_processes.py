# SPDX-License-Identifier: GPL-2.0-only
"""The journal in real appliers: killed under load, on failing disks, and how they end."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from bdr.common.errors import DeviceError, StateError
from deploy.command import wait_for
from tests.pipeline.pair import DEADLINE_S, MIB, Pair

APPLIER = "v-applier"
JOURNAL = ("--journal-size", "16M")


def limited(pair: Pair, limit: int) -> Pair:
    """An applier whose writes fail beyond so many bytes of any file."""
    program = pair.target_program
    command = ["prlimit", f"--fsize={limit}", *program.command]
    pair.target_program = replace(program, command=command)
    return pair


@pytest.mark.parametrize("seed", range(2))
def test_applier_killed_again_and_again_leaves_the_source(
    make_pair: Callable[..., Pair], seed: int
) -> None:
    pair = make_pair(applier_options=JOURNAL, writes=65536)
    rng = random.Random(seed)
    pair.start()
    pair.client.write(0, b"first".ljust(4096))
    pair.wait_logged(APPLIER, "condition=CONSISTENT")
    pair.client.write(0, b"second".ljust(4096))
    pair.settle()  # and with it the mark that came before
    for times in range(6):
        pair.scribble(rng, rng.randrange(50, 400))
        pair.kill(APPLIER)
        pair.wait_logged(APPLIER, "event=listening", times=times + 2)
    pair.scribble(rng, 100)
    pair.settle()
    assert pair.status().overflows == 0
    assert pair.becomes_identical()
    log = pair.stack.log(APPLIER)
    assert log.count("event=unknown-position") == 1  # the first; no scan was ever needed
    assert log.count("event=journal-replayed") == 6
    starts = [line for line in log.splitlines() if "event=listening" in line][1:]
    assert len(starts) == 6
    assert all("condition=CONSISTENT" in line for line in starts)  # a prefix at once


def test_failing_target_ends_the_applier_and_the_journal_has_what_it_took(
    make_pair: Callable[..., Pair],
) -> None:
    # The target is bigger than the journal, so only the target meets the limit.
    pair = limited(make_pair(applier_options=JOURNAL), 32 * MIB)
    pair.start()
    pair.client.write(0, b"below".ljust(4096))
    pair.settle()
    pair.client.write(48 * MIB, b"beyond".ljust(4096))
    code, line = pair.ended_with(APPLIER)
    assert code == DeviceError.exit_code
    assert "nothing acknowledged is lost" in line
    pair.stack.add([pair.target_with(options=JOURNAL)])  # mended: no limit
    pair.wait_logged(APPLIER, "event=journal-replayed")
    pair.settle()
    assert pair.becomes_identical()


def test_no_room_for_the_journal_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = limited(make_pair(applier_options=("--journal-size", "64M")), 32 * MIB)
    pair.start()
    code, line = pair.ended_with(APPLIER)
    assert code == StateError.exit_code
    assert "--journal-size" in line


def test_damaged_journal_ends_the_applier_and_leaves_the_target(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(applier_options=JOURNAL)
    pair.start()
    pair.scribble(random.Random(1), 50)
    pair.settle()
    # Stopped, it writes no superblock before it is killed.
    os.kill(pair.stack.pid(APPLIER), signal.SIGSTOP)
    with pair.state.with_name("state.journal").open("r+b") as file:
        for offset in (100, 4096 + 100):
            file.seek(offset)
            file.write(b"\xff")
    content = pair.target.read_bytes()
    pair.kill(APPLIER)
    code, line = pair.ended_with(APPLIER)
    assert code == StateError.exit_code
    assert "superblock copy 0 damaged and copy 1 damaged" in line
    assert "let the source scan" in line
    assert pair.target.read_bytes() == content


def test_clean_stop_leaves_nothing_to_the_journal(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(applier_options=JOURNAL)
    pair.start()
    rng = random.Random(5)
    pair.scribble(rng, 300)
    pair.settle()
    pair.stack.stop(APPLIER)
    wait_for(lambda: pair.stack.pid(APPLIER) == 0, what="the stop", timeout_s=DEADLINE_S)
    assert pair.source.read_bytes() == pair.target.read_bytes()
