# SPDX-License-Identifier: GPL-2.0-only
"""The monitor: gathers what a volume's processes report, judges it, and tells it on.

One process a volume and host. On a source it also looks at the ring itself, as an
observer: how far behind the replica is stays known while any other process is
stopped, and is nobody's own word.

Sockets in the volume's run directory:

============  ====  ============================================================
metrics.sock  PULL  reports of the processes (`services.runtime.reports`)
status.sock   XPUB  topic `status`: the whole status as a msgpack map, every
                    second, at once when the health changes, and to each new
                    subscriber; topic `event`: what happened
events.sock   SUB   the reader's announcements, passed on under `event`
============  ====  ============================================================

It holds up nobody: reports that it does not take in time are dropped by their
sender, and a subscriber that does not read loses messages.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgpack
import zmq

from bdr.common.capture.api import Capture, CaptureStatus, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import BdrError, PermanentError
from bdr.common.host import programs
from bdr.common.ring.layout import PAYLOAD_BYTES, SECTOR_BYTES, Mode
from bdr.common.status import health
from bdr.common.status.health import SourceFacts, Stage, StageState, TargetFacts
from bdr.common.status.lag import LagMeter
from bdr.services.monitoring.events import Detector, Event
from bdr.services.monitoring.hooks import Hooks
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.reports import Report
from bdr.services.runtime.sockets import RunDirectory

if TYPE_CHECKING:
    from bdr.services.monitoring.exporter import Exporter

TICK_MS = 250
PUBLISH_S = 1.0
REOPEN_S = 2.0
STATUS_ENDPOINT = "status"
STATUS_TOPIC = b"status"
EVENT_TOPIC = b"event"
STATUS_VERSION = 1


@dataclass(slots=True)
class _Known:
    """One process, as the monitor knows it."""

    stage: str
    first_s: float
    report: Report | None = None
    pids: int = 0
    """How many processes have borne the name."""


@dataclass(slots=True)
class _Ring:
    """The monitor's own look at the capture."""

    capture: Capture | None = None
    status: CaptureStatus | None = None
    error: str | None = None
    try_at_s: float = 0.0
    lag: LagMeter = field(default_factory=LagMeter)


