# SPDX-License-Identifier: GPL-2.0-only
"""Writes whole lines in parts; a line that was torn does not spoil the next one."""

from __future__ import annotations

from collections.abc import Callable


class WholeLines:
    """See the module's text.

    Args:
        write: writes a part, at least one byte, and returns how many; raises OSError.
    """

    def __init__(self, write: Callable[[memoryview], int]) -> None:
        self._write = write
        self._is_torn = False
        """The last line ends in its middle."""

    def put(self, line: bytes) -> None:
        """Writes a line, with its end.

        Raises:
            OSError: it was not written, or a part only.
        """
        rest = memoryview(b"\n" + line if self._is_torn else line)
        size = len(rest)
        try:
            while rest:
                rest = rest[self._write(rest) :]
        except OSError:
            self._is_torn = self._is_torn or len(rest) < size
            raise
        self._is_torn = False
