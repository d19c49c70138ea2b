# SPDX-License-Identifier: GPL-2.0-only
"""`make bench-journal`: the pipeline with a journal, beside one without and a bare loop.

All in one run, turn by turn, since machines are noisy; ratios are those of medians.
Everything is on tmpfs. With a journal a round ends when the device has everything,
not when it is acknowledged. The last line is `ratio: 0.NN`, to the bare loop.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bdr.common.errors import DeviceError
from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.extents import NO_EXTENTS, Extents, plan
from bdr.common.target.job import Job
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition
from bdr.services.runtime import log
from bdr.services.target.journal_store import open_journal
from bdr.services.target.store import StoreWorker
from tests.bench import bare_loop
from tests.bench.rig import DEVICE_BYTES, Rig, cpu_seconds, resident_bytes

ROUNDS = 5
SEQUENTIAL_BYTES = 2 << 30
SCATTERED_SLOTS = 200_000
LATENCY_WRITES = 500
RECOVERY_BYTES = 512 << 20
_MIB = 1 << 20


def main() -> int:
    """Measures everything and prints it."""
    bare: list[float] = []
    names = ("none", "journal")
    sequential: dict[str, list[float]] = {name: [] for name in names}
    scattered: dict[str, list[float]] = {name: [] for name in names}
    latencies_s: dict[str, list[float]] = {name: [] for name in names}
    with Rig(applier_options=["--journal", "none"]) as none, Rig() as journaled:
        rigs = {"none": none, "journal": journaled}
        for _ in range(ROUNDS):
            bare.append(
                bare_loop.measure(
                    str(none.target), file_bytes=DEVICE_BYTES, total_bytes=SEQUENTIAL_BYTES
                )
            )
            for name, rig in rigs.items():
                seconds = _seconds(partial(rig.write_sequential, SEQUENTIAL_BYTES), rig)
                sequential[name].append(SEQUENTIAL_BYTES / seconds)
                seconds = _seconds(partial(rig.write_scattered, SCATTERED_SLOTS), rig)
                scattered[name].append(SCATTERED_SLOTS / seconds)
        for name, rig in rigs.items():
            for place in range(LATENCY_WRITES):
                time.sleep(0.002)  # an idle pipeline is what is measured
                began_at = time.perf_counter()
                rig.write_one(place)
                latencies_s[name].append(time.perf_counter() - began_at)
        memory = {name: resident_bytes(rig.applier.pid)["VmHWM"] for name, rig in rigs.items()}
        cpu = {name: cpu_seconds(rig.applier.pid) for name, rig in rigs.items()}

    middle = statistics.median(bare)
    print(f"bare TCP-to-pwrite loop    {middle / 1e6:8.0f} MB/s")
    for name in names:
        through = statistics.median(sequential[name])
        print(
            f"{name:8} sequential        {through / 1e6:8.0f} MB/s, {through / middle:.2f} of bare"
        )
        print(f"{name:8} scattered 4 KiB   {statistics.median(scattered[name]):8.0f} slots/s")
        ordered = sorted(latencies_s[name])
        print(
            f"{name:8} one write durable {ordered[len(ordered) // 2] * 1e3:8.2f} ms at p50, "
            f"{ordered[len(ordered) * 99 // 100] * 1e3:.2f} at p99"
        )
        print(f"{name:8} applier           {memory[name] / _MIB:8.0f} MiB at most, ", end="")
        print(f"{cpu[name]:.1f} s of CPU")
    print(f"recovery of {RECOVERY_BYTES // _MIB} MiB        {recovery_seconds():8.2f} s")
    print(f"ratio: {statistics.median(sequential['journal']) / middle:.2f}")
    return 0


def recovery_seconds() -> float:
    """How long a starting applier takes to apply a full journal."""
    log.configure(stage="applier", volume="bench", verbose=False, debug=False, quiet=True)
    with tempfile.TemporaryDirectory(prefix="bdr-bench-", dir="/dev/shm") as directory:
        target = Path(directory) / "target"
        with target.open("wb") as file:
            file.truncate(RECOVERY_BYTES)
        _fill(directory, target)
        began_at = time.perf_counter()
        device = TargetDevice(str(target))
        store, record = open_journal(
            path=f"{directory}/journal",
            size_bytes=None,
            device=device,
            record_file=RecordFile(f"{directory}/state"),
            volume="bench",
        )
        seconds = time.perf_counter() - began_at
        assert record.slot == RECOVERY_BYTES // layout.PAYLOAD_BYTES
        store.close()
        return seconds


class _DeadDevice(TargetDevice):
    """Fails when everything is in the journal."""

    def apply(self, extents: Extents, payload: Buffer) -> None:
        while not self.is_dead:
            time.sleep(0.01)
        raise DeviceError("dead")

    is_dead = False


def _fill(directory: str, target: Path) -> None:
    device = _DeadDevice(str(target))
    store, record = open_journal(
        path=f"{directory}/journal",
        size_bytes=640 << 20,
        device=device,
        record_file=RecordFile(f"{directory}/state"),
        volume="bench",
    )
    worker = StoreWorker(store)
    record = replace(record, stream=b"s" * 16, epoch=1, condition=Condition.CONSISTENT)
    worker.put(Job(1, NO_EXTENTS, b"", b"", record))
    payload = os.urandom(_MIB)
    slots = _MIB // layout.PAYLOAD_BYTES
    for at in range(RECOVERY_BYTES // _MIB):
        sectors = np.arange(slots, dtype=np.uint64) * 8 + at * (_MIB // layout.SECTOR_BYTES)
        headers = encode(op=layout.Op.WRITE, sector=sectors).tobytes()
        record = replace(record, slot=record.slot + slots)
        extents = plan(headers, payload, device_sectors=device.sectors)
        worker.put(Job(at + 2, extents, headers, payload, record))
    while worker.durable < RECOVERY_BYTES // _MIB + 1:
        time.sleep(0.01)
        worker.drain_wakeup()
    device.is_dead = True
    worker.close()


def _seconds(call: Callable[[], None], rig: Rig) -> float:
    """Until the target itself has what `call` wrote."""
    began_at = time.perf_counter()
    call()
    marker = os.urandom(layout.PAYLOAD_BYTES)
    offset = DEVICE_BYTES - layout.PAYLOAD_BYTES
    sectors = np.array([offset // layout.SECTOR_BYTES], np.uint64)
    first = rig.capture.produce(encode(op=layout.Op.WRITE, sector=sectors), marker)
    rig.wait(first + 1)
    with rig.target.open("rb") as file:
        while os.pread(file.fileno(), len(marker), offset) != marker:
            time.sleep(0.001)
    return time.perf_counter() - began_at


if __name__ == "__main__":
    sys.exit(main())