class Monitor:
    """One process, one volume on one host.

    Args:
        volume: the volume's name.
        role: source or target.
        chardev: of a source, the capture to look at.
        run_directory: where the sockets are bound.
        programs_dir: where each process that ought to run has its program file;
            without it, whatever has reported once ought to run.
        rpo_s: the replica may be so far behind.
        hooks: runs the user's command.
        exporter: serves Prometheus, if it is to be served.
    """

    def __init__(
        self,
        *,
        volume: str,
        role: str,
        chardev: str | None,
        run_directory: RunDirectory,
        programs_dir: str | None,
        rpo_s: float,
        hooks: Hooks,
        exporter: Exporter | None,
    ) -> None:
        self._log = log.logger()
        self._volume = volume
        self._role = role
        self._chardev = chardev
        self._programs_dir = programs_dir
        self._rpo_s = rpo_s
        self._hooks = hooks
        self._exporter = exporter
        self._claim = run_directory.claim("monitor")
        self._known: dict[str, _Known] = {}
        self._ring = _Ring()
        self._detector = Detector()
        self._event_counts: dict[str, int] = {}
        self._is_rpo_exceeded = False
        self._published: tuple[object, ...] = ()
        self._publish_at_s = 0.0
        self._look_at_s = 0.0
        self._expect_at_s = 0.0
        self._started_s = time.monotonic()
        self.status: dict[str, Any] = {}
        self.loop = Loop()
        context = self.loop.context
        self._reports = context.socket(zmq.PULL)
        self._reports.set(zmq.RCVHWM, 64)
        self._reports.set(zmq.MAXMSGSIZE, reports.REPORT_BYTES_MAX)
        self._announcements = context.socket(zmq.SUB)
        self._announcements.subscribe(b"")
        self._announcements.set(zmq.RECONNECT_IVL, 100)
        self._announcements.set(zmq.RECONNECT_IVL_MAX, 1000)
        self._status = context.socket(zmq.XPUB)
        self._status.set(zmq.XPUB_VERBOSE, 1)
        self._status.set(zmq.LINGER, 0)
        self.loop.register(self._reports, self._on_reports)
        self.loop.register(self._announcements, self._on_announcements)
        self.loop.register(self._status, self._on_subscribers)
        sockets.bind(self._reports, run_directory.endpoint(reports.ENDPOINT))
        self._tick(self._started_s)
        sockets.bind(self._status, run_directory.endpoint(STATUS_ENDPOINT))
        self._announcements.connect(run_directory.endpoint("events"))

    def run(self) -> None:
        """Runs until SIGTERM."""
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=_nothing)
        finally:
            self._hooks.close()
            if self._exporter:
                self._exporter.close()
            self.loop.close()

    # What comes in.

    def _on_reports(self) -> None:
        while sockets.is_readable(self._reports):
            report = reports.decode(self._reports.recv())
            if report is None:
                continue
            known = self._known.get(report.name)
            if known is None:
                known = self._known[report.name] = _Known(report.stage, report.sent_s)
            if known.report is None or known.report.pid != report.pid:
                known.pids += 1
            elif report.sent_s < known.report.sent_s:
                continue
            known.report = report
        self._look_at_s = 0.0

    def _on_announcements(self) -> None:
        while sockets.is_readable(self._announcements):
            frames = self._announcements.recv_multipart()
            with contextlib.suppress(ValueError, msgpack.UnpackException):
                self._emit(Event(frames[0].decode(), msgpack.unpackb(frames[-1])), hook=False)

    def _on_subscribers(self) -> None:
        has_new = False
        while sockets.is_readable(self._status):
            has_new |= self._status.recv().startswith(b"\x01")
        if has_new:
            # Who asks means the present: `bdr wait` ends a minute's waiting by it.
            self._tick(time.monotonic())
            self._publish()

    # What goes on by the clock.

    def _on_tick(self, now_s: float) -> None:
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + TICK_MS / 1000
            self._tick(now_s)

    def _tick(self, now_s: float) -> None:
        if self._chardev is not None:
            self._look(now_s)
        if now_s >= self._expect_at_s:
            self._expect_at_s = now_s + 1.0
            self._expect(now_s)
        self.status = self._compose(now_s)
        for event in self._detector.update(self.status):
            self._emit(event, hook=True)
        self._hooks.tick()
        if self._exporter:
            self._exporter.put(self.status)
        key = (self.status["health"], self.status["reasons"], self._is_rpo_exceeded)
        if now_s >= self._publish_at_s or key != self._published:
            self._published = key
            self._publish_at_s = now_s + PUBLISH_S
            self._publish()

    def _publish(self) -> None:
        self._status.send_multipart([STATUS_TOPIC, msgpack.packb(self.status)])

    def _emit(self, event: Event, *, hook: bool) -> None:
        self._event_counts[event.topic] = self._event_counts.get(event.topic, 0) + 1
        message = {
            "time": _now(),
            "volume": self._volume,
            "event": event.topic,
            "facts": dict(event.facts),
        }
        self._status.send_multipart([EVENT_TOPIC, msgpack.packb(message, default=str)])
        if hook:
            is_good = event.topic in _GOOD_NEWS or event.facts.get("to") == "healthy"
            told = self._log.info if is_good else self._log.warning
            told(event.topic, **event.facts, seconds_behind=self.status["seconds_behind"])
            self._hooks.put(event, self.status)

    def _look(self, now_s: float) -> None:
        """Looks at the ring; a capture that is gone is tried again every two seconds."""
        ring = self._ring
        try:
            if ring.capture is None:
                if now_s < ring.try_at_s:
                    return
                assert self._chardev is not None
                ring.try_at_s = now_s + REOPEN_S
                ring.capture = open_capture(self._chardev, Role.OBSERVER)
            ring.status = ring.capture.status()
            ring.error = None
            # Published is what the source's disk has; reserved slots are not written yet.
            ring.lag.look(now_s=now_s, head=ring.status.unpublished, tail=ring.status.tail)
        except BdrError as error:
            ring.error = str(error)
            ring.status = None
            if ring.capture is not None:
                ring.capture.close()
                ring.capture = None

    def _expect(self, now_s: float) -> None:
        """Takes the set of processes that ought to run from their program files."""
        if self._programs_dir is None:
            return
        expected = {}
        try:
            names = os.listdir(self._programs_dir)
        except OSError as error:
            self._log.warning("programs-unreadable", reason=error.strerror)
            return
        for file_name in names:
            name = file_name.removesuffix(".conf")
            stage = programs.stage_of(name, volume=self._volume)
            if stage not in (None, "monitor"):
                expected[name] = stage
        for name in list(self._known):
            if name not in expected:
                del self._known[name]
        for name, stage in expected.items():
            if name not in self._known:
                assert stage is not None
                self._known[name] = _Known(stage, now_s)

    # What it makes of it.

    def _compose(self, now_s: float) -> dict[str, Any]:
        stages = [self._stage(name, known, now_s) for name, known in sorted(self._known.items())]
        fresh = {
            name: known.report
            for name, known in self._known.items()
            if known.report and self._state(known, now_s) is StageState.REPORTING
        }
        is_source = self._role == "source"
        part = self._source_part(fresh) if is_source else self._target_part(fresh, now_s)
        facts = self._source_facts(stages, part) if is_source else self._target_facts(stages, part)
        verdict = health.judge(facts)
        return {
            "version": STATUS_VERSION,
            "volume": self._volume,
            "role": self._role,
            "time": _now(),
            "health": verdict.word.value,
            "exit_code": verdict.word.exit_code,
            "reasons": list(verdict.reasons),
            "rpo_seconds": self._rpo_s,
            "is_rpo_exceeded": self._is_rpo_exceeded,
            **part,
            "stages": [
                {
                    "name": stage.name,
                    "stage": stage.stage,
                    "state": stage.state.value,
                    "age_seconds": round(stage.silent_s, 3),
                    "restarts": max(0, self._known[stage.name].pids - 1),
                    "pid": _pid(self._known[stage.name]),
                    "values": _values(self._known[stage.name]),
                }
                for stage in stages
            ],
            "events": dict(self._event_counts),
            "hooks": {
                "run": self._hooks.run,
                "failed": self._hooks.failed,
                "dropped": self._hooks.dropped,
            },
            "monitor_uptime_seconds": round(now_s - self._started_s, 3),
        }

    def _stage(self, name: str, known: _Known, now_s: float) -> Stage:
        silent_s = now_s - (known.report.sent_s if known.report else known.first_s)
        return Stage(name, known.stage, self._state(known, now_s), max(0.0, silent_s))

    def _state(self, known: _Known, now_s: float) -> StageState:
        if known.report is None:
            silent = now_s - known.first_s > health.SILENT_AFTER_S
            return StageState.SILENT if silent else StageState.STARTING
        if known.report.is_last or not _is_alive(known.report.pid):
            return StageState.STOPPED
        silent = now_s - known.report.sent_s > health.SILENT_AFTER_S
        return StageState.SILENT if silent else StageState.REPORTING

    def _source_part(self, fresh: dict[str, Report]) -> dict[str, Any]:
        ring, lag = self._ring.status, self._ring.lag.lag
        reader = next((r.values for r in fresh.values() if r.stage == "reader"), None)
        if ring is not None:
            self._is_rpo_exceeded = lag.seconds > self._rpo_s
        return {
            "seconds_behind": round(lag.seconds, 3) if ring else None,
            "is_seconds_behind_minimum": lag.is_minimum,
            "slots_behind": lag.slots if ring else None,
            "bytes_behind": lag.slots * PAYLOAD_BYTES if ring else None,
            "catch_up_seconds": _rounded(lag.catch_up_s) if ring else None,
            "written_slots_per_second": round(lag.written_per_s, 1),
            "acked_slots_per_second": round(lag.acked_per_s, 1),
            "ring": _ring_part(ring, self._ring.capture) if ring else None,
            "connection": {
                "state": reader["phase"] if reader else None,
                "is_up": None if reader is None else reader["phase"] == "STREAMING",
                "losses": _count(reader["disconnects"]) if reader else 0,
                **self._links(),
            },
            "replica": {
                "condition": reader["condition"] if reader else None,
                **_standing(reader),
                "slot": ring.tail if ring else None,
                "stream": self._ring.capture.info.stream.hex() if self._ring.capture else None,
                "left_bytes": _left_bytes(ring, self._ring.capture),
            },
            "resync": self._resync_part(fresh, reader),
        }

    def _resync_part(
        self, fresh: dict[str, Report], reader: reports.Values | None
    ) -> dict[str, Any] | None:
        """What is to be copied and what was, or None if nobody knows."""
        ring = self._ring.status
        if ring is None or reader is None:
            return None
        dirty = ring.active_regions + ring.resync_regions
        scanners = [r.values for r in fresh.values() if r.stage == "scanner"]
        is_needed = bool(dirty) or reader["condition"] == "INCONSISTENT"
        return {
            "is_running": is_needed and bool(scanners),
            "dirty_regions": dirty,
            "compared_bytes": _count(reader.get("scan_compared_bytes")),
            "repaired_bytes": _count(reader.get("scan_repaired_bytes")),
        }

    def _target_part(self, fresh: dict[str, Report], now_s: float) -> dict[str, Any]:
        applier = next((r.values for r in fresh.values() if r.stage == "applier"), None)
        acked_s = applier.get("acked_s") if applier else None
        return {
            "seconds_behind": None,
            "bytes_behind": None,
            "ring": None,
            "resync": None,
            "connection": {
                "state": None if applier is None else "FED" if applier["is_fed"] else "WAITING",
                "is_up": applier["is_fed"] if applier else None,
                "losses": 0,
                **self._links(),
            },
            "replica": {
                "condition": applier["condition"] if applier else None,
                **_standing(applier),
                "left_bytes": applier["left_bytes"] if applier else None,
                "slot": applier["slot"] if applier else None,
                "stream": applier["stream"] if applier else None,
                "last_ack_age_seconds": (
                    round(now_s - acked_s, 3) if isinstance(acked_s, int | float) else None
                ),
                "queued_bytes": applier["queued_bytes"] if applier else None,
                "queued_age_seconds": _rounded(applier["queued_s"]) if applier else None,
                "journal_bytes": applier.get("journal_bytes") if applier else None,
                "journal_size_bytes": applier.get("journal_size_bytes") if applier else None,
            },
        }

    def _links(self) -> dict[str, int]:
        names = ("connects", "disconnects", "handshakes_failed", "authentications_failed")
        reports = [known.report for known in self._known.values() if known.report]
        return {name: sum(_count(report.values.get(name)) for report in reports) for name in names}

    def _source_facts(self, stages: list[Stage], part: dict[str, Any]) -> SourceFacts:
        ring = self._ring.status
        return SourceFacts(
            stages=stages,
            capture_error=self._ring.error,
            is_overflowing=ring is not None and ring.mode is Mode.OVERFLOW,
            dirty_regions=ring.active_regions + ring.resync_regions if ring else 0,
            phase=part["connection"]["state"],
            condition=part["replica"]["condition"],
            connected_senders=sum(
                bool(known.report and known.report.values.get("is_connected"))
                for stage in stages
                if (known := self._known[stage.name]).stage == "sender"
                and stage.state is StageState.REPORTING
            ),
            seconds_behind=part["seconds_behind"] or 0.0,
            is_minimum=part["is_seconds_behind_minimum"],
            rpo_seconds=self._rpo_s,
            is_scanning=any(
                stage.stage == "scanner" and stage.state is StageState.REPORTING for stage in stages
            ),
        )

    def _target_facts(self, stages: list[Stage], part: dict[str, Any]) -> TargetFacts:
        return TargetFacts(
            stages=stages,
            is_fed=part["connection"]["is_up"],
            condition=part["replica"]["condition"],
            queued_seconds=part["replica"]["queued_age_seconds"] or 0.0,
            rpo_seconds=self._rpo_s,
        )


