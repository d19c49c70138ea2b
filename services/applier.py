# SPDX-License-Identifier: GPL-2.0-only
"""The applier: receives batches, and applies them to the target device.

Poll, handle, perform around `common.target.node`; disk I/O runs in the thread of a `StoreWorker`,
checksums in those of a `Checksummer`.
"""

from __future__ import annotations

import contextlib
import time
from typing import assert_never

import zmq

from bdr.common.errors import WireError
from bdr.common.host.tables import Target
from bdr.common.status.reports import ApplierValues
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target import events
from bdr.common.target.node import TargetNode
from bdr.common.wire.batch import decode_batch
from bdr.common.wire.codec import Buffer
from bdr.common.wire.control import OtherProtocolError, decode_message, encode_message
from bdr.services.runtime import log, malloc, options, reports, sockets
from bdr.services.runtime.loop import Loop, nothing
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory
from bdr.services.target.checksummer import Checksummer
from bdr.services.target.journal_store import JournalStore
from bdr.services.target.opening import open_store
from bdr.services.target.store import StoreWorker

TICK_MS = 250
KEPT_BYTES = 48 << 20
"""Freed receive buffers that are kept for the next batches."""
ROUND_BATCHES = 16
"""Most batches per round, so that control messages are not delayed."""


class Applier:
    """One process, one volume.

    Args:
        node: from the target's record.
        worker: performs the disk I/O.
        checksummer: computes digests of the device.
        address: to listen on.
        port: for batches; `port` + 1 is for control.
        run_directory: location of the monitor's socket, if any.
        journal: whose usage is reported, if any.
    """

    def __init__(
        self,
        *,
        node: TargetNode,
        worker: StoreWorker,
        checksummer: Checksummer,
        address: str,
        port: int,
        run_directory: RunDirectory | None = None,
        journal: JournalStore | None = None,
    ) -> None:
        self._log = log.logger()
        self._node = node
        self._worker = worker
        self._checksummer = checksummer
        self._bad_messages = 0
        self._journal = journal
        self.loop = Loop()
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT) if run_directory else None,
            stage="applier",
            values=self._values,
        )
        self._data = sockets.data_receiver(self.loop.context)
        self._control = sockets.control_server(self.loop.context)
        self.loop.register(worker.fileno(), self._on_durable)
        self.loop.register(checksummer.fileno(), self._on_digests)
        self.loop.register(self._control, self._on_control)
        for bound in (self._data, self._control):
            self.loop.watch_link(bound, up=nothing, down=nothing)
        sockets.bind(self._data, options.tcp(address, port))
        sockets.bind(self._control, options.tcp(address, port + 1))
        self._log.info(
            "listening",
            data=port,
            control=port + 1,
            condition=node.record.condition.name,
            slot=node.record.slot,
        )

    def run(self) -> None:
        """Runs until SIGTERM, then makes everything accepted durable.

        Raises:
            PermanentError: the device or the state file failed.
        """
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._end_round)
            self._handle(events.Stopping())
        finally:
            self._reporter.close()
            self._checksummer.close()
            self._worker.close()
            self.loop.close()
        if self._worker.error:
            raise self._worker.error

    def _values(self) -> ApplierValues:
        node = self._node
        record, jobs = node.record, node.jobs
        used, size = self._journal.fill if self._journal else (None, None)
        return ApplierValues(
            condition=record.condition,
            has_source=node.has_source,
            stream=record.stream.hex(),
            slot=record.slot,
            epoch=record.epoch,
            since_utc=record.since_utc,
            accepted_utc=record.accepted_utc,
            left_bytes=record.left_bytes,
            device_sectors=record.device_sectors,
            jobs=jobs.durable,
            bytes=jobs.durable_bytes,
            queued_bytes=jobs.queued_bytes,
            queued_s=node.queued_s,
            checksummed_bytes=self._checksummer.hashed_bytes,
            journal_bytes=used,
            journal_size_bytes=size,
            acked_at=node.acked_at,
            bad_messages=self._bad_messages,
            dropped=node.dropped,
            links=self.loop.links,
        )

    # Poll.

    def _on_tick(self, now_at: float) -> None:
        self._handle(events.Tick(now_at, int(time.time())))
        self._reporter.tick(now_at, (self._node.has_source, self._node.record.condition))

    def _on_durable(self) -> None:
        self._worker.drain_wakeup()
        if self._worker.error:
            raise self._worker.error
        self._handle(events.Durable(self._worker.durable))

    def _on_digests(self) -> None:
        for peer, digests in self._checksummer.answers():
            self._handle(events.DigestsMade(peer, digests))

    def _on_control(self) -> None:
        while sockets.is_readable(self._control):
            peer, *frames = self._control.recv_multipart()
            try:
                message = decode_message(frames[-1] if len(frames) == 1 else b"")
            except OtherProtocolError as error:
                self._handle(events.OtherProtocolArrived(peer, error.protocol, error.attempt))
            except WireError as error:
                self._count_bad(error)
            else:
                self._handle(events.MessageArrived(peer, message))

    def _on_data(self) -> None:
        for _ in range(ROUND_BATCHES):
            if not sockets.is_readable(self._data):
                break
            try:
                batch = decode_batch(self._receive_frames())
            except WireError as error:
                self._count_bad(error)
            else:
                self._handle(events.BatchArrived(batch))

    def _end_round(self) -> None:
        self.loop.listen(self._data, self._on_data, is_wanted=self._node.accepts_batches)

    def _receive_frames(self) -> list[Buffer]:
        """One message; excess frames are dropped."""
        frames: list[Buffer] = []
        while True:
            frame = self._data.recv(copy=False)
            if len(frames) <= 3:
                frames.append(frame.buffer)
            if not frame.more:
                return frames

    def _count_bad(self, error: WireError) -> None:
        self._bad_messages += 1
        # Invalid messages may be frequent: log the 1st, 2nd, 4th, 8th ...
        if not self._bad_messages & (self._bad_messages - 1):
            self._log.warning("bad-message", reason=str(error), so_far=self._bad_messages)

    # Handle and perform.

    def _handle(self, event: events.Event) -> None:
        for action in self._node.handle(event):
            self._perform(action)

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Apply(job):
                self._worker.put(job)
            case events.Send(peer, message):
                # A disconnected source is answered when it sends HELLO again.
                with contextlib.suppress(zmq.ZMQError):
                    self._control.send_multipart([peer, encode_message(message)], zmq.NOBLOCK)
            case events.MakeDigests(peer, request):
                self._checksummer.put(peer, request)
            case events.LogEvent(name, facts):
                self._log.info(name, **facts)
            case _:
                assert_never(action)


@options.stage(
    "applier",
    [*options.of(Target, "applier", required=["state"]), options.run_dir(is_required=False)],
)
def main(
    volume: str,
    target: str,
    state: str,
    journal: str | None,
    journal_size: int | None,
    address: str,
    port: int,
    run_dir: str | None,
) -> None:
    """Keeps the target device of VOLUME equal to its source."""

    def build() -> Applier:
        malloc.keep_big_buffers(KEPT_BYTES)
        device = TargetDevice(target)
        record_file = RecordFile(state)
        store, record = open_store(
            journal=journal,
            journal_size=journal_size,
            device=device,
            record_file=record_file,
            volume=volume,
        )
        worker = StoreWorker(store)
        return Applier(
            node=TargetNode(record=record),
            worker=worker,
            checksummer=Checksummer(device, worker),
            address=address,
            port=port,
            run_directory=RunDirectory(run_dir) if run_dir else None,
            journal=store if isinstance(store, JournalStore) else None,
        )

    options.run(build)


if __name__ == "__main__":
    main()
