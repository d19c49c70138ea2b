# SPDX-License-Identifier: GPL-2.0-only
"""Logging of every process: one structured line an event, to standard error.

A line is logfmt or JSON. An event that comes too often is written so many times
in a while and then only counted; the next line of it says how many were left out.
Nothing secret is ever an argument of a log call: keys are named by their files.

No library does this: the usual ones bring asyncio, TLS and terminal colours along,
14 MiB in each of a volume's processes.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum, IntEnum

BURST = 20
"""Lines of one event in a window; what is more is only counted."""
WINDOW_S = 10.0

Line = dict[str, object]


class Format(Enum):
    """Form of a line."""

    TEXT = "text"
    JSON = "json"


class Level(IntEnum):
    """How much an event matters."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class RateLimit:
    """Drops an event's lines beyond `burst` in a window."""

    def __init__(
        self,
        burst: int = BURST,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._window_s = window_s
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def passes(self, event: str) -> tuple[bool, int]:
        """Whether a line may be written, and how many were left out before it."""
        now_s = self._clock()
        suppressed = 0
        began_s, count = self._seen.get(event, (now_s, 0))
        if now_s - began_s >= self._window_s:
            suppressed = max(0, count - self._burst)
            began_s, count = now_s, 0
        self._seen[event] = (began_s, count + 1)
        return count < self._burst, suppressed


class Logger:
    """Writes this process's events; `configure` says how."""

    def __init__(self) -> None:
        self.form = Format.TEXT
        self.reset()

    def reset(self) -> None:
        """As it is before `configure`, but for the form."""
        self.level = Level.INFO
        self.bound: Mapping[str, object] = {}
        self._limit = RateLimit()

    def debug(self, event: str, **facts: object) -> None:
        self._write(Level.DEBUG, event, facts)

    def info(self, event: str, **facts: object) -> None:
        self._write(Level.INFO, event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._write(Level.WARNING, event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._write(Level.ERROR, event, facts)

    def exception(self, event: str) -> None:
        """An error, with the exception that is being handled."""
        self._write(Level.ERROR, event, {"exception": traceback.format_exc().rstrip()})

    def _write(self, level: Level, event: str, facts: Mapping[str, object]) -> None:
        if level < self.level:
            return
        may_pass, suppressed = self._limit.passes(event)
        if not may_pass:
            return
        time_ = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line: Line = {"timestamp": time_, "level": level.name.lower(), **self.bound}
        line |= {"event": event, **facts}
        if suppressed:
            line["suppressed"] = suppressed
        text = json.dumps(line, default=str) if self.form is Format.JSON else logfmt(line)
        # As one piece: the lines of several threads do not mix.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def logfmt(line: Mapping[str, object]) -> str:
    """`key=value` with spaces between; a value is quoted where it must be."""
    return " ".join(f"{key}={_value(value)}" for key, value in line.items())


def _value(value: object) -> str:
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    must_quote = any(mark in text for mark in ' ="')
    if must_quote:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    if not text.isprintable():
        # A peer's words must not make lines of their own, nor drive a terminal.
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f'"{text}"' if must_quote else text


_logger = Logger()


def use_format(name: str) -> None:
    """Chooses the form for this process; call before `configure`."""
    _logger.form = Format(name)


def configure(*, stage: str, volume: str, verbose: bool, debug: bool, quiet: bool) -> None:
    """Sets up the logging of this process.

    Args:
        stage: reader, sender, ...; stands on each line, as the volume does.
        volume: the volume's name.
        verbose: also INFO. The default is INFO too when not `quiet`.
        debug: everything.
        quiet: warnings and errors only.
    """
    _logger.reset()
    _logger.level = Level.DEBUG if debug else Level.WARNING if quiet and not verbose else Level.INFO
    _logger.bound = {"volume": volume, "stage": stage}


def logger() -> Logger:
    """This process's."""
    return _logger
