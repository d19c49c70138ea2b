# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bdr.common.capture.nbd import NbdCapture
from tests.nbdkit.client import NbdClient
from tests.nbdkit.server import Server, build_plugin

MIB = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def plugin() -> Path:
    return build_plugin()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file of 16 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    return path


@pytest.fixture
def serve(tmp_path: Path, disk: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of `disk`; it is stopped after the test, and must end well."""
    with ExitStack() as stack:

        def start(*parameters: str, **settings: object) -> Server:
            server = Server(tmp_path, disk, *parameters, **settings)  # type: ignore[arg-type]
            return stack.enter_context(server)

        yield start


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """With a ring of 64 slots."""
    return serve("writes=64")


@pytest.fixture
def client(server: Server) -> Iterator[NbdClient]:
    """Writes to it."""
    with NbdClient(server.nbd) as client:
        yield client


@pytest.fixture
def capture(server: Server) -> Iterator[NbdCapture]:
    """Its consumer."""
    capture = server.consumer()
    yield capture
    capture.close()
