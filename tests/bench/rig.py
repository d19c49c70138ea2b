# SPDX-License-Identifier: GPL-2.0-only
"""The whole pipeline around an in-memory ring: real sender and applier processes.

The reader runs in this process, where the ring's producer is; everything else is
as in production. All files are on tmpfs, so that the pipeline is measured, not a disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Self

import numpy as np

from bdr.common.capture.memory import MemoryCapture
from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.source.settings import SourceSettings
from bdr.common.storage.source_file import SourceFile
from bdr.services.reader import Reader
from bdr.services.runtime import log
from bdr.services.runtime.sockets import RunDirectory
from deploy.demo import free_port

DEVICE_BYTES = 1 << 30
CAPACITY = 16384
WRITE_SLOTS = 256
BURST_SLOTS = 4 * WRITE_SLOTS
"""Published at once: the ring's filling must not be what is measured."""
RELEASE_TIMEOUT_S = 120.0
_SECTORS_PER_SLOT = layout.SLOT_SECTORS


class Rig:
    """Up while it is open.

    Args:
        senders: how many.
        applier_options: besides the necessary ones.
        settings: the reader's.
    """

    def __init__(
        self,
        *,
        senders: int = 1,
        applier_options: list[str] | None = None,
        settings: SourceSettings | None = None,
    ) -> None:
        log.configure(stage="reader", volume="bench", verbose=False, debug=False, quiet=True)
        self.directory = Path(tempfile.mkdtemp(prefix="bdr-bench-", dir="/dev/shm"))
        self.target = self.directory / "target"
        with self.target.open("wb") as file:
            file.truncate(DEVICE_BYTES)
        port = free_port()
        self.capture = MemoryCapture.create(
            str(self.directory / "ring"),
            capacity=CAPACITY,
            device_sectors=DEVICE_BYTES // layout.SECTOR_BYTES,
        )
        everywhere = ["--volume", "bench", "--port", str(port), "--noprint"]
        self.applier = _start(
            "applier",
            *everywhere,
            *("--address", "127.0.0.1"),
            *("--target", str(self.target), "--state", str(self.directory / "state")),
            *(applier_options or []),
        )
        self.senders = [
            _start(
                "sender",
                *everywhere,
                *("--address", "127.0.0.1"),
                *("--chardev", str(self.directory / "ring")),
                *("--run-dir", str(self.directory / "run")),
            )
            for _ in range(senders)
        ]
        self.state = SourceFile(str(self.directory / "source"))
        record = self.state.begin(
            volume="bench", device_sectors=self.capture.info.device_sectors, device=""
        )
        run_directory = RunDirectory(str(self.directory / "run"))
        self.reader = Reader(
            record=record,
            state=self.state,
            capture=self.capture,
            control=f"tcp://127.0.0.1:{port + 1}",
            run_directory=run_directory,
            claim=run_directory.claim("reader"),
            assume_clean=True,
            settings=settings,
        )
        self._thread = threading.Thread(target=self.reader.run)
        self._thread.start()
        rng = np.random.default_rng(1)
        self.capture.payload(0, CAPACITY)[:] = rng.bytes(CAPACITY * layout.PAYLOAD_BYTES)
        self.write_sequential(WRITE_SLOTS * layout.PAYLOAD_BYTES)

    def write_sequential(self, total_bytes: int) -> None:
        """Publishes writes of 1 MiB round the device, and waits until they are durable."""
        slots = min(BURST_SLOTS, total_bytes // layout.PAYLOAD_BYTES)
        numbers = np.arange(slots, dtype=np.uint64)
        base = numbers * np.uint64(_SECTORS_PER_SLOT)
        last = numbers % np.uint64(WRITE_SLOTS) == WRITE_SLOTS - 1
        end = 0
        for at in range(0, total_bytes, slots * layout.PAYLOAD_BYTES):
            sector = np.uint64(at % DEVICE_BYTES // layout.SECTOR_BYTES)
            headers = encode(op=layout.Op.WRITE, sector=base + sector, last=last)
            end = self.capture.produce(headers) + slots
        self.wait(end)

    def write_scattered(self, slots: int) -> None:
        """Publishes single 4 KiB writes all over the device, and waits for them."""
        rng = np.random.default_rng(2)
        end = 0
        for _ in range(0, slots, BURST_SLOTS):
            places = rng.integers(0, DEVICE_BYTES // layout.PAYLOAD_BYTES, BURST_SLOTS)
            sectors = places.astype(np.uint64) * np.uint64(_SECTORS_PER_SLOT)
            end = self.capture.produce(encode(op=layout.Op.WRITE, sector=sectors)) + BURST_SLOTS
        self.wait(end)

    def write_one(self, place: int) -> None:
        """Publishes one 4 KiB write, and waits until it is durable."""
        sector = np.array([place * _SECTORS_PER_SLOT], np.uint64)
        self.wait(self.capture.produce(encode(op=layout.Op.WRITE, sector=sector)) + 1)

    def wait(self, slot: int) -> None:
        """Waits until every slot below `slot` is durable on the target."""
        if not self.capture.wait_released(slot, RELEASE_TIMEOUT_S):
            raise TimeoutError(f"slot {slot} was not durable within {RELEASE_TIMEOUT_S} s")

    def close(self) -> None:
        """Ends everything and removes the files."""
        self.reader.loop.stop()
        self._thread.join()
        for process in (*self.senders, self.applier):
            process.terminate()
            process.wait()
        self.state.close()
        self.capture.close()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resident_bytes(pid: int) -> dict[str, int]:
    """Peak and present resident set of a process."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "VmRSS", "RssAnon", "RssShmem"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _start(stage: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", f"bdr.services.{stage}", *options])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
