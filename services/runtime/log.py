# SPDX-License-Identifier: GPL-2.0-only
"""Logging of every process: one structured line per event, to standard error.

A line is logfmt or JSON. Lines of one event are rate-limited: excess ones are counted, and the next
line has the number of suppressed ones. Secrets are never arguments of a log call: keys are referred
to by their files.

A line is written by a thread of its own: a log that is not read, or cannot be written, must not
stop the process (`line_writer`). Lost lines are counted, in the log and in the process's reports.

Based on the standard library's logging: the usual packages for structured logs import asyncio, TLS
and terminal colours, 14 MiB in each process.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum

from bdr.services.runtime.line_writer import LineWriter

BURST = 20
"""Most lines of one event per window; excess ones are only counted."""
WINDOW_S = 10.0
FLUSH_S = 0.5
"""Time for the last lines of a process, if its log is blocked."""
_STDERR = 2


class Format(Enum):
    """Format of a line."""

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
    """Formats a record as one line: time, level, the `bound` fields, the event, its facts."""

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


class _Handler(logging.Handler):
    """Passes lines to a writer, which also states the number of lost ones."""

    def __init__(self, formatter: LineFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(_STDERR, notice=self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:
            # A fact without a text is a bug, and no reason to end.
            self.writer.count_lost()
        else:
            self.writer.put(line)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _notice(self, lost: int) -> bytes:
        values = {"msg": "lines-lost", "levelname": "WARNING", "facts": {"lines": lost}}
        return self._line(logging.makeLogRecord(values))


def logfmt(line: Mapping[str, object]) -> str:
    """`key=value`, separated by spaces; values are quoted where necessary."""
    return " ".join(f"{key}={_value(value)}" for key, value in line.items())


def _value(value: object) -> str:
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    must_quote = any(mark in text for mark in ' ="')
    if must_quote:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    if not text.isprintable():
        # Text from a peer must not inject lines or terminal control sequences.
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f'"{text}"' if must_quote else text


class Logger:
    """Logs an event with facts as keywords: `info("connected", target=address)`."""

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
        """Logs an error, with the exception that is being handled."""
        self.base.error(event, exc_info=True, extra={"facts": {}})

    def _log(self, level: int, event: str, facts: dict[str, object]) -> None:
        # In one attribute, since a fact may have the name of an attribute of the record.
        self.base.log(level, event, extra={"facts": facts})


_logger = Logger("bdr")
_form = Format.TEXT
_writer: LineWriter | None = None


def use_format(name: str) -> None:
    """Selects the format for this process; call before `configure`."""
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
        stage: reader, sender, ...; on each line, as is the volume.
        volume: the volume's name.
        verbose: also INFO, which is the default unless `quiet`.
        debug: everything.
        quiet: warnings and errors only.
        limit: on lines per event.
    """
    global _writer  # noqa: PLW0603
    if _writer is not None:
        _writer.close(FLUSH_S)
    handler = _Handler(LineFormatter(_form, {"volume": volume, "stage": stage}))
    _writer = handler.writer
    threading.excepthook = _log_uncaught
    handler.addFilter(limit or RateLimit())
    logger = _logger.base
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(
        logging.DEBUG if debug else logging.WARNING if quiet and not verbose else logging.INFO
    )


def logger() -> Logger:
    """The logger of this process."""
    return _logger


def flush() -> None:
    """Waits until the lines so far are written, `FLUSH_S` at most."""
    if _writer is not None:
        _writer.flush(FLUSH_S)


def lost_lines() -> int:
    """Lines of this process that could not be written."""
    return _writer.lost if _writer is not None else 0


def _log_uncaught(uncaught: threading.ExceptHookArgs) -> None:
    """Python's own hook writes to standard error, which may block."""
    found = (uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback)
    _logger.base.error("crashed", exc_info=found, extra={"facts": {}})  # type: ignore[arg-type]
