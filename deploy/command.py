# SPDX-License-Identifier: GPL-2.0-only
"""Runs system tools, and waits for conditions."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


class SetupError(Exception):
    """A prerequisite of the host is missing; the message states what to do."""


def run(*words: str, cwd: str | None = None) -> str:
    """Runs a command and returns its output.

    Raises:
        SetupError: it failed; the message has the end of its output.
    """
    try:
        done = subprocess.run(
            words, cwd=cwd, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise SetupError(f"{words[0]}: not installed; run `make setup`") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise SetupError(f"`{' '.join(words)}` ended with {done.returncode}: {said}")
    return done.stdout


def wait_for(fact: Callable[[], bool], *, what: str, timeout_s: float) -> None:
    """Waits until `fact` holds.

    Raises:
        SetupError: it did not in time.
    """
    deadline_at = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline_at:
            raise SetupError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], *, timeout_s: float = 20) -> None:
    """Terminates a child, and kills it after a timeout."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
