# SPDX-License-Identifier: GPL-2.0-only
"""A sender: sends batches from ring memory to the target, without a copy.

It has no state: the reader's descriptors give slots and batch numbers. Any number of senders may
run. If its connection to the target is lost, batches may be lost; it then closes the descriptor
socket too, which drops its descriptors; the reader detects this and starts a new session.
"""

from __future__ import annotations

from collections import deque

import zmq

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import StaleCaptureError
from bdr.common.host.tables import Source
from bdr.common.ring.layout import PAYLOAD_BYTES
from bdr.common.status.reports import SenderValues
from bdr.common.wire.batch import BatchHeader, decode_descriptor, encode_batch
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.dialer import Dialer
from bdr.services.runtime.loop import Loop, nothing
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory

TICK_MS = 1000
KEPT_BYTES = 64 << 20
"""Ring memory that stays in this process's resident set after it was sent."""


class Sender:
    """One process; several may serve one volume.

    Args:
        capture: opened as observer.
        data: ZeroMQ address of the applier's data socket.
        run_directory: location of the reader's descriptor socket.
    """

    def __init__(self, *, capture: Capture, data: str, run_directory: RunDirectory) -> None:
        self._log = log.logger()
        self._capture = capture
        self._data_address = data
        self._descriptors_address = run_directory.endpoint("descriptors")
        self._sent: deque[tuple[int, int]] = deque()
        self._sent_slots = 0
        self._batches = 0
        self._slots = 0
        self._bytes = 0
        self._is_connected = False
        self.loop = Loop()
        self._dialer = Dialer(self.loop, data)
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT),
            stage="sender",
            values=self._values,
        )
        self._connect()

    def run(self) -> None:
        """Runs until SIGTERM."""
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._pump)
        finally:
            self._reporter.close()
            self.loop.close()

    def _on_tick(self, now_at: float) -> None:
        self._reporter.tick(now_at, self._is_connected)

    def _values(self) -> SenderValues:
        return SenderValues(
            is_connected=self._is_connected,
            trouble=self._dialer.trouble,
            batches=self._batches,
            slots=self._slots,
            bytes=self._bytes,
            links=self.loop.links,
        )

    def _connect(self) -> None:
        self._data = sockets.data_sender(self.loop.context)
        self._descriptors = sockets.descriptor_puller(self.loop.context)
        self._dialer.dial(self._data, up=self._on_link_up, down=self._on_link_down)

    def _on_link_up(self) -> None:
        # Only now: descriptors received earlier would be delayed while other senders are ready.
        self._is_connected = True
        self._log.info("connected", target=self._data_address)
        self._descriptors.connect(self._descriptors_address)

    def _on_link_down(self) -> None:
        self._is_connected = False
        self._log.warning("connection-lost", target=self._data_address)
        self.loop.drop(self._data)
        self.loop.drop(self._descriptors)
        self._connect()

    def _pump(self) -> None:
        """Sends while there are descriptors and the connection takes batches."""
        while sockets.is_writable(self._data):
            if not sockets.is_readable(self._descriptors):
                # Wait for work.
                self.loop.unregister(self._data)
                self.loop.register(self._descriptors, nothing)
                return
            self._send(decode_descriptor(self._descriptors.recv()))
        # Wait for room.
        self.loop.unregister(self._descriptors)
        self.loop.register(self._data, nothing, zmq.POLLOUT)

    def _send(self, header: BatchHeader) -> None:
        stream = self._capture.info.stream
        if header.stream != stream:
            # The memory mapped here is not that of the reader's capture.
            raise StaleCaptureError.of_stream(header.stream, stream)
        first, count = header.first, header.count
        headers = self._capture.header_bytes(first, count)
        payload = self._capture.payload(first, count)
        top = encode_batch(header, headers, payload)
        # The views are not released: libzmq reads ring memory until the bytes are sent.
        self._data.send_multipart([top, headers, payload], copy=False)
        self._batches += 1
        self._slots += count
        self._bytes += len(top) + headers.nbytes + payload.nbytes
        self._forget_old(first, count)

    def _forget_old(self, first: int, count: int) -> None:
        if self._capture.info.capacity * PAYLOAD_BYTES <= KEPT_BYTES:
            return
        self._sent.append((first, count))
        self._sent_slots += count
        while self._sent_slots * PAYLOAD_BYTES > KEPT_BYTES:
            old_first, old_count = self._sent.popleft()
            self._sent_slots -= old_count
            self._capture.drop_pages(old_first, old_count)


@options.stage("sender", [options.run_dir(), *options.of(Source, "sender")])
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
) -> None:
    """Sends batches of VOLUME to the target; run as many as the link can use."""

    def build() -> Sender:
        return Sender(
            capture=open_capture(chardev, Role.OBSERVER),
            data=options.tcp(address, port),
            run_directory=RunDirectory(run_dir),
        )

    options.run(build, stage="sender", run_dir=run_dir)


if __name__ == "__main__":
    main()
