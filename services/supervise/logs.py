# SPDX-License-Identifier: GPL-2.0-only
"""supervisord's logs: written as far as they can be, and never a reason to stop anything.

supervisor's own handlers raise where a log cannot be rotated or opened: its output is then read no
more, or the process is not started. They also block on a standard output that is not read, and
then supervisord serves nothing else. These lose lines instead, count them, and write the number as
soon as lines can be written again. A log that cannot be opened is tried again with each line.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any

from supervisor import loggers

from bdr.services.runtime.whole_lines import WholeLines

_STDOUT = 1
_PIPE_BYTES = select.PIPE_BUF
"""A pipe that polls writable has room for so many."""


class _Lossy(loggers.Handler):  # type: ignore[misc]
    """A handler that counts the lines that its `_write` cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0
        self._lines = WholeLines(self._write)

    def emit(self, record: Any) -> None:
        message = record.msg if self.fmt == "%(message)s" else self.fmt % record.asdict()
        data = message if isinstance(message, bytes) else message.encode(errors="backslashreplace")
        try:
            if self._lost:
                self._lines.put(_notice(self._lost, is_json=data.startswith(b"{")))
                self._lost = 0
            self._lines.put(data)
        except OSError:
            self._lost += max(1, data.count(b"\n"))

    def flush(self) -> None:
        pass  # nothing is buffered

    def _write(self, data: memoryview) -> int:
        raise NotImplementedError


class Output(_Lossy):
    """supervisord's standard output."""

    def close(self) -> None:
        pass

    def reopen(self) -> None:
        pass

    def _write(self, data: memoryview) -> int:
        poller = select.poll()
        poller.register(_STDOUT, select.POLLOUT)
        if not poller.poll(0):
            raise BlockingIOError
        return os.write(_STDOUT, data[:_PIPE_BYTES])


class LogFile(_Lossy):
    """A file, rotated by its size.

    Args:
        path: of the file; those before are PATH.1, the newest, to PATH.`backups`.
        rotate_bytes: size at which it is rotated; 0: never.
    """

    def __init__(self, path: str, *, rotate_bytes: int, backups: int) -> None:
        super().__init__()
        self.baseFilename = path
        self._rotate_bytes = rotate_bytes
        self._backups = backups
        self._fd = -1
        self._size = 0
        with contextlib.suppress(OSError):
            self._open()

    def emit(self, record: Any) -> None:
        super().emit(record)
        if 0 < self._rotate_bytes <= self._size:
            self._rotate()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reopen(self) -> None:
        """Begins a file where logrotate has renamed the present one."""
        self.close()
        with contextlib.suppress(OSError):
            self._open()

    def remove(self) -> None:
        """Removes the file, as `supervisorctl clear` demands."""
        self.close()
        with contextlib.suppress(OSError):
            os.remove(self.baseFilename)

    def _write(self, data: memoryview) -> int:
        if self._fd < 0:
            self._open()
        written = os.write(self._fd, data)
        self._size += written
        return written

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self.baseFilename, flags, 0o666)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self.baseFilename, *(f"{self.baseFilename}.{n + 1}" for n in range(self._backups))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            # Files that cannot be renamed grow on.
            with contextlib.suppress(OSError):
                os.replace(newer, older)
        if self._backups == 0:
            with contextlib.suppress(OSError):
                os.remove(self.baseFilename)


def _notice(lost: int, *, is_json: bool) -> bytes:
    if is_json:
        return b'{"level": "warning", "event": "lines-lost", "lines": %d}\n' % lost
    return b"level=warning event=lines-lost lines=%d\n" % lost


def install(logger: Any) -> None:
    """Replaces supervisor's handlers, for all logs to be made, and in its own present logger."""
    loggers.handle_file = _handle_file
    loggers.handle_stdout = _handle_stdout
    for handler in list(logger.handlers):
        if isinstance(handler, loggers.FileHandler):
            made: _Lossy = LogFile(
                handler.baseFilename,
                rotate_bytes=getattr(handler, "maxBytes", 0),
                backups=getattr(handler, "backupCount", 0),
            )
            handler.close()
        elif type(handler) is loggers.StreamHandler:
            made = Output()
        else:
            continue
        made.setFormat(handler.fmt)
        made.setLevel(handler.level)
        logger.handlers[logger.handlers.index(handler)] = made


def _handle_file(
    logger: Any,
    filename: str,
    fmt: str,
    rotating: bool = False,
    maxbytes: int = 0,
    backups: int = 0,
) -> None:
    made = LogFile(filename, rotate_bytes=maxbytes if rotating else 0, backups=backups)
    _add(logger, made, fmt)


def _handle_stdout(logger: Any, fmt: str) -> None:
    _add(logger, Output(), fmt)


def _add(logger: Any, handler: _Lossy, fmt: str) -> None:
    handler.setFormat(fmt)
    handler.setLevel(logger.level)
    logger.addHandler(handler)
