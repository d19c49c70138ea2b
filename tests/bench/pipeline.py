# SPDX-License-Identifier: GPL-2.0-only
"""`make bench-pipeline`: the pipeline beside a bare TCP-to-pwrite loop.

Both in the same run, turn by turn, since machines are noisy; the ratio is that of
the medians. The last line is `ratio: 0.NN`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bdr.common.capture.memory import MemoryCapture
from bdr.common.capture.view import RingView
from bdr.common.ring import layout
from bdr.common.ring.slots import encode
from bdr.common.source import events
from bdr.common.source.identity import SourceRecord
from bdr.common.source.node import SourceNode
from bdr.common.wire.condition import Condition
from bdr.common.wire.control import Hello, Welcome
from tests.bench import bare_loop
from tests.bench.rig import DEVICE_BYTES, Rig, cpu_seconds, resident_bytes

ROUNDS = 5
SEQUENTIAL_BYTES = 2 << 30
SCATTERED_SLOTS = 400_000
LATENCY_WRITES = 500
_MB = 1e6


def main() -> int:
    """Measures everything and prints it."""
    bare, piped, scattered = [], [], []
    with Rig() as rig:
        for _ in range(ROUNDS):
            bare.append(
                bare_loop.measure(
                    str(rig.target), file_bytes=DEVICE_BYTES, total_bytes=SEQUENTIAL_BYTES
                )
            )
            piped.append(
                SEQUENTIAL_BYTES / _seconds(lambda: rig.write_sequential(SEQUENTIAL_BYTES))
            )
            scattered.append(
                SCATTERED_SLOTS / _seconds(lambda: rig.write_scattered(SCATTERED_SLOTS))
            )
        latencies_s = []
        for place in range(LATENCY_WRITES):
            time.sleep(0.002)  # an idle pipeline is what is measured
            latencies_s.append(_seconds(partial(rig.write_one, place)))
        memory = {
            "sender": resident_bytes(rig.senders[0].pid),
            "applier": resident_bytes(rig.applier.pid),
        }
        cpu = {
            "sender": cpu_seconds(rig.senders[0].pid),
            "applier": cpu_seconds(rig.applier.pid),
        }

    print(f"bare TCP-to-pwrite loop   {_row(bare)} MB/s")
    print(f"pipeline, sequential      {_row(piped)} MB/s")
    print(f"pipeline, scattered 4 KiB {_row(scattered, 1)} slots/s")
    latencies_s.sort()
    print(
        f"latency of one write      p50 {latencies_s[len(latencies_s) // 2] * 1e3:.2f} ms, "
        f"p99 {latencies_s[len(latencies_s) * 99 // 100] * 1e3:.2f} ms, durable on the target"
    )
    for stage, sizes in memory.items():
        print(
            f"memory of {stage:8}        peak {sizes['VmHWM'] >> 20} MiB, now "
            f"{sizes['VmRSS'] >> 20} MiB ({sizes['RssShmem'] >> 20} MiB of it the shared ring); "
            f"{cpu[stage]:.1f} s of CPU"
        )
    for slots, opcodes in work_per_batch().items():
        print(f"reader, batch of {slots:4} slots {opcodes:6} Python instructions")
    print(f"ratio: {statistics.median(piped) / statistics.median(bare):.2f}")
    return 0


def work_per_batch() -> dict[int, int]:
    """Python instructions that the reader's part takes for a batch, by its slots."""
    counts = {}
    for slots in (1, 16, 256):
        capture = MemoryCapture.create(
            f"/dev/shm/bdr-bench-work-{slots}", capacity=1024, device_sectors=1 << 20
        )
        try:
            node = _streaming(capture)
            sectors = np.arange(slots, dtype=np.uint64)[::-1] * np.uint64(64)
            capture.produce(encode(op=layout.Op.WRITE, sector=sectors))

            def dispatch(node: SourceNode = node, slots: int = slots) -> None:
                (action,) = node.handle(events.SenderReady())
                assert isinstance(action, events.Dispatch)
                assert action.header.count == slots

            counts[slots] = _instructions(dispatch)
        finally:
            capture.close()
    return counts


def _streaming(capture: MemoryCapture) -> SourceNode:
    node = SourceNode(
        record=SourceRecord(
            bytes(range(16)), "bench", capture.info.device_sectors, generations=(bytes(8),)
        ),
        info=capture.info,
        status=capture.status(),
        ring=RingView(capture),
    )
    node.handle(events.Tick(0.0))
    node.handle(events.StatusArrived(capture.status()))
    (hello,) = node.handle(events.LinkUp())
    assert isinstance(hello, events.Send)
    assert isinstance(hello.message, Hello)
    welcome = Welcome(
        attempt=hello.message.attempt,
        epoch=1,
        number=1,
        slot=0,
        changes=0,
        condition=Condition.CONSISTENT,
        target=bytes(range(16)),
        recent=(),
    )
    node.handle(events.MessageArrived(welcome))
    return node


def _instructions(call: Callable[[], None]) -> int:
    count = 0

    def trace(frame: object, event: str, _argument: object) -> object:
        nonlocal count
        frame.f_trace_opcodes = True  # type: ignore[attr-defined]
        count += event == "opcode"
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def _seconds(call: Callable[[], None]) -> float:
    began_at = time.perf_counter()
    call()
    return time.perf_counter() - began_at


def _row(values: list[float], unit: float = _MB) -> str:
    low, middle, high = (f(values) / unit for f in (min, statistics.median, max))
    return f"{middle:8.0f}  ({low:.0f} - {high:.0f})"


if __name__ == "__main__":
    sys.exit(main())
