# SPDX-License-Identifier: GPL-2.0-only
"""PostgreSQL on ext4: its source is lost in many ways, and its replica promoted."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.nbd_source import loop_device, mounted
from tests.databases import postgres
from tests.databases.clients import running
from tests.databases.conftest import MakeSite
from tests.databases.filesystems import EXT4, preen_ext4
from tests.databases.mounts import private_mounts
from tests.databases.postgres import PsqlClient, Server
from tests.databases.promotion import promote
from tests.databases.requirements import require_captured_devices
from tests.databases.scenarios import (
    APPLIER_KILLED,
    BEHIND,
    DURING_SCAN,
    IN_OVERFLOW,
    OVERFLOW_REPAIRED,
    PLAIN,
    PROMOTE_KILLED,
    SCANNED,
    SENDERS_KILLED,
    TARGET_KILLED,
    Scenario,
)
from tests.databases.site import SIZE

CLIENTS = 3
BENCH_SCALE = 2


@pytest.fixture(scope="session")
def content() -> Iterator[Path]:
    """An image with ext4, a PostgreSQL cluster and what pgbench needs."""
    require_captured_devices()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bdr-")))
        directory.chmod(0o755)
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        with private_mounts(), loop_device(str(image)) as device:
            EXT4.format(device)
            with mounted(device, directory / "mount") as top:
                server = Server(top / "data", directory / "sockets")
                server.initialize()
                with server.running():
                    server.tool("pgbench", "-i", "-q", "-s", str(BENCH_SCALE), postgres.USER)
                    made = f"create extension amcheck; {PsqlClient.TABLES}"
                    server.tool("psql", "-d", postgres.USER, "-v", "ON_ERROR_STOP=1", "-c", made)
        yield image


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "scenario",
    [
        APPLIER_KILLED,
        *(
            pytest.param(scenario, marks=pytest.mark.long)
            for scenario in (
                PLAIN,
                SCANNED,
                BEHIND,
                SENDERS_KILLED,
                TARGET_KILLED,
                PROMOTE_KILLED,
                IN_OVERFLOW,
                OVERFLOW_REPAIRED,
                DURING_SCAN,
            )
        ),
    ],
    ids=lambda scenario: scenario.name,
)
def test_promoted_replica_is_a_prefix(
    make_site: MakeSite, content: Path, directory: Path, scenario: Scenario
) -> None:
    rng = random.Random(scenario.name)
    site = make_site(
        size=SIZE,
        content=content,
        is_copied=scenario.is_copied,
        writes=scenario.writes,
        source=scenario.source,
    )
    site.start()
    with mounted(site.captured.device, directory / "source") as top:
        server = Server(top / "data", directory / "source-sockets")
        with server.running(), server.bench(), running(server.connect, CLIENTS) as clients:
            clients.wait_for_more(100)
            # Recovery begins there: what is before it must be in the tables themselves.
            server.tool("psql", "-d", postgres.USER, "-c", "checkpoint")
            site.wait_durable()
            clients.wait_for_more(20)
            scenario.before(site, clients, rng)
            cut = site.lose_source(rng)
            # The source lives on: none of that may be on the replica.
            clients.wait_for_more(5)
    scenario.after(site, rng)
    promote(site, scenario)
    if not scenario.is_prefix:
        return
    with loop_device(str(site.captured.target)) as device:
        preen_ext4(device)
        with mounted(device, directory / "replica") as top:
            server = Server(top / "data", directory / "replica-sockets")
            with server.running():
                found = clients.ledger.judge(postgres.newest_commits(server), cut)
                postgres.check(server)
                server.tool("pgbench", "-n", "-t", "20", postgres.USER)
            postgres.check_pages(server)
        EXT4.check_clean(device)
    print(f"{scenario.name}: {found}")
    assert found.is_prefix, found
    assert not scenario.loses or found.lost, found
