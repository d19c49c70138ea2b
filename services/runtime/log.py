# SPDX-License-Identifier: GPL-2.0-only
"""Logging of every process: one structured line an event, to standard error.

A line is logfmt or JSON. An event that comes too often is written so many times
in a while and then only counted; the next line of it says how many were left out.
Nothing secret is ever an argument of a log call: keys are named by their files.

Over the standard library's logging: the usual packages for structured logs bring
asyncio, TLS and terminal colours along, 14 MiB in each of a volume's processes.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum

BURST = 20
"""Lines of one event in a window; what is more is only counted."""
WINDOW_S = 10.0


class Format(Enum):
    """Form of a line."""

    TEXT = "text"
    JSON = "json"


class RateLimit(logging.Filter):
    """Drops an event's lines beyond `burst` in a window, and counts them in the next one."""

    def __init__(
        self,
        burst: int = BURST,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window_s = window_s
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_at = self._clock()
        began_at, count = self._seen.get(record.msg, (now_at, 0))
        if now_at - began_at >= self._window_s:
            if count > self._burst:
                record.facts |= {"suppressed": count - self._burst}  # type: ignore[attr-defined]
            began_at, count = now_at, 0
        self._seen[record.msg] = (began_at, count + 1)
        return count < self._burst


class LineFormatter(logging.Formatter):
    """One line of a record: time, level, what is `bound`, the event, its facts."""

    def __init__(self, form: Format, bound: Mapping[str, object]) -> None:
        super().__init__()
        self._form = form
        self._bound = bound

    def format(self, record: logging.LogRecord) -> str:
        time_ = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, object] = {
            "timestamp": time_.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **self._bound,
            "event": record.msg,
            **record.facts,  # type: ignore[attr-defined]
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str) if self._form is Format.JSON else logfmt(line)


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


class Logger:
    """Takes an event and its facts as keywords: `info("connected", target=address)`."""

    def __init__(self, name: str) -> None:
        self.base = logging.getLogger(name)

    def debug(self, event: str, **facts: object) -> None:
        self._log(logging.DEBUG, event, facts)

    def info(self, event: str, **facts: object) -> None:
        self._log(logging.INFO, event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._log(logging.WARNING, event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._log(logging.ERROR, event, facts)

    def exception(self, event: str) -> None:
        """An error, with the exception that is being handled."""
        self.base.error(event, exc_info=True, extra={"facts": {}})

    def _log(self, level: int, event: str, facts: dict[str, object]) -> None:
        # In one attribute: a fact may have the name of one of the record's.
        self.base.log(level, event, extra={"facts": facts})


_logger = Logger("bdr")
_form = Format.TEXT


def use_format(name: str) -> None:
    """Chooses the form for this process; call before `configure`."""
    global _form  # noqa: PLW0603
    _form = Format(name)


def configure(
    *,
    stage: str,
    volume: str,
    verbose: bool,
    debug: bool,
    quiet: bool,
    limit: RateLimit | None = None,
) -> None:
    """Sets up the logging of this process.

    Args:
        stage: reader, sender, ...; stands on each line, as the volume does.
        volume: the volume's name.
        verbose: also INFO. The default is INFO too when not `quiet`.
        debug: everything.
        quiet: warnings and errors only.
        limit: on lines of one event.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(_form, {"volume": volume, "stage": stage}))
    handler.addFilter(limit or RateLimit())
    logger = _logger.base
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(
        logging.DEBUG if debug else logging.WARNING if quiet and not verbose else logging.INFO
    )


def logger() -> Logger:
    """This process's."""
    return _logger
