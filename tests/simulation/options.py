# SPDX-License-Identifier: GPL-2.0-only
"""What a seed decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from bdr.common.ring.layout import SLOT_SECTORS
from bdr.common.scan.settings import ComparerSettings
from bdr.common.source.overflow import OverflowSettings
from bdr.common.source.quota import QuotaSettings
from bdr.common.source.rate_limit import ScanRateSettings
from bdr.common.source.session import SessionSettings
from bdr.common.source.settings import SchedulerSettings, SourceSettings
from bdr.common.source.window import WindowSettings
from bdr.common.target.hook import HookSettings
from bdr.common.target.intake import IntakeSettings
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.connection import LifeSettings

CHUNK_SECTORS = 32
"""Of the simulated scan, whose device is tiny."""

FAULTS = {
    "kill_reader": (0.15, 0.5, 2.0),
    "kill_sender": (0.15, 0.5, 2.0),
    "kill_scanner": (0.15, 0.5, 2.0),
    "kill_applier": (0.15, 0.5, 2.0),
    "stop_applier": (0.15, 0.5, 2.0),
    "power_cut": (0.15, 0.5, 2.0),
    "source_power_cut": (1.0, 3.0),
    "replace_capture": (1.0, 3.0),
    "revert_source": (0.3, 1.0, 3.0),
    "revert_target": (0.3, 1.0, 3.0),
    "clone_source": (0.15, 0.5, 2.0),
    "misconfigure": (1.0, 3.0),
    "change_roles": (1.0, 3.0),
    "cut_control": (0.15, 0.5, 2.0),
    "cut_data": (0.15, 0.5, 2.0),
    "cut_scanner": (0.15, 0.5, 2.0),
    "partition_control": (0.15, 0.5, 2.0),
    "partition_data": (0.15, 0.5, 2.0),
    "pause_sender": (0.15, 0.5, 2.0),
    "stranger": (0.15, 0.5, 2.0),
    "device_eio": (0.15, 0.5, 2.0),
    "record_full": (0.15, 0.5, 2.0),
    "log_full": (0.15, 0.5, 2.0),
    "sync_failure": (0.15, 0.5, 2.0),
    "user_resync": (0.3, 1.0),
    "user_verify": (0.1, 0.5),
    "liar": (1.0, 3.0),
}
"""Fault, to the mean seconds between two of them that a seed may draw."""
EXCHANGES = ("revert_device", "revert_state", "exchange_device", "lose_state")
"""Faults that a few seeds have: what a host that went back explains hides other things."""
EXCHANGES_S = (0.3, 1.0, 3.0)


RATES = (*(None,) * 9, 2e6, 100e3, 40e3)
"""Bytes a second of the line; most seeds have none."""


@dataclass(frozen=True, slots=True)
class Options:
    """Tests name the fields that matter to them."""

    capacity: int = 32
    device_sectors: int = 128
    region_sectors: int = 8
    senders: int = 2
    scanners: int = 1
    writes: int = 100
    in_flight: int = 4
    big_writes: float = 0.05
    flushes: int = 4
    """Against 96 other writes."""
    few_values: bool = False
    """Whole blocks of two values, so that what was comes again."""
    think_s: float = 0.004
    failing_writes: float = 0.0
    failing_reads: float = 0.0
    may_overflow: bool = False
    is_equal: bool = True
    """Whether both devices have the same content at first."""
    assume_clean: bool = True
    store: str = "direct"
    log_entries: int = 4
    """How many entries of the biggest kind the journal has room for."""
    kept_bytes: int = 32 << 20
    """How much of the journal is kept in memory."""
    audits: float = 1.0
    """At which share of the releases, and of some other moments, the target's disks are judged
    as a power cut would leave them."""
    delay_s: tuple[float, float] = (0.0001, 0.002)
    wire_s: float = 0.001
    rate: float | None = None
    """Bytes a second from source to target; a batch may take longer than any limit of time."""
    life: LifeSettings = field(default_factory=lambda: LifeSettings(silent_s=4.0, stuck_s=12.0))
    disk_s: float = 0.001
    source_disk_s: float = 0.002
    read_s: float = 0.0005
    """For a chunk that a scanner or a target reads."""
    group_jobs: int = 8
    hook_s: float = 0.1
    """For a run of the target's hook, if it has one."""
    hook_failures: float = 0.0
    duplicates: float = 0.0
    drops: float = 0.0
    flips: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    """Fault -> mean seconds between two of them."""
    faults_s: float = 10.0
    """For so long there are faults."""
    source: SourceSettings = field(default_factory=SourceSettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    comparer: ComparerSettings = field(default_factory=ComparerSettings)

    @classmethod
    def drawn(cls, seed: int) -> Options:
        """Swarm testing: each seed has some kinds of faults and not the others."""
        rng = Random(f"options-{seed}")
        faults = {
            name: rng.choice(means)
            for name, means in FAULTS.items()
            if rng.random() < rng.choice((0.05, 0.3))
        }
        exchanges = Random(f"exchanges-{seed}")
        if exchanges.random() < 0.15:
            faults |= {
                name: exchanges.choice(EXCHANGES_S)
                for name in EXCHANGES
                if exchanges.random() < 0.5
            }
        if "stranger" in faults:
            # Another stream is let in only after a long silence, the source's own next too.
            for name in ("source_power_cut", "replace_capture", "change_roles"):
                faults.pop(name, None)
        store = rng.choice(("direct", "journal"))
        slow = rng.choice((1.0, 1.0, 4.0, 20.0))
        is_equal = rng.random() < 0.6
        batches = rng.choice((2, 8, 128))
        return cls(
            capacity=rng.choice((8, 12, 16, 32, 64)),
            device_sectors=rng.choice((64, 100, 128, 256)),
            region_sectors=rng.choice((8, 16, 64)),
            senders=rng.randint(1, 3),
            scanners=rng.choice((1, 1, 2)),
            writes=rng.choice((40, 80, 160)),
            in_flight=rng.choice((1, 2, 4, 8)),
            big_writes=rng.choice((0.0, 0.05, 0.3)),
            flushes=rng.choice((4, 4, 100)),
            few_values=rng.random() < 0.4,
            think_s=rng.choice((0.0005, 0.004, 0.02)),
            failing_writes=rng.choice((0.0, 0.0, 0.0, 0.05)),
            failing_reads=rng.choice((0.0, 0.0, 0.2)),
            may_overflow=rng.random() < 0.4,
            is_equal=is_equal,
            assume_clean=is_equal and rng.random() < 0.9,
            store=store,
            audits=rng.choice((0.05, 0.05, 0.4)),
            log_entries=rng.choice((2, 3, 8)),
            kept_bytes=rng.choice((0, 64 << 10, 32 << 20)),
            delay_s=(0.0001, 0.001 * slow),
            wire_s=rng.choice((0.0002, 0.002, 0.01)),
            rate=Random(f"rate-{seed}").choice(RATES),
            disk_s=rng.choice((0.0002, 0.002, 0.01)),
            source_disk_s=rng.choice((0.0005, 0.002, 0.02)),
            read_s=rng.choice((0.0002, 0.002, 0.02)),
            group_jobs=rng.choice((1, 4, 16)),
            hook_s=rng.choice((0.001, 0.1, 3.0)),
            hook_failures=rng.choice((0.0, 0.5)),
            duplicates=rng.choice((0.0, 0.0, 0.02, 0.1)),
            drops=rng.choice((0.0, 0.0, 0.0, 0.01)),
            flips=rng.choice((0.0, 0.0, 0.02)),
            faults=faults,
            faults_s=rng.choice((1.0, 4.0, 15.0)),
            source=_source(rng, batches),
            target=TargetSettings(
                intake=IntakeSettings(
                    reorder_batches=rng.choice((4, 256)),
                    reorder_bytes=rng.choice((64 << 10, 64 << 20)),
                ),
                before_resync=rng.choice(
                    (
                        None,
                        HookSettings(is_required=True, retry_s=0.5),
                        HookSettings(is_required=False),
                    )
                ),
                source_silence_s=1e6 if "stranger" in faults else 4.0,
            ),
            comparer=ComparerSettings(
                buffers=2,
                outgoing_batches=8,
                repeat_s=1.0,
                job_s=rng.choice((1.0, 15.0)),
                backoff_s=0.1,
                batch_blocks=rng.choice((2, 4, 256)) if batches > 2 else 256,
                digests=rng.choice((4, 16)),
            ),
        )


def lease_slots(options: Options) -> int:
    """Most slots that one batch of a scan may have."""
    chunks = options.source.scheduler.lease_chunks
    return chunks * CHUNK_SECTORS // SLOT_SECTORS


def _source(rng: Random, batches: int) -> SourceSettings:
    return SourceSettings(
        session=SessionSettings(
            hello_s=0.3,
            ping_s=0.3,
            silence_s=2.0,
            pause_min_s=0.1,
            pause_max_s=rng.choice((1.0, 4.0)),
        ),
        window=WindowSettings(
            slots=rng.choice((256, 256 + 4, 256 + 32, 8192)),
            batches=batches,
            batch_slots=256,
            idle_s=rng.choice((0.5, 2.0, 4.0)),
        ),
        overflow=OverflowSettings(
            resume_below=rng.choice((0.0, 0.25, 0.5)),
            min_s=0.02,
            max_s=0.3,
            failed_wait_s=rng.choice((0.5, 5.0)),
            failed_wait_max_s=10.0,
        ),
        quota=QuotaSettings(batches=min(32, batches), share=rng.choice((0.25, 32.0, 128.0))),
        scheduler=SchedulerSettings(
            lease_chunks=3,
            lease_sectors=rng.choice((1, 3)) * CHUNK_SECTORS,
            lease_s=rng.choice((1.0, 2.0, 20.0)),
            unreadable_s=1.0,
            rate_limit=ScanRateSettings(rate=rng.choice((None, None, 200e3))),
        ),
    )
