# SPDX-License-Identifier: GPL-2.0-only
"""A pair with scanners: nothing is assumed equal, and what is missed is repaired."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.programs import Program
from common.ring import Mode
from common.tickets import Reported
from deploy.command import wait_for
from deploy.stack import source_programs
from services.office_client import OfficeClient, SourcePlace
from tests.pipeline.pair import VOLUME, Pair


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
            address="127.0.0.1",
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
    def place(self) -> SourcePlace:
        """Where its source side is asked."""
        sockets = str(self.directory / "sockets")
        return SourcePlace(VOLUME, self.ring, None, "127.0.0.1", self.port, sockets)

    def scan_report(self) -> Reported:
        """How far the scan is, by its reader."""
        client = OfficeClient(self.place)
        try:
            return client.report()
        finally:
            client.close()

    def bdr(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs `bdr verify` or `bdr resync`."""
        place = self.place
        return subprocess.run(
            [
                *(sys.executable, "-c", "from services.cli import main; main()", command),
                *("--run-dir", place.run_dir, "--chardev", place.chardev),
                *("--address", place.address, "--port", str(place.port)),
                *options,
                VOLUME,
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def condition(self) -> str:
        """What the target said last."""
        found = re.findall(r"event=\S+ .*?condition=(\w+)", self.stack.log("v-applier"))
        return found[-1] if found else ""
