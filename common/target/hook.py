# SPDX-License-Identifier: GPL-2.0-only
"""Words of the hook that runs before a usable replica is changed to something else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """Why it runs."""

    COMPARE = "compare"
    """A source that does not resume: everything is compared."""
    INCONSISTENT = "inconsistent"
    """Writes were missed, or something was found to differ, which is repaired now."""


class HookOutcome(Enum):
    """How it ended."""

    GOOD = "good"
    FAILED = "failed"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True, slots=True)
class HookSettings:
    """What is made of its end."""

    is_required: bool = True
    """Whether the replica stays as it is until the hook has succeeded."""
    retry_s: float = 10.0
    """Until it runs again."""
