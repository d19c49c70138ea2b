# SPDX-License-Identifier: GPL-2.0-only
"""Promotes the replica of a source that was lost."""

from __future__ import annotations

from bdr.common.errors import StateError
from bdr.common.wire.condition import Condition
from tests.databases.scenarios import PROMOTE_KILLED, TARGET_KILLED, Scenario, applier
from tests.databases.site import VOLUME, Site


def promote(site: Site, scenario: Scenario) -> None:
    """As an operator does; afterwards the replica's file can be used.

    Raises:
        AssertionError: a replica that is a prefix was refused, or one that is none was not.
    """
    done = site.promote()
    said = done.stdout + done.stderr
    if not scenario.is_prefix:
        assert done.returncode == StateError.exit_code, said
        # The applier runs again, for a source that comes back.
        site.wait_condition(Condition.INCONSISTENT)
        done = site.promote("--force")
        assert done.returncode == 0, done.stdout + done.stderr
    elif scenario is not PROMOTE_KILLED:
        assert done.returncode == 0, said
    else:
        # One before may have promoted it, and another one that was killed left it stopped.
        assert done.returncode in (0, StateError.exit_code), said
        if not applier(site):
            site.target.supervision.start(f"{VOLUME}-applier")
    if scenario is not TARGET_KILLED:
        site.target.wait_health(VOLUME, "promoted")
