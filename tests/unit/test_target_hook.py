# SPDX-License-Identifier: GPL-2.0-only
"""The process of the target's hook: its environment, its end, and that nothing is left."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from bdr.common.errors import DeviceError
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.events import HookEnded, RunHook
from bdr.common.target.hook import Cause, HookOutcome
from bdr.services.target.hook import Hook
from bdr.services.target.store import StoreWorker
from tests.support.target_rig import RECORD, STREAM

DEADLINE_S = 30.0
RUN = RunHook(Cause.COMPARE, RECORD)


class Disk:
    """As much of device and worker as a hook needs."""

    path = "/dev/replica"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.error: DeviceError | None = None

    def wait_applied(self) -> None:
        if self.error is not None:
            raise self.error
        self.done.append("applied")

    def sync(self) -> None:
        self.done.append("synced")


def new_hook(disk: Disk, *command: str, timeout_s: float = DEADLINE_S) -> Hook:
    device, worker = cast(TargetDevice, disk), cast(StoreWorker, disk)
    return Hook(command, timeout_s=timeout_s, device=device, worker=worker)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def make_hook(disk: Disk) -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def make(*command: str, timeout_s: float = DEADLINE_S) -> Hook:
        made.append(new_hook(disk, *command, timeout_s=timeout_s))
        return made[-1]

    yield make
    for hook in made:
        hook.close()


def run(hook: Hook) -> HookEnded:
    hook.put(RUN)
    return ended(hook)


def ended(hook: Hook) -> HookEnded:
    assert select.select([hook.fileno()], [], [], DEADLINE_S)[0]
    (found,) = hook.ended()
    return found


def test_command_runs_when_all_is_applied_and_synced_and_gets_the_position(
    make_hook: Callable[..., Hook], disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    out = tmp_path / "out"
    assert run(make_hook("sh", "-c", f"env > {out}")).outcome is HookOutcome.GOOD
    assert disk.done == ["applied", "synced"]
    facts = dict(line.split("=", 1) for line in out.read_text().splitlines())
    assert facts["BDR_CAUSE"] == "compare"
    assert facts["BDR_CONDITION"] == "CONSISTENT"
    assert (facts["BDR_STREAM"], facts["BDR_SLOT"]) == (STREAM.hex(), "50")
    assert facts["BDR_TARGET"] == "/dev/replica"
    assert "SECRET" not in facts


@pytest.mark.parametrize("command", [["false"], ["/nowhere/at/all"]])
def test_command_that_fails_says_so(make_hook: Callable[..., Hook], command: list[str]) -> None:
    assert run(make_hook(*command)).outcome is HookOutcome.FAILED


def test_disk_that_fails_before_is_a_failure(make_hook: Callable[..., Hook], disk: Disk) -> None:
    disk.error = DeviceError("gone")
    assert run(make_hook("true")).outcome is HookOutcome.FAILED


def test_command_that_takes_too_long_is_killed_with_its_children(
    make_hook: Callable[..., Hook], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    hook = make_hook("sh", "-c", f"exec 3> {pipe}; sleep 1000 & wait", timeout_s=1.0)
    hook.put(RUN)
    with pipe.open() as file:
        assert file.read() == ""  # when every process that has it open is gone
    assert ended(hook).outcome is HookOutcome.TIMED_OUT


def test_closing_ends_the_command(disk: Disk, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    hook = new_hook(disk, "sh", "-c", f"echo $$ > {pipe}; exec sleep 1000")
    hook.put(RUN)
    pid = int(pipe.read_text())
    closing = threading.Thread(target=hook.close)
    closing.start()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
