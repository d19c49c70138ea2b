# SPDX-License-Identifier: GPL-2.0-only
"""supervisord's logs lose lines where they cannot be written, and raise and block nowhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from supervisor import loggers
from supervisor.options import ServerOptions

from bdr.services.supervise import inside, logs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """supervisor's own functions, which `install` replaces."""
    own = loggers.handle_file, loggers.handle_stdout
    yield
    loggers.handle_file, loggers.handle_stdout = own


def child_log(path: Path, **settings: Any) -> Any:
    """A logger of a process's output, as supervisord makes it."""
    logger = loggers.getLogger()
    logs.install(logger)
    values = {"rotating": True, "maxbytes": 1 << 20, "backups": 2} | settings
    loggers.handle_file(logger, filename=str(path), fmt="%(message)s", **values)
    return logger


def test_output_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    logger = child_log(path)
    for text in (b"one\n", b"tw", b"o\n", "three\n"):
        logger.info(text)
    assert path.read_text() == "before\none\ntwo\nthree\n"


def test_a_log_is_rotated_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logger = child_log(path, maxbytes=10)
    for number in range(4):
        logger.info(b"number %d!!\n" % number)
    logger.info(b"x\n")
    assert path.read_text() == "x\n"
    assert (tmp_path / "log.1").read_text() == "number 3!!\n"
    assert (tmp_path / "log.2").read_text() == "number 2!!\n"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("first", [b"b\n", b'{"event": "b"}\n'])
def test_a_directory_that_is_gone_loses_lines_until_it_is_back(
    tmp_path: Path, first: bytes
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "log"
    logger = child_log(path, maxbytes=4)
    path.unlink()
    directory.rmdir()
    logger.info(b"long enough to rotate\n")
    logger.info(b"lost\nlost\n")
    logger.info(b"lost\n")
    directory.mkdir()
    logger.info(first)
    notice, line = (directory / "log.1").read_bytes().splitlines(keepends=True)
    assert line == first
    assert b"lines-lost" in notice
    assert b"3" in notice
    assert notice.startswith(b"{") == first.startswith(b"{")


def test_a_process_can_be_started_without_its_log(tmp_path: Path) -> None:
    logger = child_log(tmp_path / "missing" / "log")
    logger.info(b"lost\n")
    (tmp_path / "missing").mkdir()
    logger.info(b"kept\n")
    assert (tmp_path / "missing" / "log").read_text().endswith("kept\n")


def test_a_full_disk_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    logger = child_log(tmp_path / "log", rotating=False)
    for _ in range(100):
        logger.info(b"lost\n")
    assert logger.handlers[0]._lost == 100


def test_reopening_follows_logrotate(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logger = child_log(path)
    logger.info(b"old\n")
    path.rename(tmp_path / "log.1")
    for handler in logger.handlers:
        handler.reopen()
    logger.info(b"new\n")
    assert path.read_text() == "new\n"
    for handler in logger.handlers:
        handler.remove()
        handler.reopen()
    assert path.read_text() == ""


@contextlib.contextmanager
def standard_output() -> Iterator[tuple[int, int]]:
    """A pipe in place of standard output: its ends."""
    reading, writing = os.pipe()
    kept = os.dup(1)
    os.dup2(writing, 1)
    try:
        yield reading, writing
    finally:
        os.dup2(kept, 1)
        for fd in (kept, writing):
            os.close(fd)


def test_an_output_that_is_not_read_blocks_nothing() -> None:
    logger = loggers.getLogger()
    logs.install(logger)
    loggers.handle_stdout(logger, "%(message)s\n")
    with standard_output() as (reading, _):
        for number in range(5_000):
            logger.info(f"{number:0100}")
        os.set_blocking(reading, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(reading, 1 << 16)
        logger.info("there is room")
        said = os.read(reading, 1 << 16)
        os.close(reading)
        logger.info("nothing reads any more")
    assert b"lines-lost" in said
    assert said.endswith(b"there is room\n")


def test_the_handlers_that_supervisord_has_already_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("BDR_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("BDR_LOG_DIR", str(tmp_path))
    options = ServerOptions()
    options.realize(["--configuration", str(ROOT / "supervisord.conf")], doc="")
    options.make_logger()
    logs.install(options.logger)
    output, file = options.logger.handlers
    assert isinstance(output, logs.Output)
    assert isinstance(file, logs.LogFile)
    options.logger.info("said")
    assert (tmp_path / "supervisord.log").read_text().endswith("INFO said\n")
    options.reopenlogs()
    options.close_logger()


def test_the_pause_between_failed_spawns_is_bounded() -> None:
    process = SimpleNamespace(backoff=500, delay=0.0)
    inside.limit_pause(SimpleNamespace(process=process))
    assert process.backoff == inside.PAUSE_MAX_S
    assert 0 < process.delay - time.time() <= inside.PAUSE_MAX_S
