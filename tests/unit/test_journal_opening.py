# SPDX-License-Identifier: GPL-2.0-only
"""A journal comes into use and goes out of it: a power cut at any step leaves both openable."""

from __future__ import annotations

from random import Random

import pytest

from bdr.common.target.record import NO_JOURNAL
from tests.simulation.disk import PowerLostError
from tests.simulation.stores import NOBODY, JournalStore

ACCESSES = 10
"""More than any disk sees of one opening or closing of an empty journal."""


def blank() -> JournalStore:
    return JournalStore.blank(device_sectors=1024, log_bytes=16 << 12, watcher=NOBODY)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("access", range(ACCESSES))
@pytest.mark.parametrize("disk", ["record", "log"])
@pytest.mark.parametrize("is_reopened", [False, True])
def test_power_cut_while_a_journal_comes_into_use(
    is_reopened: bool, disk: str, access: int, seed: int
) -> None:
    store = blank()
    if is_reopened:
        store.recover()
        store.close()
    store.disks()[disk].fuse = access
    try:
        store.recover()
    except PowerLostError:
        store = store.after_power_cut(Random(seed))
        assert store.recover().journal != NO_JOURNAL
    else:
        assert access, "each disk is used at least once"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("access", range(ACCESSES))
@pytest.mark.parametrize("disk", ["record", "log"])
def test_power_cut_while_a_journal_goes_out_of_use(disk: str, access: int, seed: int) -> None:
    store = blank()
    store.recover()
    store.disks()[disk].fuse = access
    try:
        store.close()
    except PowerLostError:
        store = store.after_power_cut(Random(seed))
        assert store.recover().journal != NO_JOURNAL
    else:
        assert access, "each disk is used at least once"
