# SPDX-License-Identifier: GPL-2.0-only
"""The monitor: collects the reports of a volume's processes, and publishes its status.

One process per volume and host. On a source it also samples the ring itself, as an observer: the
replica's lag stays known while any other process is stopped. `common.status.compose` derives the
status from reports and samples.

Sockets in the volume's run directory:

============  ====  ============================================================
metrics.sock  PULL  reports of the processes (`services.runtime.reports`)
status.sock   XPUB  topic `status`: the whole status as a msgpack map, every second, immediately
                    when the health changes, and to each new subscriber; topic `event`: events
                    of the volume
events.sock   SUB   the reader's announcements, passed on under `event`
============  ====  ============================================================

Nothing blocks on the monitor: reports that it does not receive in time are dropped by their sender,
and a subscriber that does not read loses messages.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgpack

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import AddressError, BdrError, PermanentError, StatusError
from bdr.common.host import programs
from bdr.common.host.tables import Source
from bdr.common.status.compose import Composer
from bdr.common.status.model import VolumeStatus, encode_status
from bdr.common.status.reports import decode_report
from bdr.common.status.states import HealthState, VolumeRole
from bdr.services.monitoring.client import EVENT_TOPIC, STATUS_ENDPOINT, STATUS_TOPIC
from bdr.services.monitoring.events import Detector, Event
from bdr.services.monitoring.hooks import Hooks
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.loop import Loop, nothing
from bdr.services.runtime.sockets import RunDirectory

if TYPE_CHECKING:
    from bdr.services.monitoring.exporter import Exporter

TICK_MS = 250
PUBLISH_S = 1.0
REOPEN_S = 2.0
EXPECT_S = 1.0
EXPORT_S = 15.0
_RECOVERIES = (
    "connection-restored",
    "consistent",
    "rpo-restored",
    "stage-back",
    "resync-end",
    "repaired",
)


class Monitor:
    """One process, one volume on one host.

    Args:
        volume: the volume's name.
        role: source or target.
        chardev: on a source, path of the capture.
        run_directory: location of the sockets.
        programs_dir: directory with a program file for each expected process; without it, every
            process that has reported once is expected.
        rpo_s: recovery point objective.
        hooks: runs the configured command.
        open_exporter: opens the Prometheus endpoint, if configured; tried again while its port is
            in use.
    """

    def __init__(
        self,
        *,
        volume: str,
        role: VolumeRole,
        chardev: str | None,
        run_directory: RunDirectory,
        programs_dir: str | None,
        rpo_s: float,
        hooks: Hooks,
        open_exporter: Callable[[], Exporter] | None,
    ) -> None:
        self._log = log.logger()
        self._volume = volume
        self._chardev = chardev
        self._programs_dir = programs_dir
        self._hooks = hooks
        self._open_exporter = open_exporter
        self._exporter: Exporter | None = None
        self._export_at = 0.0
        self._claim = run_directory.claim("monitor")
        self._capture: Capture | None = None
        self._open_at = 0.0
        self._detector = Detector()
        self._event_counts: dict[str, int] = {}
        self._published: tuple[object, ...] = ()
        self._publish_at = 0.0
        self._sample_at = 0.0
        self._expect_at = 0.0
        began_at = time.monotonic()
        self.status: VolumeStatus
        """The last status; updated at each tick."""
        self._composer = Composer(volume=volume, role=role, rpo_s=rpo_s, started_at=began_at)
        self.loop = Loop()
        context = self.loop.context
        self._reports = sockets.report_puller(context)
        self._announcements = sockets.event_subscriber(context)
        self._status = sockets.status_publisher(context)
        self.loop.register(self._reports, self._on_reports)
        self.loop.register(self._announcements, self._on_announcements)
        self.loop.register(self._status, self._on_subscribers)
        sockets.bind(self._reports, run_directory.endpoint(reports.ENDPOINT))
        self._tick(began_at)
        sockets.bind(self._status, run_directory.endpoint(STATUS_ENDPOINT))
        self._announcements.connect(run_directory.endpoint("events"))

    def run(self) -> None:
        """Runs until SIGTERM."""
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=nothing)
        finally:
            self._hooks.close()
            if self._exporter:
                self._exporter.close()
            self.loop.close()

    # Input.

    def _on_reports(self) -> None:
        while sockets.is_readable(self._reports):
            with contextlib.suppress(StatusError):
                self._composer.processes.take(decode_report(self._reports.recv()))
        self._sample_at = 0.0

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
            # A new subscriber gets the present status, on which `bdr wait` relies.
            self._tick(time.monotonic())
            self._publish()

    # Timer.

    def _on_tick(self, now_at: float) -> None:
        if now_at >= self._sample_at:
            self._sample_at = now_at + TICK_MS / 1000
            self._tick(now_at)

    def _tick(self, now_at: float) -> None:
        if self._chardev is not None:
            self._sample_ring(self._chardev, now_at)
        if now_at >= self._expect_at:
            self._expect_at = now_at + EXPECT_S
            self._expect(now_at)
        self.status = self._composer.compose(
            now_at=now_at,
            now_utc=datetime.now(UTC),
            is_alive=_is_alive,
            events=self._event_counts,
            hooks=self._hooks.counts,
            lost_lines=log.lost_lines(),
        )
        for event in self._detector.update(self.status):
            self._emit(event, hook=True)
        self._hooks.tick()
        if self._exporter is None and self._open_exporter and now_at >= self._export_at:
            self._export_at = now_at + EXPORT_S
            self._export(self._open_exporter)
        if self._exporter:
            self._exporter.put(self.status)
        key = (self.status.health, self.status.reasons, self.status.is_rpo_exceeded)
        if now_at >= self._publish_at or key != self._published:
            self._published = key
            self._publish_at = now_at + PUBLISH_S
            self._publish()

    def _publish(self) -> None:
        self._status.send_multipart([STATUS_TOPIC, encode_status(self.status)])

    def _emit(self, event: Event, *, hook: bool) -> None:
        self._event_counts[event.name] = self._event_counts.get(event.name, 0) + 1
        message = {
            "time_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "volume": self._volume,
            "event": event.name,
            "facts": dict(event.facts),
        }
        self._status.send_multipart([EVENT_TOPIC, msgpack.packb(message, default=str)])
        if hook:
            to = event.facts.get("to")
            is_good = event.name in _RECOVERIES or to == HealthState.HEALTHY.value
            is_good |= event.name == "verified" and not event.facts["unrepaired_bytes"]
            write = self._log.info if is_good else self._log.warning
            write(event.name, **event.facts, seconds_behind=self.status.seconds_behind)
            self._hooks.put(event, self.status)

    def _export(self, open_exporter: Callable[[], Exporter]) -> None:
        """Starts to serve metrics; without them the status is published all the same."""
        try:
            self._exporter = open_exporter()
        except AddressError as error:
            self._log.warning("metrics-unavailable", reason=str(error), retry_after_s=EXPORT_S)

    def _sample_ring(self, chardev: str, now_at: float) -> None:
        """Samples the ring; a capture that is gone is reopened every `REOPEN_S`."""
        try:
            if self._capture is None:
                if now_at < self._open_at:
                    return
                self._open_at = now_at + REOPEN_S
                self._capture = open_capture(chardev, Role.OBSERVER)
            status = self._capture.status()
            marks = self._capture.marks() if status.head > status.tail else []
        except BdrError as error:
            self._composer.ring.lost(str(error))
            if self._capture is not None:
                self._capture.close()
                self._capture = None
        else:
            self._composer.ring.seen(self._capture.info, status, marks, now_at=now_at)

    def _expect(self, now_at: float) -> None:
        """Reads the set of expected processes from their program files."""
        if self._programs_dir is None:
            return
        try:
            files = os.listdir(self._programs_dir)
        except OSError as error:
            self._log.warning("programs-unreadable", reason=error.strerror)
            return
        names = [file.removesuffix(".conf") for file in files]
        found = {name: programs.stage_of(name, volume=self._volume) for name in names}
        expected = {name: stage for name, stage in found.items() if stage not in (None, "monitor")}
        self._composer.processes.expect(expected, now_at)


def _exporter(address: str, port: int) -> Exporter:
    # Imported on demand: a quarter of the monitor's memory.
    from bdr.services.monitoring.exporter import Exporter  # noqa: PLC0415

    return Exporter(address, port)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@options.stage(
    "monitor",
    [
        options.run_dir(),
        *options.of(Source, "monitor", optional=["chardev"]),
        click.Option(
            ["--programs-dir"],
            type=click.Path(file_okay=False),
            help="Directory with a file VOLUME-STAGE[-N].conf for each expected process.",
        ),
    ],
)
def main(
    volume: str,
    run_dir: str,
    role: str,
    chardev: str | None,
    programs_dir: str | None,
    rpo_seconds: float,
    metrics_address: str,
    metrics_port: int | None,
    on_event: list[str] | None,
) -> None:
    """Collects the reports of VOLUME's processes, judges its health, and publishes both."""

    def build() -> Monitor:
        if role == "source" and chardev is None:
            raise PermanentError("--chardev: not set; wanted that of the source")
        run_directory = RunDirectory(run_dir)
        return Monitor(
            volume=volume,
            role=VolumeRole(role),
            chardev=chardev if role == "source" else None,
            run_directory=run_directory,
            programs_dir=str(Path(programs_dir).resolve()) if programs_dir else None,
            rpo_s=rpo_seconds,
            hooks=Hooks(on_event),
            open_exporter=functools.partial(_exporter, metrics_address, metrics_port)
            if metrics_port
            else None,
        )

    options.run(build, stage="monitor", run_dir=run_dir)


if __name__ == "__main__":
    main()
