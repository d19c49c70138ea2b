# SPDX-License-Identifier: GPL-2.0-only
"""What is changed inside supervisord, before it starts any process.

It passes its process id to its children, its logs stop nothing (`logs`), and its pause between two
failed attempts to start a process is bounded: its own grows by a second each time.
"""

from __future__ import annotations

import os
import time
from typing import Any

from supervisor import events

from bdr.services.runtime.process import SUPERVISORD
from bdr.services.supervise import logs

PAUSE_MAX_S = 15


def prepare(supervisord: Any) -> None:
    """Called for each life of supervisord; its logger exists already."""
    os.environ[SUPERVISORD] = str(os.getpid())
    logs.install(supervisord.options.logger)
    events.subscribe(events.ProcessStateBackoffEvent, limit_pause)


def limit_pause(event: Any) -> None:
    """Bounds the pause of a process that could not be started."""
    process = event.process
    process.backoff = min(process.backoff, PAUSE_MAX_S)
    process.delay = time.time() + process.backoff
