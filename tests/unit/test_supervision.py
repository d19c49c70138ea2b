# SPDX-License-Identifier: GPL-2.0-only
"""What is left when something around a side fails: its output, its files, its monitor."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from bdr.common.host import config
from bdr.services.cli import foreground
from bdr.services.monitoring import exporter
from bdr.services.monitoring.exporter import Exporter
from bdr.services.supervise import supervisord
from bdr.services.supervise.scaling import Scaling
from tests.unit.statuses import SOURCE


def test_output_that_can_go_nowhere_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else supervisord stands still as soon as its pipe is full."""
    lines = io.BytesIO(b"a line\n" * 1000)
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", full)
        foreground._relay(lines)
    assert lines.read() == b""


@pytest.mark.parametrize("content", ["", "{", '{"v": {"sen'])
def test_damaged_scale_file_leaves_the_numbers_of_the_configuration(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "scale.json").write_text(content)
    volume = {"role": "source", "address": "a", "chardev": "/dev/c", "senders": 3}
    found = config.check({"volume": {"v": volume}}, where="here")
    scaling = Scaling(str(tmp_path))
    assert scaling.counts(found) == {}
    scaling.set(found, {("v", "sender"): 5})
    assert scaling.counts(found) == {("v", "sender"): 5}


def test_scale_file_is_synced_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(fd: int) -> None:
        story.append("sync")
        sync(fd)

    def note_replace(path: Path, to: Path) -> Path:
        story.append("replace")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    found = config.check({}, where="here")
    Scaling(str(tmp_path)).set(found, {("v", "sender"): 2})
    assert story == ["sync", "replace"]


def test_of_a_monitor_that_hangs_only_unknown_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Exporter("127.0.0.1", 0)
    try:
        served.put(SOURCE)
        now_at = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_at + exporter.STALE_AFTER_S + 1)
        words = {
            sample.labels["health"]: sample.value
            for family in served.collect()
            for sample in family.samples
            if sample.name == "bdr_health"
        }
        assert words.pop("unknown") == 1
        assert not any(words.values())
        assert not [family.name for family in served.collect() if "behind" in family.name]
    finally:
        monkeypatch.undo()
        served.close()


@pytest.mark.parametrize("call", ["update", "stop_all"])
def test_no_change_waits_for_a_supervisord_that_hangs(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisord, "STOPPED_S", 0.1)
    supervision = supervisord.Supervision(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(supervision.socket))
        hanging.listen()  # connections are accepted by the kernel, and never answered
        with pytest.raises(supervisord.NotRunningError):
            getattr(supervision, call)()
