# SPDX-License-Identifier: GPL-2.0-only
"""SQLite on ext4, with a write-ahead log and with a rollback journal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from deploy.nbd_source import loop_device, mounted
from tests.databases.clients import running
from tests.databases.conftest import MakeSite
from tests.databases.filesystems import EXT4, preen_ext4
from tests.databases.promotion import promote
from tests.databases.scenarios import APPLIER_KILLED, BEHIND, PLAIN, Scenario
from tests.databases.site import SIZE
from tests.databases.sqlite import SqliteClient, newest_row


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("journal_mode", "scenario"),
    [
        ("wal", BEHIND),
        pytest.param("wal", PLAIN, marks=pytest.mark.long),
        pytest.param("delete", BEHIND, marks=pytest.mark.long),
        pytest.param("delete", APPLIER_KILLED, marks=pytest.mark.long),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_promoted_replica_is_a_prefix(
    make_site: MakeSite, directory: Path, journal_mode: str, scenario: Scenario
) -> None:
    rng = random.Random(f"{journal_mode} {scenario.name}")
    site = make_site(size=SIZE)
    site.start()
    EXT4.format(site.captured.device)
    with mounted(site.captured.device, directory / "source") as top:
        database = top / "database"
        with running(lambda _: SqliteClient(database, journal_mode), 1) as clients:
            clients.wait_for_more(200)
            site.wait_durable()
            clients.wait_for_more(20)
            scenario.before(site, clients, rng)
            cut = site.lose_source(rng)
            clients.wait_for_more(5)
    scenario.after(site, rng)
    promote(site, scenario)
    with loop_device(str(site.captured.target)) as device:
        preen_ext4(device)
        with mounted(device, directory / "replica") as top:
            newest = newest_row(top / "database")
        EXT4.check_clean(device)
    found = clients.ledger.judge({0: newest}, cut)
    print(f"{journal_mode}, {scenario.name}: {found}")
    assert found.is_prefix, found
    assert not scenario.loses or found.lost, found
