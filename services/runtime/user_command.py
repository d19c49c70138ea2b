# SPDX-License-Identifier: GPL-2.0-only
"""Commands of the user that are run on events: without a shell, with facts as variables."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence


def environment(facts: Mapping[str, object]) -> dict[str, str]:
    """Variables `BDR_NAME` of these facts, empty for None; besides PATH, HOME and LANG only."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {f"BDR_{n}": "" if value is None else str(value) for n, value in facts.items()}


def start(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command in a session of its own, which `kill` ends with all that it has started.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        command,
        env=variables,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a command and its children, if it still runs; does not wait."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
