# SPDX-License-Identifier: GPL-2.0-only
"""Programs that make load while a test runs."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from bdr.services.runtime.process import end_with_parent
from deploy.command import end


@contextlib.contextmanager
def in_background(words: Sequence[str]) -> Iterator[None]:
    """Runs a program until the block ends.

    Raises:
        AssertionError: it ended before, so there was no load.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            yield
            if process.poll() is not None:
                said.seek(0)
                raise AssertionError(f"{words[0]} has ended: {said.read().decode()[-2000:]}")
        finally:
            end(process)
