# SPDX-License-Identifier: GPL-2.0-only
"""A process that lacks something of its host waits and begins anew; it says so meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from bdr.common import errors
from bdr.common.errors import DeviceError, HostError
from bdr.common.host.programs import RETRY, RetryMode
from bdr.common.status.reports import decode_report
from bdr.services.runtime import options, reports, retry, sockets
from bdr.services.runtime.loop import Loop

ERROR = DeviceError("target /dev/x: found it missing")


class BegunAnewError(Exception):
    """In place of another program."""

    def __init__(self, variables: dict[str, str]) -> None:
        super().__init__()
        self.variables = variables


@pytest.fixture
def begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(_path: str, _words: list[str], variables: dict[str, str]) -> None:
        raise BegunAnewError(variables)

    monkeypatch.setattr(os, "execve", begin)
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def run_dir() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bdr-") as path:  # short enough for a socket
        yield path


@pytest.mark.parametrize(
    ("mode", "has_worked", "variables", "allowed"),
    [
        (None, True, {}, False),
        (RetryMode.ALWAYS, False, {}, True),
        (RetryMode.AFTER_START, False, {}, False),
        (RetryMode.AFTER_START, True, {}, True),
        (RetryMode.AFTER_START, False, {"BDR_HAS_WORKED": "1"}, True),
    ],
)
def test_who_starts_a_process_decides_whether_it_waits(
    monkeypatch: pytest.MonkeyPatch,
    mode: RetryMode | None,
    has_worked: bool,
    variables: dict[str, str],
    allowed: bool,
) -> None:
    monkeypatch.delenv(RETRY, raising=False)
    for name, value in (({RETRY: mode.value} if mode else {}) | variables).items():
        monkeypatch.setenv(name, value)
    assert retry.is_allowed(has_worked=has_worked) is allowed


@pytest.mark.usefixtures("begins_anew")
@pytest.mark.parametrize(
    ("before", "worked_s", "after"),
    [
        (None, None, {"BDR_FAILURES": "1"}),
        ("3", None, {"BDR_FAILURES": "4"}),
        ("3", 1.0, {"BDR_FAILURES": "4", "BDR_HAS_WORKED": "1"}),
        ("3", retry.STEADY_S, {"BDR_FAILURES": "1", "BDR_HAS_WORKED": "1"}),
    ],
)
def test_failures_in_succession_are_counted(
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    worked_s: float | None,
    after: dict[str, str],
) -> None:
    for name in ("BDR_FAILURES", "BDR_HAS_WORKED"):
        monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv("BDR_FAILURES", before)
    with pytest.raises(BegunAnewError) as begun:
        retry.wait_and_begin_anew(ERROR, stage="applier", run_dir=None, worked_s=worked_s)
    found = begun.value.variables
    assert {name: found[name] for name in found if name in ("BDR_FAILURES", "BDR_HAS_WORKED")} == (
        after
    )


@pytest.mark.usefixtures("begins_anew")
def test_a_process_that_waits_reports_why(run_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES_S", (3600.0,))
    loop = Loop()
    received = sockets.report_puller(loop.context)
    received.bind(sockets.endpoint(run_dir, reports.ENDPOINT))
    found = []

    def receive() -> None:
        if received.poll(30_000, zmq.POLLIN):
            found.append(decode_report(received.recv()))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=receive)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    thread.start()
    try:
        with pytest.raises(SystemExit) as ended:
            retry.wait_and_begin_anew(ERROR, stage="applier", run_dir=run_dir, worked_s=None)
    finally:
        thread.join()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
        loop.close()
    assert ended.value.code == 0
    (report,) = found
    assert (report.stage, report.values, report.waits_for) == ("applier", None, str(ERROR))


def test_it_begins_as_it_was_started() -> None:
    """Arguments, process id and the flag that it has begun anew; nothing else is kept open."""
    program = (
        "import os, sys\n"
        "from bdr.common.errors import DeviceError\n"
        "from bdr.services.runtime import retry\n"
        "print(os.getpid(), sys.argv[1:], len(os.listdir('/proc/self/fd')), flush=True)\n"
        "retry.PAUSES_S = (0.0,)\n"
        "if retry._HAS_WORKED not in os.environ:\n"
        "    kept = open('/dev/null')\n"
        "    error = DeviceError('x')\n"
        "    retry.wait_and_begin_anew(error, stage='reader', run_dir=None, worked_s=0.5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--volume", "a b"],
        check=True,
        capture_output=True,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first == second


class Missing:
    """What a stage fails with."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self) -> options.Service:
        raise self._error


def test_without_a_mode_an_error_of_the_host_ends_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(RETRY, raising=False)
    with pytest.raises(SystemExit) as ended:
        options.run(Missing(ERROR), stage="applier", run_dir=None)
    assert ended.value.code == DeviceError.exit_code


@pytest.mark.usefixtures("begins_anew")
@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BdrError)
    ],
)
def test_only_an_error_of_the_host_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, kind: type[errors.BdrError]
) -> None:
    monkeypatch.setenv(RETRY, RetryMode.ALWAYS.value)
    expected = BegunAnewError if issubclass(kind, HostError) else SystemExit
    with pytest.raises(expected):
        options.run(Missing(kind("x")), stage="applier", run_dir=None)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_descriptor_of_a_device(tmp_path: Path, closed: str) -> None:
    """Otherwise log lines are written to whatever is opened next."""
    path = tmp_path / "found"
    program = (
        "import os, sys\n"
        "from bdr.services.runtime.process import open_standard_streams\n"
        "open_standard_streams()\n"
        f"fd = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT)\n"
        "print('x'); print('x', file=sys.stderr)\n"
        "assert sys.stdin is not None\n"
        "os.write(fd, str(fd).encode())\n"
    )
    subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert int(path.read_text()) >= 3
