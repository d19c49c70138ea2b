# SPDX-License-Identifier: GPL-2.0-only
"""The applier: receives batches, and makes the target device follow its source.

A thin loop around `common.target.replica`; disk work runs in the thread of a `StoreWorker`.
"""

from __future__ import annotations

import contextlib
import time
from typing import assert_never

import click
import zmq

from bdr.common.errors import WireError
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target import replica
from bdr.common.target.job import Apply
from bdr.common.target.replica import Action, Replica
from bdr.common.wire import control as wire
from bdr.services.runtime import log, malloc, options, reports, sockets
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory
from bdr.services.target.checksummer import Checksummer
from bdr.services.target.journal_store import JournalStore
from bdr.services.target.options import journal, open_store
from bdr.services.target.store import StoreWorker

TICK_MS = 250
QUEUED_BYTES_MAX = 96 << 20
"""More than any window; beyond it, a source that ignores its window is not read."""
KEPT_BYTES = 48 << 20
"""Freed receive buffers that are kept for the next batches."""
QUEUED_JOBS_MAX = 1024
"""The same for jobs, some of which have no bytes."""
ROUND_BATCHES = 16
"""Batches taken before control messages get their turn."""


class Applier:
    """One process, one volume.

    Args:
        replica_: the state machine, from the target's record.
        worker: does the disk work.
        checksummer: tells scanners what the device holds.
        address: to listen on.
        port: for batches; `port` + 1 is for control.
        run_directory: where the monitor's socket is, if there is one.
        journal: whose fill is reported, if there is one.
    """

    def __init__(
        self,
        *,
        replica_: Replica,
        worker: StoreWorker,
        checksummer: Checksummer,
        address: str,
        port: int,
        run_directory: RunDirectory | None = None,
        journal: JournalStore | None = None,
    ) -> None:
        self._log = log.logger()
        self._replica = replica_
        self._worker = worker
        self._checksummer = checksummer
        self._queued: dict[int, tuple[int, float]] = {}
        """Job, in order, to its bytes and when it came, in monotonic seconds."""
        self._queued_bytes = 0
        self._bad_messages = 0
        self._durable_jobs = 0
        self._journal = journal
        self._durable_bytes = 0
        self._acked_s: float | None = None
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
        self.loop.register(checksummer.fileno(), self._on_checksums)
        self.loop.register(self._control, self._on_control)
        self.loop.register(self._data, self._on_data)
        for bound in (self._data, self._control):
            self.loop.watch_link(bound, up=_nothing, down=_nothing)
        sockets.bind(self._data, options.tcp(address, port))
        sockets.bind(self._control, options.tcp(address, port + 1))
        self._log.info(
            "listening",
            data=port,
            control=port + 1,
            condition=replica_.record.condition.name,
            slot=replica_.record.slot,
        )

    def run(self) -> None:
        """Runs until SIGTERM, then makes what was accepted durable.

        Raises:
            PermanentError: the device or the state file failed.
        """
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=lambda: None)
            self._worker.put(self._replica.closing_job())
        finally:
            self._reporter.close()
            self._checksummer.close()
            self._worker.close()
            self.loop.close()
        if self._worker.error:
            raise self._worker.error

    def _on_tick(self, now_s: float) -> None:
        self._tell(replica.Tick(now_s, int(time.time())))
        self._reporter.tick(now_s, (self._replica.is_fed, self._replica.record.condition))

    def _values(self) -> reports.Values:
        record = self._replica.record
        used, size = self._journal.fill if self._journal else (None, None)
        oldest_s = next((came_s for _, came_s in self._queued.values()), None)
        return {
            "condition": record.condition.name,
            "is_fed": self._replica.is_fed,
            "stream": record.stream.hex(),
            "slot": record.slot,
            "epoch": record.epoch,
            "since_s": record.since_s,
            "at_s": record.at_s,
            "left_bytes": record.left_bytes,
            "device_sectors": record.device_sectors,
            "jobs": self._durable_jobs,
            "bytes": self._durable_bytes,
            "queued_bytes": self._queued_bytes,
            "queued_s": time.monotonic() - oldest_s if oldest_s is not None else 0.0,
            "checksummed_bytes": self._checksummer.hashed_bytes,
            "journal_bytes": used,
            "journal_size_bytes": size,
            "acked_s": self._acked_s,
            "bad_messages": self._bad_messages,
            **{f"dropped_{why}": count for why, count in self._replica.dropped.items()},
            **self.loop.links,
        }

    def _on_durable(self) -> None:
        self._worker.drain_wakeup()
        if self._worker.error:
            raise self._worker.error
        durable = self._worker.durable
        for job in [job for job in self._queued if job <= durable]:
            done_bytes, _ = self._queued.pop(job)
            self._queued_bytes -= done_bytes
            self._durable_bytes += done_bytes
            self._durable_jobs += 1
        if not self._is_queue_full():
            self.loop.register(self._data, self._on_data)
        self._tell(replica.Durable(durable))
        self._checksummer.on_durable(durable)

    def _on_control(self) -> None:
        while sockets.is_readable(self._control):
            peer, *frames = self._control.recv_multipart()
            try:
                message = wire.decode_message(frames[-1] if len(frames) == 1 else b"")
            except wire.OtherProtocolError as error:
                self._tell(replica.OtherProtocolArrived(peer, error.protocol, error.attempt))
            except WireError as error:
                self._count_bad(error)
            else:
                if isinstance(message, wire.Checksums):
                    self._on_checksums_asked(peer, message)
                else:
                    self._tell(replica.MessageArrived(peer, message))

    def _on_checksums_asked(self, peer: bytes, message: wire.Checksums) -> None:
        machine = self._replica
        if machine.serves(message.epoch):
            refused = self._checksummer.ask(peer, message, last_job=machine.last_job)
            self._checksummer.on_durable(machine.durable_job)
        else:
            refused = "the session of this epoch is not open"
        if refused is not None:
            self._send(peer, wire.Digests(message.request, b"", refused))

    def _on_checksums(self) -> None:
        for peer, answer in self._checksummer.answers():
            self._send(peer, answer)

    def _on_data(self) -> None:
        for _ in range(ROUND_BATCHES):
            if not sockets.is_readable(self._data):
                break
            try:
                batch = wire.decode_batch(self._receive_frames())
            except WireError as error:
                self._count_bad(error)
                continue
            self._tell(replica.BatchArrived(batch))
        if self._is_queue_full():
            self.loop.unregister(self._data)

    def _is_queue_full(self) -> bool:
        return self._queued_bytes > QUEUED_BYTES_MAX or len(self._queued) > QUEUED_JOBS_MAX

    def _receive_frames(self) -> list[wire.Buffer]:
        """One message; of a longer one than a batch only so much is kept."""
        frames: list[wire.Buffer] = []
        while True:
            frame = self._data.recv(copy=False)
            if len(frames) <= 3:
                frames.append(frame.buffer)
            if not frame.more:
                return frames

    def _count_bad(self, error: WireError) -> None:
        self._bad_messages += 1
        # The sender of junk may send much of it: log the 1st, 2nd, 4th, 8th ...
        if not self._bad_messages & (self._bad_messages - 1):
            self._log.warning("bad-message", reason=str(error), so_far=self._bad_messages)

    def _tell(self, event: replica.Event) -> None:
        for action in self._replica.handle(event):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Apply():
                self._queued[action.job] = (len(action.payload), time.monotonic())
                self._queued_bytes += len(action.payload)
                self._worker.put(action)
            case replica.Send(peer, message):
                if isinstance(message, wire.Ack):
                    self._acked_s = time.monotonic()
                self._send(peer, message)
            case replica.Note(topic, facts):
                self._log.info(topic, **facts)
            case replica.Stop(error):
                raise error
            case _:
                assert_never(action)

    def _send(self, peer: bytes, message: wire.Message) -> None:
        # A source that went away is told when it greets again.
        with contextlib.suppress(zmq.ZMQError):
            self._control.send_multipart([peer, wire.encode_message(message)], zmq.NOBLOCK)


def _nothing() -> None:
    """What happens on the sockets is only counted."""


@click.command()
@options.stage("applier")
@click.option(
    "--target", required=True, type=click.Path(), help="The backup device, or a file of its size."
)
@click.option(
    "--state",
    required=True,
    type=click.Path(dir_okay=False),
    help="File that remembers the replica's place in its source's stream.",
)
@journal
@click.option("--address", default="*", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8437,
    show_default=True,
    type=click.IntRange(1, 65534),
    help="Port for batches; the one above it is for control.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    help="Directory of this volume's sockets on this host, for reports to its monitor.",
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
            replica_=Replica(record=record),
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
