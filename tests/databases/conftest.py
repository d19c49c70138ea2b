# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases.mounts import private_mounts
from tests.databases.requirements import require_captured_devices
from tests.databases.site import Site
from tests.nbdkit.server import build_plugin

MakeSite = Callable[..., Site]


@pytest.fixture(scope="session")
def plugin() -> Path:
    return build_plugin()


@pytest.fixture
def directory() -> Iterator[Path]:
    """On disk: its path is short enough for Unix sockets, and every user may pass through it.

    pytest's own directories are neither, and stay for some runs.
    """
    path = Path(tempfile.mkdtemp(prefix="bdr-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_site(directory: Path, plugin: Path) -> Iterator[MakeSite]:
    """Makes a source and a target; all is taken down after the test."""
    require_captured_devices()
    with private_mounts(), contextlib.ExitStack() as stack:

        def make(**settings: object) -> Site:
            return stack.enter_context(Site(directory, **settings))  # type: ignore[arg-type]

        yield make
