# SPDX-License-Identifier: GPL-2.0-only
"""What a pair does while writes come faster than its link, and when they do no more.

    python -m tests.bench.overload [--link-mib-s N] [--overload-s N]

Real processes, and a proxy that gives all connections together so many bytes a second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from bdr.common.ring.layout import Mode
from tests.nbdkit.server import build_plugin
from tests.pipeline.overload import Load, over_a_link
from tests.pipeline.pair import MIB
from tests.pipeline.scanned import ScannedPair

SIZE = 32 * MIB
WRITES = 1024
LOOK_S = 0.05


def look_on(pair: ScannedPair, seconds: float) -> tuple[list[float], float]:
    """Times of the overflows that begin, and the share of the time in OVERFLOW."""
    began_at = time.monotonic()
    overflows, began = pair.status().overflows, []
    looks = over = 0
    while (now_at := time.monotonic()) < began_at + seconds:
        status = pair.status()
        if status.overflows > overflows:
            began.append(now_at - began_at)
            overflows = status.overflows
        looks += 1
        over += status.mode is Mode.OVERFLOW
        time.sleep(LOOK_S)
    return began, over / looks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link-mib-s", type=float, default=4)
    parser.add_argument("--overload-s", type=float, default=60)
    options = parser.parse_args()
    link = options.link_mib_s * MIB
    build_plugin()
    directory = Path(tempfile.mkdtemp(prefix="bdr-", dir="/dev/shm"))
    try:
        with over_a_link(directory, size=SIZE, writes=WRITES, link_rate=link) as (pair, _):
            load = Load(pair, rate=4 * link)
            try:
                began, share = look_on(pair, options.overload_s)
                print(
                    f"link {link / MIB:.0f} MiB/s, ring {WRITES * 4096 // MIB} MiB, writes at "
                    f"{load.written_bytes / options.overload_s / MIB:.0f} MiB/s for "
                    f"{options.overload_s:.0f} s: {len(began)} overflows, after "
                    f"{', '.join(f'{at:.1f}' for at in began)} s; {share:.0%} of the time in "
                    f"OVERFLOW; the slowest write took {load.slowest_s * 1000:.0f} ms"
                )
                for part in (0.75, 0.5):
                    load.rate = part * link
                    before = pair.status().overflows
                    began_at = time.monotonic()
                    while pair.condition() != "CONSISTENT" or pair.status().resync_regions:
                        if time.monotonic() > began_at + 120:
                            break
                        time.sleep(LOOK_S)
                    else:
                        print(
                            f"writes at {part:.0%} of the link: consistent after "
                            f"{time.monotonic() - began_at:.1f} s, "
                            f"{pair.status().overflows - before} overflows more"
                        )
                        break
                    status = pair.status()
                    print(
                        f"writes at {part:.0%} of the link: not consistent within 120 s, "
                        f"{status.overflows - before} overflows more, now {status}"
                    )
            finally:
                load.stop()
            pair.wait_consistent()
            print("identical" if pair.becomes_identical() else "DIFFERENT")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
