# SPDX-License-Identifier: GPL-2.0-only
"""A whole pair of hosts on this one: real processes under a real supervisord."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nbdkit.server import build_plugin
from tests.pipeline.pair import Pair


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: two workers then end at the same time."""
    items.sort(key=_time_limit_s, reverse=True)


def _time_limit_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


@pytest.fixture(scope="session", autouse=True)
def plugin() -> Path:
    return build_plugin()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory on tmpfs with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="bdr-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_pair(directory: Path) -> Iterator[Callable[..., Pair]]:
    """Makes a pair; it is taken down after the test."""
    with contextlib.ExitStack() as stack:

        def make(**settings: object) -> Pair:
            return stack.enter_context(Pair(directory, **settings))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    """A running pair that replicates."""
    made = make_pair()
    made.start()
    made.client.write(0, b"first".ljust(4096))
    made.settle()
    return made


@pytest.fixture(autouse=True)
def needs_root() -> None:
    assert os.geteuid() == 0, "these tests make devices and mounts: run them as root"
