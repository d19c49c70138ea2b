# SPDX-License-Identifier: GPL-2.0-only
"""Logging of every process: one structured line an event, to standard error."""

from __future__ import annotations

import logging
import sys

import structlog


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
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "volume", "stage", "event"], bool_as_flag=False
            ),
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
