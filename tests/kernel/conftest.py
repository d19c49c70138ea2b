# SPDX-License-Identifier: GPL-2.0-only
"""The suite of the kernel module. It runs in a virtual machine: `make test-kernel`.

The kernel's log is read after every test, its own window of it: a warning, an
oops or a hung task fails the test that it falls into, also when the test passed. What a
test has left on the machine is removed before the next one, and fails one that passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.kernel.devices import ROOT, Bdr, Loop, run
from tests.kernel.leftovers import found, left_since, remove

MODULE = Path(os.environ.get("BDR_MODULE", ROOT / "build/vm/module/bdr.ko"))
IN_VM = os.environ.get("BDR_VM") == "1"
_SHARED = os.environ.get("BDR_VM_SHARED")
"""Directory in which machines that share the tests claim files; see deploy/machines.py."""
_IN_EACH_MACHINE = "test_udev.py"
_LONGEST = ("test_lifecycle.py", "test_resync.py", "test_attach.py", "test_overflow.py")
"""Started first: the machines then end at about the same time."""
_HAS_PASSED = pytest.StashKey[bool]()

# Not kmemleak, whose number of suspects is everybody's: injected_faults.py looks who they are.
_SPLAT = re.compile(
    r"WARNING|\bBUG\b|Oops|KASAN|KFENCE|UBSAN|KCSAN|general protection|"
    r"possible (?:recursive|circular|irq)|inconsistent lock|suspicious RCU|"
    r"blocked for more than|refcount_t|list_(?:add|del) corruption|scheduling while atomic|"
    r"bad page|Bad page|page allocation failure"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.vm)
        if not IN_VM:
            item.add_marker(pytest.mark.skip(reason="runs in a virtual machine: make test-kernel"))
    if not IN_VM:
        return
    # The tests that the others depend on come first.
    order = [_IN_EACH_MACHINE, *_LONGEST]
    names = {name: number for number, name in enumerate(order)}
    items.sort(key=lambda item: names.get(item.path.name, len(order)))


@cache
def is_of_this_machine(file: str) -> bool:
    """Whether this machine runs the tests of a file: it does if it is the first to claim it."""
    if not _SHARED or file == _IN_EACH_MACHINE:
        return True
    try:
        (Path(_SHARED) / file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Skips, without a report, a file that another machine has claimed."""
    return None if is_of_this_machine(item.path.name) else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_HAS_PASSED] = not report.failed and item.stash.get(_HAS_PASSED, True)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Shows a failure at once: a machine that dies later takes the summary with it."""
    if IN_VM and report.failed:
        print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.__stdout__, flush=True)


def load_module() -> None:
    """Loads the module, unless it is loaded."""
    if not Path("/sys/module/bdr").exists():
        run("insmod", str(MODULE))


@pytest.fixture(scope="session")
def module() -> None:
    """The module, loaded."""
    subprocess.run(["modprobe", "-aq", "dm-mod", "loop"], check=False)
    load_module()


def _clean(request: pytest.FixtureRequest, what: str) -> Iterator[None]:
    before = found()
    yield
    left = left_since(before)
    if not left:
        return
    text = f"{what} left on the machine: {', '.join(map(str, left))}"
    stays = remove(before)
    if stays:
        pytest.fail(f"{text}; and of that this cannot be removed: {', '.join(map(str, stays))}")
    if request.node.stash.get(_HAS_PASSED, True):
        pytest.fail(text, pytrace=False)
    print(f"{text}; it is removed")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_the_file(request: pytest.FixtureRequest, module: None) -> Iterator[None]:
    """As `nothing_left`, for fixtures of module scope."""
    yield from _clean(request, "the fixtures of the file")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, kernel_log: list[str]) -> Iterator[None]:
    """Removes what the test has left, and fails a test that passed: see leftovers.py.

    It is set up before every fixture that makes something, so its end comes after theirs.
    """
    yield from _clean(request, "the test")


@pytest.fixture(autouse=True)
def kernel_log(module: None) -> Iterator[list[str]]:
    """What the kernel says during the test; a splat in it is a failure."""
    # A test that failed may have unloaded it.
    load_module()
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    lines: list[str] = []
    try:
        yield lines
        while True:
            try:
                lines.append(os.read(log, 8192).decode(errors="replace"))
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
    finally:
        os.close(log)
    splats = [line for line in lines if _SPLAT.search(line)]
    if splats:
        pytest.fail("the kernel complained:\n" + "".join(lines)[-8000:], pytrace=False)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop device of 64 MiB over memory: discard and write-zeroes work."""
    with Loop(tmp_path / "lower", megabytes=64) as device:
        yield device


@pytest.fixture
def bdr(loop: Loop) -> Iterator[Bdr]:
    """A target over `loop` with room for 4096 writes."""
    with Bdr("t0", loop.path, capacity=4096) as device:
        yield device


@pytest.fixture
def disk() -> str:
    """The machine's own disk: a queue that completes from interrupts, in any order.

    Its first 32 MiB are zero.
    """
    for serial in Path("/sys/block").glob("vd*/serial"):
        if serial.read_text().strip() == "fast":
            path = f"/dev/{serial.parent.name}"
            run("blkdiscard", "-z", "-l", str(32 << 20), path)
            return path
    pytest.skip("the machine has no disk `fast`")
