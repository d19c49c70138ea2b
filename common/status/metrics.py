# SPDX-License-Identifier: GPL-2.0-only
"""Every metric of a volume. No I/O here.

The exporter serves these, and `make docs` writes the table in docs/metrics.md from them: a metric's
name, labels and help are only here.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.status.metric import (
    BOTH,
    Metric,
    Sample,
    by_applier,
    by_link,
    by_process,
    by_sender,
    of_intake,
    of_lag,
    of_resync,
    of_ring,
    of_verification,
    of_volume,
)
from bdr.common.status.model import VolumeStatus
from bdr.common.status.states import HealthState, StageState
from bdr.common.wire.condition import Condition


def _health(status: VolumeStatus) -> Iterator[Sample]:
    return (((state.value,), state is status.health) for state in HealthState)


def _condition(status: VolumeStatus) -> Iterator[Sample]:
    found = status.replica.condition
    if found is not None:
        yield from (((each.name.lower(),), each is found) for each in Condition)


def _events(status: VolumeStatus) -> Iterator[Sample]:
    return (((event,), count) for event, count in status.events.items())


def _hooks(status: VolumeStatus) -> Iterator[Sample]:
    hooks = status.hooks
    yield from ((("run",), hooks.run), (("failed",), hooks.failed), (("dropped",), hooks.dropped))


OF_MONITOR = (
    Metric(
        "bdr_health", BOTH, ("health",), "1 for the state that applies, 0 for the others", _health
    ),
    of_volume("bdr_rpo_seconds", "the configured rpo_seconds", lambda it: it.rpo_s),
    of_volume(
        "bdr_rpo_exceeded",
        "1 while the replica is further behind than rpo_seconds; no sample if unknown",
        lambda it: it.is_rpo_exceeded,
    ),
    of_volume(
        "bdr_monitor_uptime_seconds",
        "age of the monitor; does not increase if it hangs",
        lambda it: it.monitor_uptime_s,
    ),
)
"""Also served if the monitor hangs."""

METRICS = (
    *OF_MONITOR,
    of_volume(
        "bdr_seconds_behind",
        "age of the oldest write that the replica lacks; no sample if unknown",
        lambda it: it.seconds_behind,
    ),
    of_lag(
        "bdr_bytes_behind",
        "payload that is not durable on the target, in whole slots",
        lambda it: it.bytes,
    ),
    of_lag(
        "bdr_catch_up_seconds",
        "until caught up at the rates of the last 10 s; no sample if never",
        lambda it: it.catch_up_s,
    ),
    of_ring(
        "bdr_captured_slots_total",
        "slots written by the source since the capture was made",
        lambda it: it.head,
    ),
    of_ring(
        "bdr_captured_bytes_total",
        "slots written by the source, times 4096",
        lambda it: it.head * PAYLOAD_BYTES,
    ),
    of_ring("bdr_acknowledged_slots_total", "slots durable on the target", lambda it: it.tail),
    of_ring(
        "bdr_acknowledged_bytes_total",
        "slots durable on the target, times 4096",
        lambda it: it.tail * PAYLOAD_BYTES,
    ),
    by_sender("bdr_sent_batches_total", "batches sent, repeats included", lambda it: it.batches),
    by_sender("bdr_sent_slots_total", "slots sent, repeats included", lambda it: it.slots),
    by_sender(
        "bdr_sent_bytes_total", "bytes passed to the network, repeats included", lambda it: it.bytes
    ),
    of_ring("bdr_ring_capacity_slots", "size of the ring in slots", lambda it: it.capacity),
    of_ring("bdr_ring_used_slots", "slots in use", lambda it: it.used),
    of_ring("bdr_ring_overflowing", "1 while writes are only marked", lambda it: it.is_overflowing),
    of_ring("bdr_overflows_total", "overflows of the ring", lambda it: it.overflows),
    of_ring("bdr_missed_writes_total", "writes that were only marked", lambda it: it.missed_writes),
    of_ring(
        "bdr_failed_writes_total",
        "writes that failed on the underlying device",
        lambda it: it.failed_writes,
    ),
    of_ring("bdr_regions", "regions of the device", lambda it: it.regions),
    of_ring(
        "bdr_dirty_regions",
        "regions that await a resync: its progress",
        lambda it: it.dirty_regions,
    ),
    of_resync("bdr_resync_running", "1 while scanners copy", lambda it: it.is_running),
    of_resync(
        "bdr_scan_compared_bytes_total",
        "bytes compared with the target since the reader's start",
        lambda it: it.compared_bytes,
    ),
    of_resync(
        "bdr_scan_repaired_bytes_total",
        "bytes found different and sent since the reader's start",
        lambda it: it.repaired_bytes,
    ),
    of_verification(
        "bdr_verified_timestamp_seconds",
        "when the last verification of the whole device ended, since 1970; no sample if never",
        lambda it: it.ended_utc.timestamp() if it.ended_utc else None,
    ),
    of_verification(
        "bdr_verify_differing_bytes",
        "what it found to differ; no sample if there was none",
        lambda it: it.differing_bytes if it.ended_utc else None,
    ),
    of_verification(
        "bdr_verify_unrepaired_bytes",
        "size of the ranges that any verification has found to differ, and that are not repaired",
        lambda it: it.unrepaired_bytes,
    ),
    of_volume(
        "bdr_connected",
        "1 while source and target are connected; no sample if unknown",
        lambda it: it.connection.is_up,
    ),
    by_link("bdr_connects_total", "connections whose handshake succeeded", lambda it: it.connects),
    by_link("bdr_disconnects_total", "connections that ended", lambda it: it.disconnects),
    by_link(
        "bdr_handshakes_failed_total",
        "connections with a failed protocol handshake",
        lambda it: it.handshakes_failed,
    ),
    by_link(
        "bdr_authentications_failed_total",
        "connections with a rejected key",
        lambda it: it.authentications_failed,
    ),
    Metric(
        "bdr_replica_condition",
        BOTH,
        ("condition",),
        "1 for the condition that applies (consistent, catching_up, inconsistent, unknown, "
        "unverified), else 0",
        _condition,
    ),
    of_intake("bdr_queued_bytes", "bytes received and not durable", lambda it: it.queued_bytes),
    of_intake(
        "bdr_queued_age_seconds",
        "age of the oldest queued batch; above rpo_seconds the target is behind",
        lambda it: it.queued_age_s,
    ),
    of_intake(
        "bdr_held_age_seconds",
        "for how long before_resync has been due, and batches wait for it; no sample if it is not",
        lambda it: it.held_age_s,
    ),
    of_intake(
        "bdr_last_ack_age_seconds",
        "time since the last acknowledgement; sources request one every second",
        lambda it: it.last_ack_age_s,
    ),
    of_intake(
        "bdr_journal_bytes",
        "bytes of the journal in use; no sample without one",
        lambda it: it.journal_bytes,
    ),
    of_intake(
        "bdr_journal_size_bytes", "size of the journal in bytes", lambda it: it.journal_size_bytes
    ),
    by_applier(
        "bdr_applied_bytes_total",
        "payload made durable since the applier's start",
        lambda it: it.bytes,
    ),
    by_applier(
        "bdr_bad_messages_total",
        "messages that violate the protocol",
        lambda it: it.bad_messages,
    ),
    by_process(
        "bdr_process_reporting",
        BOTH,
        "1 while it reports",
        lambda it: it.state is StageState.REPORTING,
    ),
    by_process("bdr_report_age_seconds", BOTH, "time since its last report", lambda it: it.age_s),
    by_process(
        "bdr_process_restarts_total",
        BOTH,
        "restarts observed by this monitor",
        lambda it: it.restarts,
    ),
    by_process(
        "bdr_process_waiting",
        BOTH,
        "1 while it lacks something of the host, and tries again",
        lambda it: it.state is StageState.WAITING,
    ),
    by_process(
        "bdr_lost_log_lines_total",
        BOTH,
        "lines of its log that could not be written",
        lambda it: it.lost_lines,
    ),
    of_volume(
        "bdr_monitor_lost_log_lines_total",
        "lines of the monitor's own log that could not be written",
        lambda it: it.monitor_lost_lines,
    ),
    Metric("bdr_events_total", BOTH, ("event",), "count of each event", _events),
    Metric("bdr_hooks_total", BOTH, ("outcome",), "commands run on events, by outcome", _hooks),
)


def table() -> str:
    """The metrics as a table in Markdown."""
    lines = ["| metric | type | side | labels | meaning |", "|---|---|---|---|---|"]
    for each in METRICS:
        side = "both" if each.roles == BOTH else each.roles[0].value
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.type.value} | {side} | {labels} | {each.help} |")
    return "\n".join(lines) + "\n"
