# SPDX-License-Identifier: GPL-2.0-only
"""A pair with scanners: nothing is assumed equal, and what is missed is repaired."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bdr.common.host.programs import Program
from bdr.common.ring.layout import Mode
from bdr.common.wire.scan import ResyncStatus
from bdr.services.cli.reader_client import ReaderClient, SourceLocation
from deploy.command import wait_for
from deploy.stack import source_programs
from tests.pipeline.pair import DEADLINE_S, MIB, VOLUME, Pair


class ScannedPair(Pair):
    """As `Pair`, with scanners and without `--assume-clean`."""

    def __init__(
        self,
        directory: Path,
        *,
        scanners: int = 1,
        reader_options: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.scanners = scanners
        self.scanner_options: Sequence[str] = ()
        self._reader_options = reader_options
        super().__init__(directory, **settings)  # type: ignore[arg-type]

    def source_with(
        self, *, volume: str = VOLUME, chardev: str | None = None, run_dir: str = "sockets"
    ) -> list[Program]:
        """Reader, senders and scanners."""
        programs = source_programs(
            volume,
            chardev=chardev or self.ring,
            address=self.address,
            port=self.port,
            run_dir=self.directory / run_dir,
            senders=self._senders,
            scanners=self.scanners,
        )
        options = {"reader": self._reader_options, "scanner": self.scanner_options}
        return [
            replace(program, command=[*program.command, *options.get(program.stage, ())])
            for program in programs
        ]

    def wait_consistent(self, timeout_s: float = 60.0) -> None:
        """Waits until nothing is dirty, everything is durable, and the target says so."""

        def is_consistent() -> bool:
            status = self.status()
            return (
                status.mode is Mode.STREAM
                and not status.active_regions
                and not status.resync_regions
                and status.tail == status.head
                and self.condition() == "CONSISTENT"
            )

        wait_for(is_consistent, what="a consistent replica", timeout_s=timeout_s)

    @property
    def location(self) -> SourceLocation:
        """Where its source side is asked."""
        sockets = str(self.directory / "sockets")
        return SourceLocation(VOLUME, self.ring, None, "127.0.0.1", self.port, sockets)

    def scan_report(self) -> ResyncStatus:
        """How far the scan is, by its reader."""
        client = ReaderClient(self.location)
        try:
            return client.report()
        finally:
            client.close()

    def bdr(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs `bdr verify` or `bdr resync`."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "bdr"),
                *self.bdr_words(command, *options),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def bdr_words(self, command: str, *options: str) -> list[str]:
        """The command line of `bdr verify` or `bdr resync`, behind `bdr`."""
        place = self.location
        return [
            *(command, "--run-dir", place.run_dir, "--chardev", place.chardev),
            *("--address", place.address, "--port", str(place.port)),
            *(*options, VOLUME),
        ]

    def condition(self) -> str:
        """What the target said last."""
        found = re.findall(r"event=\S+ .*?condition=(\w+)", self.stack.log("v-applier"))
        return found[-1] if found else ""


def fill(pair: Pair, seed: int, *, extents: int) -> None:
    """Data below the capture, from before it began."""
    rng = random.Random(seed)
    with pair.source.open("r+b") as file:
        for _ in range(extents):
            file.seek(rng.randrange(pair.size - MIB) // 512 * 512)
            file.write(rng.randbytes(rng.randrange(1, 300) * 512))
        file.flush()
        # Nothing of it may be written back later, over what passes by this cache.
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(pair: Pair, seed: int) -> Iterator[None]:
    """Live writes in the background."""
    done = threading.Event()

    def write() -> None:
        rng = random.Random(seed)
        while not done.wait(0.001):
            pair.scribble(rng, 5)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def survive_rounds(pair: ScannedPair, rng: random.Random, *, rounds: int) -> None:
    """Overflow, the kill of any stage during the resync, more writes: round after round.

    Raises:
        AssertionError: after a round the replica differs.
    """
    stages = pair.stages()
    for number in range(rounds):
        overflows = pair.status().overflows
        with pair.frozen("v-applier"):
            while pair.status().overflows == overflows:
                pair.scribble(rng, 50)
            pair.scribble(rng, rng.randrange(200))
        wait_for(lambda: pair.status().mode is Mode.STREAM, what="the resync", timeout_s=DEADLINE_S)
        killed = rng.choice(stages)
        pair.kill(killed)
        pair.scribble(rng, 50)
        pair.wait_consistent()
        assert pair.becomes_identical(), f"round {number}, {killed} was killed"
