# SPDX-License-Identifier: GPL-2.0-only
"""The main job: the target follows the source, whatever is written and killed."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.command import wait_for
from tests.bench.rig import resident_bytes
from tests.pipeline.pair import BLOCK_BYTES, DEADLINE_S, MIB, SMALL_JOURNAL, Pair

RESIDENT_BYTES_MAX = 150 * MIB


@pytest.mark.parametrize("options", [SMALL_JOURNAL, ["--journal", "none"]], ids=["journal", "none"])
def test_every_operation_is_replicated(make_pair: Callable[..., Pair], options: list[str]) -> None:
    pair = make_pair(writes=32768, applier_options=options)  # more than is written
    start_streaming(pair)
    pair.scribble(random.Random(1), 3000)
    pair.settle()
    assert pair.becomes_identical()
    assert "level=error" not in "".join(pair.stack.log(name) for name in pair.stages())


@pytest.mark.parametrize("senders", [1, 4])
def test_any_number_of_senders_replicates(make_pair: Callable[..., Pair], senders: int) -> None:
    pair = make_pair(senders=senders)
    start_streaming(pair)
    pair.scribble(random.Random(senders), 1000)
    pair.settle()
    assert pair.becomes_identical()


@pytest.mark.parametrize("stage", ["v-reader", "v-sender-1", "v-sender-2", "v-applier"])
def test_a_killed_stage_leaves_an_identical_replica(pair: Pair, stage: str) -> None:
    rng = random.Random(stage)
    for _ in range(3):
        pair.scribble(rng, 200)
        pair.kill(stage)
        pair.scribble(rng, 200)
    pair.settle()
    assert pair.becomes_identical()
    assert pair.status().overflows == 0


def test_a_stopped_pipeline_goes_on_where_it_was(pair: Pair) -> None:
    rng = random.Random(2)
    for stages in ([stage] for stage in pair.stages()):
        pair.scribble(rng, 100)
        for stage in stages:
            pair.stack.stop(stage)
        pair.scribble(rng, 100)
        for stage in stages:
            pair.stack.start(stage)
    pair.settle()
    assert pair.becomes_identical()
    # Nothing was sent from an unknown place, which would have needed a scan.
    assert pair.stack.log("v-applier").count("event=unknown-position") == 1


def test_resident_memory_stays_bounded_whatever_the_backlog(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(size=512 * MIB, writes=65536, senders=1)
    start_streaming(pair)
    block = random.Random(3).randbytes(MIB)
    with pair.frozen("v-applier"):
        for at in range(200):
            pair.client.write(at * MIB, block)
    pair.settle()
    for at in range(200, 400):
        pair.client.write(at * MIB, block)
    pair.settle()
    assert pair.becomes_identical()
    for stage in ("v-sender-1", "v-applier"):
        assert resident_bytes(pair.stack.pid(stage))["VmHWM"] < RESIDENT_BYTES_MAX, stage


def test_overflow_never_blocks_the_writer_and_is_declared(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(writes=1024)
    start_streaming(pair)
    with pair.frozen("v-applier"):
        for at in range(2048):
            pair.client.write(at * BLOCK_BYTES, at.to_bytes(4, "little") * 1024)
        assert pair.status().overflows == 1
    # The reader leaves OVERFLOW by itself; the target learns that writes are missing.
    wait_for(
        lambda: pair.status().mode.name == "STREAM" and pair.status().resync_regions > 0,
        what="the end of the overflow",
        timeout_s=DEADLINE_S,
    )
    pair.client.write(0, b"after".ljust(BLOCK_BYTES))
    pair.wait_logged("v-applier", "event=condition condition=INCONSISTENT")


def start_streaming(pair: Pair) -> None:
    """Starts the stages, and waits until a first write has come through."""
    pair.start()
    pair.client.write(0, b"first".ljust(BLOCK_BYTES))
    pair.settle()


@pytest.mark.timeout(180)
def test_demo_ends_with_an_identical_replica() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "replica is identical"
    assert re.search(r"copied \d{4} files", done.stdout)


@pytest.mark.timeout(180)
def test_interrupted_demo_leaves_nothing_behind() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "deploy.demo"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout
    directory = None
    for line in demo.stdout:
        if found := re.search(r"replica (/\S+)/replica.img", line):
            directory = Path(found[1])
        if "copied" in line:
            break
    demo.terminate()
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, rest
    assert "everything that it made is removed" in rest
    assert directory
    assert not directory.exists()
    for proc in ("/proc/mounts",):
        assert str(directory) not in Path(proc).read_text()
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert str(directory) not in loops.stdout
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(directory) not in running.stdout