_YEAR_3000_S = 32_503_680_000
_GOOD_NEWS = ("connection-restored", "consistent", "rpo-restored", "stage-back", "resync-end")


def _exporter(address: str, port: int) -> Exporter:
    # A quarter of the monitor's memory: imported only where it is wanted.
    from bdr.services.monitoring.exporter import Exporter  # noqa: PLC0415

    return Exporter(address, port)


def _is_alive(pid: int) -> bool:
    """Whether the process exists: one that was killed sends no last report."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _nothing() -> None:
    """Everything happens in handlers and by the clock."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _rounded(value: reports.Value) -> float | None:
    return round(value, 1) if isinstance(value, int | float) else None


def _count(value: reports.Value) -> int:
    return value if isinstance(value, int) else 0


def _pid(known: _Known) -> int | None:
    report = known.report
    return report.pid if report and not report.is_last and _is_alive(report.pid) else None


def _values(known: _Known) -> dict[str, reports.Value]:
    return dict(known.report.values) if known.report else {}


def _standing(values: reports.Values | None) -> dict[str, str | None]:
    """Since when the condition holds, and of when the replica is, where that is known."""
    found = values or {}
    return {"since": _time(found.get("since_s")), "of": _time(found.get("at_s"))}


def _time(value: reports.Value) -> str | None:
    if not isinstance(value, int) or not 0 < value < _YEAR_3000_S:
        return None
    return datetime.fromtimestamp(value, UTC).isoformat()


