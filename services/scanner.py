# SPDX-License-Identifier: GPL-2.0-only
"""A scanner: compares dirty regions of both sides, and sends the differences.

Poll, handle, perform around `common.scan.repairer`. It has no persistent state: the reader grants
leases and assigns each batch its position in the order (see `common.source.scheduler`); several
scanners share one scan, since each requests the next lease when it is done.
"""

from __future__ import annotations

from collections import deque

import zmq

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.host.tables import Source
from bdr.common.scan import events
from bdr.common.scan.repairer import Repairer
from bdr.common.status.reports import ScannerValues
from bdr.common.storage.source_device import SourceDevice
from bdr.common.wire.batch import encode_batch
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.loop import nothing
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory
from bdr.services.source.comparison import TICK_MS, Comparison


class Scanner:
    """One process; several may serve one volume.

    Args:
        capture: opened as observer.
        source: its underlying device.
        address: of the target.
        port: of the target's data socket.
        run_directory: location of the reader's sockets.
    """

    def __init__(
        self,
        *,
        capture: Capture,
        source: SourceDevice,
        address: str,
        port: int,
        run_directory: RunDirectory,
    ) -> None:
        self._log = log.logger()
        self._stream = capture.info.stream
        self._source = source
        self._outgoing: deque[list[bytes]] = deque()
        self._repaired_bytes = 0
        self._sent_bytes = 0
        self._comparer = Repairer(stream=self._stream)
        self._comparison = Comparison(
            comparer=self._comparer,
            source=source,
            control=options.tcp(address, port + 1),
            reader=run_directory.endpoint("leases"),
            more={"data": (sockets.data_sender, options.tcp(address, port))},
            perform=self._perform,
        )
        self.loop = self._comparison.loop
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT),
            stage="scanner",
            values=self._values,
        )

    def run(self) -> None:
        """Runs until SIGTERM."""
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._end_round)
        finally:
            self._reporter.close()
            self._comparison.close()

    def _values(self) -> ScannerValues:
        return ScannerValues(
            is_connected=self._comparison.is_connected,
            leases=self._comparer.open_leases,
            compared_bytes=self._comparer.compared_bytes,
            repaired_bytes=self._repaired_bytes,
            sent_bytes=self._sent_bytes,
            abandoned_leases=self._comparer.abandoned,
            links=self.loop.links,
        )

    def _on_tick(self, now_at: float) -> None:
        self._comparison.handle(events.Tick(now_at))
        self._reporter.tick(now_at, len(self._comparison.up))

    def _end_round(self) -> None:
        """Sends queued batches, and requests leases."""
        data = self._comparison.sockets["data"]
        while self._outgoing and sockets.is_writable(data):
            frames = self._outgoing.popleft()
            data.send_multipart(frames, copy=False)
            self._sent_bytes += sum(map(len, frames))
        self.loop.listen(data, nothing, zmq.POLLOUT, is_wanted=bool(self._outgoing))
        self._comparison.handle(events.RoomSeen(len(self._outgoing)))

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.SendBatch():
                buffer = self._comparison.chunks.buffers[action.buffer]
                header, headers, payload = action.build(buffer, self._stream)
                self._outgoing.append([encode_batch(header, headers, payload), headers, payload])
                self._repaired_bytes += len(payload)
            case events.DropUnsent():
                self._outgoing.clear()
            case events.LogEvent("unreadable", facts):
                self._log.error("unreadable", device=self._source.path, **facts)
            case events.LogEvent(name, facts):
                self._log.warning(name, **facts)
            case _:
                raise AssertionError(f"a scanner's comparer has no {action}")


@options.stage("scanner", [options.run_dir(), *options.of(Source, "scanner")])
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
    underdev: str | None,
) -> None:
    """Compares dirty regions of VOLUME with its replica, and repairs the replica."""

    def build() -> Scanner:
        capture = open_capture(chardev, Role.OBSERVER)
        return Scanner(
            capture=capture,
            source=SourceDevice(underdev, chardev=chardev, info=capture.info),
            address=address,
            port=port,
            run_directory=RunDirectory(run_dir),
        )

    options.run(build, stage="scanner", run_dir=run_dir)


if __name__ == "__main__":
    main()
