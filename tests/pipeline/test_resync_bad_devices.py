# SPDX-License-Identifier: GPL-2.0-only
"""Scans of devices that fail, or are of another size: said, survived, never called equal."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdr.common.errors import CaptureGoneError, DeviceError
from deploy.command import wait_for
from tests.pipeline.bad_devices import failing, half_dead
from tests.pipeline.pair import DEADLINE_S, MIB
from tests.pipeline.scanned import ScannedPair, fill
from tests.pipeline.test_resync_scan import MakePair, make_pair

__all__ = ["make_pair"]  # a fixture


@pytest.fixture
def devices() -> Iterator[contextlib.ExitStack]:
    """Ends before the pair that uses them does not exist any more."""
    with contextlib.ExitStack() as stack:
        yield stack


def with_failing_target(
    make_pair: MakePair, devices: contextlib.ExitStack, directory: Path, request: str
) -> tuple[ScannedPair, Path]:
    """A pair whose target is broken from the start, and what must be unlinked to mend it."""
    pair = make_pair(size=32 * MIB)
    fill(pair, 3, extents=50)
    pair.adopt()
    view, broken = devices.enter_context(failing(pair.target, directory / request, request=request))
    broken.touch()
    pair.target_program = pair.target_with(target=view, options=("--journal", "none"))
    return pair, broken


def test_source_that_fails_reads_is_reported_by_range_and_the_rest_goes_on(
    make_pair: MakePair, directory: Path, devices: contextlib.ExitStack
) -> None:
    pair = make_pair(size=64 * MIB)
    fill(pair, 3, extents=50)
    device = devices.enter_context(
        half_dead(pair.source, directory / "dead", sectors=range(16384, 16400))
    )
    pair.scanner_options = ["--underdev", device]
    pair.start()
    wait_for(
        lambda: pair.status().resync_regions == 1, what="all but one region", timeout_s=DEADLINE_S
    )
    assert 'sectors="[(16384, 16)]"' in pair.stack.log("v-scanner-1")
    done = pair.bdr("resync")
    assert done.returncode == 1
    assert "the source cannot be read: sectors 16384 to 16399" in done.stdout
    assert pair.condition() in ("UNVERIFIED", "INCONSISTENT")


def test_target_that_fails_reads_is_said_and_scanned_when_it_is_mended(
    make_pair: MakePair, directory: Path, devices: contextlib.ExitStack
) -> None:
    pair, broken = with_failing_target(make_pair, devices, directory, "pread")
    pair.start()
    pair.wait_logged("v-scanner-1", "event=abandoned", times=3)
    said = pair.stack.log("v-scanner-1")
    assert "reading" in said
    assert os.strerror(5) in said
    assert pair.condition() == "UNVERIFIED"
    assert pair.status().resync_regions == pair.capture.info.regions
    broken.unlink()
    pair.wait_consistent()
    assert pair.becomes_identical()


def test_target_that_fails_writes_ends_the_applier_and_is_scanned_when_it_is_mended(
    make_pair: MakePair, directory: Path, devices: contextlib.ExitStack
) -> None:
    pair, broken = with_failing_target(make_pair, devices, directory, "pwrite")
    pair.start()
    code, line = pair.ended_with("v-applier")
    assert code == DeviceError.exit_code
    assert "writing" in line
    assert os.strerror(5) in line
    assert "CONSISTENT" not in pair.stack.log("v-applier").replace("INCONSISTENT", "")
    assert pair.status().resync_regions > 0
    broken.unlink()
    pair.stack.start("v-applier")
    pair.wait_consistent()
    assert pair.becomes_identical()
    # It knew where it was: nothing had to be compared that was durable.
    assert pair.stack.log("v-applier").count("event=unknown-position") == 1


def test_target_larger_than_its_source_is_scanned_as_far_as_that_reaches(
    make_pair: MakePair,
) -> None:
    pair = make_pair(size=32 * MIB + 512, target_size=48 * MIB)
    fill(pair, 5, extents=30)
    with pair.target.open("r+b") as file:
        file.seek(pair.size)
        file.write(b"not the source's")
    pair.adopt()
    pair.start()
    pair.scribble(random.Random(5), 100)
    pair.wait_consistent()
    assert pair.becomes_identical()
    assert pair.bdr("verify").returncode == 0
    with pair.target.open("rb") as file:
        file.seek(pair.size)
        assert file.read(16) == b"not the source's"
    assert pair.target.stat().st_size == 48 * MIB


def test_target_smaller_than_its_source_is_refused_and_stays_untouched(
    make_pair: MakePair,
) -> None:
    pair = make_pair(size=64 * MIB, target_size=64 * MIB - 512)
    fill(pair, 6, extents=10)
    pair.start()
    code, line = pair.ended_with("v-reader")
    assert code == 71
    assert "found a source of 131072 sectors, wanted at most 131071" in line
    assert "enlarge the target" in line
    with pair.target.open("rb") as file:
        assert not any(file.read())


def test_file_that_grows_is_served_as_it_was_until_it_is_captured_anew(
    make_pair: MakePair,
) -> None:
    pair = make_pair(size=32 * MIB, target_size=48 * MIB)
    pair.start()
    pair.wait_consistent()
    with pair.source.open("r+b") as file:
        file.seek(40 * MIB)
        file.write(b"below the capture")
        file.truncate(48 * MIB)
    rng = random.Random(7)
    pair.scribble(rng, 50)
    pair.wait_consistent()
    assert pair.status().device_sectors == 32 * MIB // 512
    pair.capture_anew()
    pair.size = 48 * MIB
    # The reader alone: sender and scanner still know the capture of before.
    code, _ = pair.ended_with("v-reader")
    assert code == CaptureGoneError.exit_code
    pair.stack.start("v-reader")
    pair.wait_logged("v-scanner-1", "error=StaleCaptureError")
    pair.scribble(rng, 200)
    pair.wait_consistent()
    pair.scribble(rng, 200)
    pair.wait_consistent()
    assert pair.becomes_identical()
    assert "error=StaleCaptureError" in pair.stack.log("v-sender-1")
