# SPDX-License-Identifier: GPL-2.0-only
"""How fast a scan is: equal devices, against `cmp` of the same files; and 1 % dirty.

Files on tmpfs, every process a real one. Time is from the request until the target is
CONSISTENT again.

    python -m tests.bench.scan [--size-gib N] [--rounds N]
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bdr.common.wire.scan import ResyncStatus
from bdr.services.cli.reader_client import ReaderClient
from deploy.command import wait_for
from tests.nbdkit.server import build_plugin
from tests.pipeline.pair import BLOCK_BYTES, MIB
from tests.pipeline.scanned import ScannedPair

GIB = 1 << 30


def scan(client: ReaderClient) -> tuple[float, ResyncStatus, ResyncStatus]:
    """A full scan: seconds, and the reports before and after."""
    before = client.report()
    began_at = time.monotonic()
    report = client.mark([])
    while report.dirty_regions or report.condition != "CONSISTENT":
        time.sleep(0.005)
        report = client.report()
    return time.monotonic() - began_at, before, report


def fill(pair: ScannedPair) -> None:
    """Equal, random content on both sides."""
    rng = random.Random(1)
    block = rng.randbytes(16 * MIB)
    for path in (pair.source, pair.target):
        with path.open("r+b") as file:
            for at in range(0, pair.size, len(block)):
                file.seek(at)
                file.write(at.to_bytes(8, "little") + block[8:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = int(options.size_gib * GIB)
    build_plugin()
    directory = Path(tempfile.mkdtemp(prefix="bdr-", dir="/dev/shm"))
    try:
        with ScannedPair(
            directory, size=size, writes=65536, applier_options=["--journal", "none"]
        ) as pair:
            fill(pair)
            pair.start()
            pair.wait_consistent(120)
            client = ReaderClient(pair.location)
            for number in range(options.rounds):
                began_at = time.monotonic()
                subprocess.run(["cmp", str(pair.source), str(pair.target)], check=True)
                cmp_s = time.monotonic() - began_at
                took_s, before, report = scan(client)
                sent = report.repaired_bytes - before.repaired_bytes
                compared = report.compared_bytes - before.compared_bytes
                print(
                    f"round {number + 1}: {compared / GIB:.2f} GiB compared in {took_s:.2f} s, "
                    f"{size / took_s / 1e9:.2f} GB/s; cmp {size / cmp_s / 1e9:.2f} GB/s, "
                    f"ratio {cmp_s / took_s:.2f}; sent {sent / size:.4%} of the device",
                    flush=True,
                )
            overflow(pair, client, full_s=took_s)
            client.close()
            assert pair.becomes_identical()
    finally:
        shutil.rmtree(directory)


def overflow(pair: ScannedPair, client: ReaderClient, *, full_s: float) -> None:
    """1 % of the regions dirty, all over the device."""
    rng = random.Random(2)
    before = client.report()
    with pair.frozen("v-applier"):
        while pair.status().overflows == 0:
            pair.client.write(0, rng.randbytes(MIB))
        regions = rng.sample(range(before.regions), before.regions // 100)
        for region in regions:
            pair.client.write(region * before.region_bytes, rng.randbytes(BLOCK_BYTES))
    wait_for(lambda: pair.status().mode.name == "STREAM", what="STREAM", timeout_s=60)
    began_at = time.monotonic()
    pair.wait_consistent(60)
    took_s = time.monotonic() - began_at
    report = client.report()
    print(
        f"overflow, {len(regions)} of {before.regions} regions dirty: compared "
        f"{(report.compared_bytes - before.compared_bytes) / pair.size:.2%} of the device, moved "
        f"{(report.repaired_bytes - before.repaired_bytes) / pair.size:.2%}, in {took_s:.2f} s "
        f"after the ring had drained; a full scan takes {full_s:.2f} s"
    )


if __name__ == "__main__":
    main()
