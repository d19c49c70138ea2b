# SPDX-License-Identifier: GPL-2.0-only
"""The suite of the kernel module. It runs in a virtual machine: `make test-kernel`.

The kernel's log is read after every test, its own window of it: a warning, an
oops or a hung task fails the test that it falls into, also when the test passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.devices import ROOT, Bdr, Loop, run

MODULE = Path(os.environ.get("BDR_MODULE", ROOT / "build/vm/module/bdr.ko"))
IN_VM = os.environ.get("BDR_VM") == "1"

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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Shows a failure at once: a machine that dies later takes the summary with it."""
    if IN_VM and report.failed:
        print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.__stdout__, flush=True)


@pytest.fixture(scope="session")
def module() -> None:
    """The module, loaded."""
    subprocess.run(["modprobe", "-aq", "dm-mod", "loop"], check=False)
    if not Path("/sys/module/bdr").exists():
        run("insmod", str(MODULE))


@pytest.fixture(autouse=True)
def kernel_log(module: None) -> Iterator[list[str]]:
    """What the kernel says during the test; a splat in it is a failure."""
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