def _left_bytes(status: CaptureStatus | None, capture: Capture | None) -> int | None:
    """What is marked to be compared; a region may be marked in both bitmaps."""
    if status is None or capture is None:
        return None
    marked = status.active_regions + status.resync_regions
    return min(marked * capture.info.region_sectors, status.device_sectors) * SECTOR_BYTES


def _ring_part(status: CaptureStatus, capture: Capture | None) -> dict[str, Any]:
    capacity = capture.info.capacity if capture else 0
    return {
        "head": status.head,
        "tail": status.tail,
        "capacity": capacity,
        "used": status.head - status.tail,
        "mode": status.mode.name,
        "regions": capture.info.regions if capture else 0,
        "dirty_regions": status.active_regions + status.resync_regions,
        "overflows": status.overflows,
        "missed_writes": status.missed_writes,
        "failed_writes": status.failed_writes,
        "device_sectors": status.device_sectors,
    }


@click.command()
@options.stage("monitor")
@options.run_dir
@click.option(
    "--role",
    required=True,
    type=click.Choice(["source", "target"]),
    help="Which side of the volume this host is.",
)
@click.option(
    "--chardev",
    type=click.Path(),
    help="Of a source: the capture, to be looked at besides the reports.",
)
@click.option(
    "--programs-dir",
    type=click.Path(file_okay=False),
    help="Directory with a file VOLUME-STAGE[-N].conf for each process that ought to run.",
)
@click.option(
    "--rpo-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="The replica may be so far behind before it counts as behind.",
)
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="For Prometheus.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve Prometheus' /metrics on this port; none by default.",
)
@click.option("--on-event", help="Command to run on events, as one word; quote it as for a shell.")
def main(
    volume: str,
    run_dir: str,
    role: str,
    chardev: str | None,
    programs_dir: str | None,
    rpo_seconds: float,
    metrics_address: str,
    metrics_port: int | None,
    on_event: str | None,
) -> None:
    """Gathers what VOLUME's processes report, judges its health, and serves both."""

    def build() -> Monitor:
        if role == "source" and chardev is None:
            raise PermanentError("--chardev: found none, wanted that of the source")
        run_directory = RunDirectory(run_dir)
        return Monitor(
            volume=volume,
            role=role,
            chardev=chardev if role == "source" else None,
            run_directory=run_directory,
            programs_dir=str(Path(programs_dir).resolve()) if programs_dir else None,
            rpo_s=rpo_seconds,
            hooks=Hooks(shlex.split(on_event) if on_event else None),
            exporter=_exporter(metrics_address, metrics_port) if metrics_port else None,
        )

    options.run(build)


if __name__ == "__main__":
    main()
