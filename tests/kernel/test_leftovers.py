# SPDX-License-Identifier: GPL-2.0-only
"""What a test leaves is found by kind and name, and removed before the next test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bdr.common.capture.api import Role
from bdr.common.capture.dm import DmCapture
from tests.kernel.devices import ROOT, Bdr, Loop, create_mapped, run
from tests.kernel.leftovers import Kind, Leftover, found, left_since, remove


@pytest.fixture
def before() -> Iterator[list[Leftover]]:
    """What the machine has before the test; the rest is removed, also if the test fails."""
    there = found()
    yield there
    assert remove(there) == []


def test_nothing_made_is_nothing_found(before: list[Leftover]) -> None:
    assert left_since(before) == []
    assert remove(before) == []


def test_stack_of_devices_in_use_is_taken_down_from_its_top(
    before: list[Leftover], module: None, tmp_path: Path
) -> None:
    """A process in a mount on a suspended target over a mapped device over a loop device."""
    loop = Loop(tmp_path / "lower", megabytes=64).__enter__()
    create_mapped("under", f"0 131072 linear {loop.path} 0")
    bdr = Bdr("t0", "/dev/mapper/under", capacity=64).__enter__()
    run("mkfs.ext4", "-q", bdr.path)
    mount = tmp_path / "with a blank"
    mount.mkdir()
    run("mount", bdr.path, mount)
    within = subprocess.Popen(["sleep", "1000"], cwd=mount)
    run("dmsetup", "suspend", "--nolockfs", "under")
    left = left_since(before)
    assert {(one.kind, one.name.partition("@")[0]) for one in left} == {
        (Kind.PROCESS, str(within.pid)),
        (Kind.MOUNT, str(mount)),
        (Kind.MAPPED, "t0"),
        (Kind.MAPPED, "under"),
        (Kind.LOOP, loop.path),
    }
    assert remove(before) == []
    assert within.wait(10) < 0
    assert left_since(before) == []


def test_table_that_was_never_live_is_found(before: list[Leftover], loop: Loop) -> None:
    there = found()
    run("dmsetup", "create", "bare", "--notable")
    run("dmsetup", "load", "bare", "--table", f"0 8 linear {loop.path} 0")
    assert left_since(there) == [Leftover(Kind.MAPPED, "bare")]
    assert remove(there) == []


def test_open_and_mapped_devices_of_the_test_process_are_given_up(
    before: list[Leftover], bdr: Bdr
) -> None:
    there = found()
    capture = DmCapture(bdr.device, Role.OBSERVER)
    disk = os.open(bdr.path, os.O_RDONLY)
    left = left_since(there)
    assert {one.kind for one in left} == {Kind.FILE, Kind.MAPPING}
    assert remove(there) == []
    # An object that still has their numbers and addresses may close them.
    os.close(disk)
    capture.close()


TESTS = """\
from pathlib import Path
from tests.kernel.devices import Loop, Mapped, run

def leave(directory):
    loop = Loop(directory / "lower", megabytes=8).__enter__()
    Mapped("left", f"0 16384 linear {loop.path} 0").__enter__()
    return loop.path

def test_that_fails(tmp_path):
    leave(tmp_path)
    assert False

def test_that_passes_after_one_that_failed(tmp_path):
    leave(tmp_path)

def test_that_makes_the_same_and_removes_it(tmp_path):
    with Loop(tmp_path / "lower", megabytes=8) as loop:
        with Mapped("left", f"0 16384 linear {loop.path} 0"):
            backing = Path("/sys/block").glob("loop*/loop/backing_file")
            assert [file for file in backing if "/lower" in file.read_text()] == [
                Path("/sys/block", Path(loop.path).name, "loop/backing_file")
            ]
"""


def test_failed_test_leaves_nothing_and_a_passed_one_that_leaves_something_fails(
    before: list[Leftover], module: None, tmp_path: Path
) -> None:
    file, results = tmp_path / "test_inner.py", tmp_path / "results.xml"
    file.write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.kernel.conftest", "-p", "no:cacheprovider",
         "-p", "no:hypothesispytest", "--rootdir", tmp_path, "-c", "/dev/null",
         f"--junitxml={results}", file],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "BDR_VM_SHARED"},
    )  # fmt: skip
    verdicts: dict[str, list[str]] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        verdicts.setdefault(case.attrib["name"], []).extend(child.tag for child in case)
    seen = {name: {"failure", "error"} & set(verdict) for name, verdict in verdicts.items()}
    assert seen == {
        "test_that_fails": {"failure"},
        "test_that_passes_after_one_that_failed": {"error"},
        "test_that_makes_the_same_and_removes_it": set(),
    }, done.stdout
    assert left_since(before) == []
