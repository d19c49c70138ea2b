# SPDX-License-Identifier: GPL-2.0-only
"""Writes lines to a descriptor that may block or fail, without delaying the caller.

A pipe that is not read, a terminal that is stopped and a file on a disk that hangs block a
writer; a full disk and a closed pipe fail. None of that may stop replication, so a thread of its
own writes, from a bounded queue. A line that finds no room, or cannot be written, is lost and
counted; the number is written in its place as soon as lines can be written again.

Not O_NONBLOCK: it is a property of the open file, which other processes share.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

from bdr.services.runtime.whole_lines import WholeLines

QUEUE_BYTES_MAX = 256 << 10


class LineWriter:
    """A thread that writes lines, in order.

    Args:
        fd: to write to; stays open.
        notice: the line, with its end, that says how many lines were lost.
        queue_bytes_max: lines beyond are lost.

    Attributes:
        lost: lines that were not written.
    """

    def __init__(
        self, fd: int, *, notice: Callable[[int], bytes], queue_bytes_max: int = QUEUE_BYTES_MAX
    ) -> None:
        self.lost = 0
        self._fd = fd
        self._notice = notice
        self._queue_bytes_max = queue_bytes_max
        self._queue: deque[tuple[bytes, int]] = deque()
        """A line, and the number of lost lines that it states; 0 for any other line."""
        self._queued_bytes = 0
        """With the line that is being written."""
        self._unstated = 0
        """Lost lines that no notice has stated."""
        self._is_failing = False
        self._lines = WholeLines(self._write_part)
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queues one line, with its end; never blocks. Thread-safe."""
        with self._changed:
            if self._queued_bytes + len(line) > self._queue_bytes_max:
                self._lose()
                return
            if self._unstated:
                self._append_notice()
            self._append(line, 0)

    def count_lost(self) -> None:
        """Counts a line that its caller could not even make. Thread-safe."""
        with self._changed:
            self._lose()

    def flush(self, timeout_s: float) -> bool:
        """Waits until every queued line is written or lost; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued_bytes, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Writes queued lines, then ends the thread; a blocked one is left behind."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _lose(self) -> None:
        self.lost += 1
        self._unstated += 1

    def _append(self, line: bytes, stated: int) -> None:
        self._queue.append((line, stated))
        self._queued_bytes += len(line)
        self._changed.notify_all()

    def _append_notice(self) -> None:
        self._append(self._notice(self._unstated), self._unstated)
        self._unstated = 0

    # The thread.

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            line, stated = entry
            is_written = self._write(line)
            with self._changed:
                self._is_failing = not is_written
                if not is_written and stated:
                    self._unstated += stated
                elif not is_written:
                    self._lose()
                self._queued_bytes -= len(line)
                self._changed.notify_all()

    def _next(self) -> tuple[bytes, int] | None:
        with self._changed:
            while not self._queue:
                if self._unstated and not self._is_failing:
                    self._append_notice()
                elif self._is_closing:
                    return None
                else:
                    self._changed.wait()
            return self._queue.popleft()

    def _write(self, line: bytes) -> bool:
        """Returns whether the whole line was written."""
        try:
            self._lines.put(line)
        except OSError:
            return False
        return True

    def _write_part(self, data: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # another process has set O_NONBLOCK
                _wait_for_room(self._fd)


def _wait_for_room(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll()
