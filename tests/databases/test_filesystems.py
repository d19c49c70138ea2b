# SPDX-License-Identifier: GPL-2.0-only
"""File systems under load: copies of the replica at many moments, each mounted and checked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.command import run
from deploy.nbd_source import loop_device, mounted
from tests.databases.background import in_background
from tests.databases.clients import Clients, running
from tests.databases.conftest import MakeSite
from tests.databases.files import FileClient, newest_file
from tests.databases.filesystems import FILE_SYSTEMS, XFS, FileSystem
from tests.databases.ledger import Cut
from tests.databases.requirements import require_file_system, require_tools
from tests.databases.site import SIZE, VOLUME, Site
from tests.pipeline.hosts import Host

CLIENTS = 2
MOMENTS = 6
LOAD = """
    --hdd 1 --hdd-bytes 16M --hdd-write-size 16K --rename 1 --dentry 1 --dentries 64
    --symlink 1 --dir 1 --chmod 1 --fpunch 1 --timeout 3600 --quiet
"""


@contextlib.contextmanager
def load(top: Path) -> Iterator[None]:
    """stress-ng: directories, renames, links, holes and a file that is rewritten."""
    top.mkdir()
    with in_background(["nice", "stress-ng", "--temp-path", str(top), *LOAD.split()]):
        yield


def copy(source: Path, to: Path) -> None:
    run("cp", "--archive", "--sparse=always", "--reflink=auto", str(source), str(to))


def copy_of_stopped(site: Site, to: Path) -> Cut:
    """The device alone: an applier that was stopped has brought its journal to it."""
    applier = f"{VOLUME}-applier"
    cut = site.cut(lambda: site.target.supervision.stop(applier))
    copy(site.captured.target, to)
    site.target.supervision.start(applier)
    return cut


def copy_of_killed(site: Site, to: Path) -> Cut:
    """Device, state and journal as everything on the target was killed; and their promotion."""
    cut = site.cut(site.target.kill_all)
    copy(site.captured.target, to)
    other = Host(to.with_name("other"))
    copy(site.target.directory / "state", other.directory / "state")
    site.target.start()
    other.volumes[VOLUME] = site.target.volumes[VOLUME] | {"target": str(to)}
    other.write_config()
    done = other.bdr("promote", VOLUME)
    run("rm", "-r", str(other.directory))
    assert done.returncode == 0, done.stderr
    return cut


def check(kind: FileSystem, image: Path, mount_point: Path) -> dict[int, int]:
    """Mounts it, which replays its journal; returns each client's last transaction."""
    with loop_device(str(image)) as device:
        kind.check_dirty(device)
        # Its source may be mounted too: the same UUID.
        options = ["-o", "nouuid"] if kind.kind == "xfs" else []
        with mounted(device, mount_point, *options) as top:
            newest = {client: newest_file(top / "files", client) for client in range(CLIENTS)}
            kind.check_mounted(top)
        kind.check_clean(device)
    return newest


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("kind", "moments"),
    [(XFS, 1), *(pytest.param(kind, MOMENTS, marks=pytest.mark.long) for kind in FILE_SYSTEMS)],
    ids=lambda value: value.name if isinstance(value, FileSystem) else str(value),
)
def test_replica_at_any_moment_is_clean_and_a_prefix(
    make_site: MakeSite, directory: Path, kind: FileSystem, moments: int
) -> None:
    require_file_system(kind.kind)
    require_tools(*kind.tools, "stress-ng")
    rng = random.Random(kind.name)
    site = make_site(size=SIZE)
    site.start()
    kind.format(site.captured.device)
    with (
        mounted(site.captured.device, directory / "source", *kind.mount) as top,
        load(top / "load"),
        running(lambda client: FileClient(top / "files", client), CLIENTS) as clients,
    ):
        clients.wait_for_more(70)
        taken: list[tuple[Cut, dict[int, int]]] = []
        for number in range(moments):
            taken.append(moment(site, kind, clients, number, rng))
    for cut, newest in taken:
        found = clients.ledger.judge(newest, cut)
        print(f"{kind.name}: {found}")
        assert found.is_prefix, found


def moment(
    site: Site, kind: FileSystem, clients: Clients, number: int, rng: random.Random
) -> tuple[Cut, dict[int, int]]:
    """Copies a consistent replica under load, and checks the copy."""
    site.wait_repaired()
    site.wait_durable()
    clients.wait_for_more(rng.randrange(5, 50))
    image = site.directory / "copy"
    cut = (copy_of_killed if number % 2 == 0 else copy_of_stopped)(site, image)
    newest = check(kind, image, site.directory / "copy-mount")
    image.unlink()
    return cut, newest
