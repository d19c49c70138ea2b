# SPDX-License-Identifier: GPL-2.0-only
"""Logging of every process: one structured line an event, to standard error.

A line is logfmt or JSON. An event that comes too often is written so many times
in a while and then only counted; the next line of it says how many were left out.
Nothing secret is ever an argument of a log call: keys are named by their files.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from enum import Enum

import structlog

BURST = 20
"""Lines of one event in a window; what is more is only counted."""
WINDOW_S = 10.0


class Format(Enum):
    """Form of a line."""

    TEXT = "text"
    JSON = "json"


_chosen = Format.TEXT


def use_format(name: str) -> None:
    """Chooses the form for this process; call before `configure`."""
    global _chosen  # noqa: PLW0603
    _chosen = Format(name)


class RateLimit:
    """A structlog processor that drops an event's lines beyond `burst` in a window."""

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

    def __call__(
        self, _logger: object, _method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Passes the line on, or raises DropEvent."""
        event = str(line.get("event"))
        now_s = self._clock()
        began_s, count = self._seen.get(event, (now_s, 0))
        if now_s - began_s >= self._window_s:
            if count > self._burst:
                line["suppressed"] = count - self._burst
            began_s, count = now_s, 0
        self._seen[event] = (began_s, count + 1)
        if count >= self._burst:
            raise structlog.DropEvent
        return line


def configure(*, stage: str, volume: str, verbose: bool, debug: bool, quiet: bool) -> None:
    """Sets up structlog for this process.

    Args:
        stage: reader, sender, ...; stands on each line, as the volume does.
        volume: the volume's name.
        verbose: also INFO. The default is INFO too when not `quiet`.
        debug: everything.
        quiet: warnings and errors only.
    """
    level = logging.DEBUG if debug else logging.WARNING if quiet and not verbose else logging.INFO
    renderer: structlog.typing.Processor
    if _chosen is Format.JSON:
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "volume", "stage", "event"], bool_as_flag=False
        )
    structlog.configure(
        processors=[
            RateLimit(),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(stage=stage, volume=volume)


def logger() -> structlog.typing.FilteringBoundLogger:
    """This process's logger."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log
