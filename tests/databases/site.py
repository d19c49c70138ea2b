# SPDX-License-Identifier: GPL-2.0-only
"""A source host that is going to be lost, and a target host, in network namespaces."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from bdr.common.ring.layout import Mode
from bdr.common.wire.condition import Condition
from deploy.command import run, wait_for
from deploy.namespaces import Namespaces
from deploy.nbd_source import nbd_source
from tests.databases.durable import watching
from tests.databases.ledger import Cut
from tests.pipeline.hosts import DEADLINE_S, MIB, Hosts, Volume

VOLUME = "db"
RING_WRITES = 16384


class BlockVolume(Volume):
    """A source that is a block device.

    Attributes:
        device: the captured device.
    """

    device: str

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        size: int,
        writes: int,
        content: Path | None,
        is_copied: bool,
    ) -> None:
        super().__init__(directory, name, size=size, writes=writes)
        self._content = content
        self._is_copied = is_copied

    def make_images(self) -> None:
        """Both sides blank, or one or both with the content that it was made with."""
        super().make_images()
        if self._content is not None:
            for path in (self.source, self.target) if self._is_copied else (self.source,):
                run("cp", "--sparse=always", "--reflink=auto", str(self._content), str(path))

    def serve(self, stack: contextlib.ExitStack) -> str:
        """nbdkit, nbdfuse and a loop device."""
        found = stack.enter_context(
            nbd_source(str(self.source), self.directory, writes=self.writes)
        )
        self.device, self.server = found.device, found.nbdkit
        return found.ring


class Site(Hosts):
    """Both hosts; up while it is open.

    Args:
        directory: for all that it makes; a short path.
        size: of the device, in bytes.
        content: an image that the source begins with; blank by default.
        is_copied: whether the target begins with it too, and this is asserted (`assume_clean`).
        writes: capacity of the ring.
        source: settings of the source's volume, besides the necessary ones.
        target: settings of the target's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int,
        content: Path | None = None,
        is_copied: bool = False,
        writes: int = RING_WRITES,
        source: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
    ) -> None:
        journal = {"journal_size": "64MiB"}
        super().__init__(
            directory,
            volumes=0,
            source={"assume_clean": is_copied} | dict(source or {}),
            target=journal | dict(target or {}),
        )
        self.directory = directory
        self.captured = BlockVolume(
            directory, VOLUME, size=size, writes=writes, content=content, is_copied=is_copied
        )
        self.volumes = [self.captured]
        self.network = Namespaces()
        self.address = self.network.address
        self.source.within, self.target.within = self.network.source, self.network.target
        self._all = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.network)
            super().__enter__()
            stack.callback(super().__exit__)
            self._durable = stack.enter_context(watching(self.captured.ring))
            self._all = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    # Faults.

    def lose_source(self, rng: random.Random) -> Cut:
        """Cuts the link and kills every stage of the source, in either order."""
        steps = [self.network.disconnect, self.source.kill_all]
        rng.shuffle(steps)
        return self.cut(*steps)

    def cut(self, *steps: Callable[[], object]) -> Cut:
        """Does what nothing more of the source comes to the replica after."""
        began_at = time.monotonic()
        for step in steps:
            step()
        return Cut(began_at, time.monotonic(), self._durable.until_at)

    # What is asked.

    def is_condition(self, condition: Condition) -> bool:
        """Whether this is the replica's, by its monitor."""
        return bool(self.target.status(VOLUME)["replica"]["condition"] == condition.name)

    def wait_condition(self, condition: Condition) -> None:
        """Waits until this is the replica's."""
        wait_for(
            lambda: self.is_condition(condition),
            what=f"a replica that is {condition.words}",
            timeout_s=DEADLINE_S,
        )

    def wait_durable(self) -> None:
        """Waits until all that is written so far is durable on the target."""
        at = time.monotonic()
        wait_for(
            lambda: self._durable.until_at >= at, what="a durable replica", timeout_s=DEADLINE_S
        )

    def wait_repaired(self) -> None:
        """Waits until an overflow is over, and all that it missed is repaired."""

        def is_repaired() -> bool:
            ring = self.captured.capture.status()
            return (
                ring.mode is Mode.STREAM
                and ring.gap is None
                and not ring.dirty_regions
                and self.is_condition(Condition.CONSISTENT)
            )

        wait_for(is_repaired, what="the repair", timeout_s=DEADLINE_S)

    # Promotion.

    def promote(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`bdr promote` on the target."""
        return self.target.bdr("promote", *words, VOLUME)


SIZE = 384 * MIB
"""Of the devices: three such files, sparse, and a journal are all that a test makes."""
