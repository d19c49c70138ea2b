# SPDX-License-Identifier: GPL-2.0-only
"""The applier: receives batches, and applies them to the target device.

Of a device that was promoted it opens nothing, and of one that is not the replica's it keeps
nothing open: it listens, so that a source, and the status, learn why it is refused.

Poll, handle, perform around `common.target.node`; disk work runs in the thread of a
`StoreWorker`, checksums in those of a `Checksummer`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import assert_never

import zmq

from bdr.common.errors import WireError, WrongDeviceError
from bdr.common.host.tables import Target
from bdr.common.status.reports import ApplierValues
from bdr.common.storage.blank import is_blank
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target import events
from bdr.common.target.hook import HookSettings
from bdr.common.target.node import TargetNode
from bdr.common.target.record import NO_SOURCE
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.batch import decode_batch
from bdr.common.wire.codec import Buffer
from bdr.common.wire.control import (
    Hello,
    OtherProtocolError,
    decode_message,
    encode_message,
)
from bdr.services.runtime import log, malloc, options, reports, sockets
from bdr.services.runtime.loop import Loop, nothing
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory
from bdr.services.target.checksummer import Checksummer
from bdr.services.target.hook import Hook
from bdr.services.target.journal_store import JournalStore
from bdr.services.target.opening import open_store
from bdr.services.target.store import StoreWorker

TICK_MS = 250
KEPT_BYTES = 48 << 20
"""Freed receive buffers that are kept for the next batches."""
ROUND_BATCHES = 16
"""Most batches per round, so that control messages are not delayed."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What works on the device.

    Attributes:
        worker: does the jobs.
        checksummer: makes digests of what the device holds.
        journal: whose fill is reported, if there is one.
        hook: runs before a usable replica is changed to something else, if there is one.
    """

    worker: StoreWorker
    checksummer: Checksummer
    journal: JournalStore | None
    hook: Hook | None = None


class Applier:
    """One process, one volume.

    Args:
        node: from the target's record.
        disk: None for a device that was promoted, or is not the replica's.
        address: to listen on.
        port: for batches; `port` + 1 is for control.
        run_directory: where the monitor's socket is, if there is one.
    """

    def __init__(
        self,
        *,
        node: TargetNode,
        disk: Disk | None,
        address: str,
        port: int,
        run_directory: RunDirectory | None = None,
    ) -> None:
        self._log = log.logger()
        self._node = node
        self._disk = disk
        self._bad_messages = 0
        self._received_bytes = 0
        self.loop = Loop()
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT) if run_directory else None,
            stage="applier",
            values=self._values,
        )
        self._data = sockets.data_receiver(self.loop.context)
        self._control = sockets.control_server(self.loop.context)
        if disk is not None:
            self.loop.register(disk.worker.fileno(), self._on_durable)
            self.loop.register(disk.checksummer.fileno(), self._on_digests)
            if disk.hook is not None:
                self.loop.register(disk.hook.fileno(), self._on_hook_ended)
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
            HostError: the device or the state file failed.
        """
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._end_round)
            self._handle(events.Stopping())
        finally:
            self._reporter.close()
            if self._disk is not None:
                if self._disk.hook is not None:
                    self._disk.hook.close()
                self._disk.checksummer.close()
                self._disk.worker.close()
            self.loop.close()
        if self._disk is not None and self._disk.worker.error:
            raise self._disk.worker.error

    def _values(self) -> ApplierValues:
        node = self._node
        record, jobs = node.record, node.jobs
        disk = self._disk
        used, size = disk.journal.fill if disk and disk.journal else (None, None)
        return ApplierValues(
            condition=record.condition,
            has_source=node.has_source,
            stream=record.stream.hex(),
            slot=record.slot,
            epoch=record.epoch,
            since_utc=record.since_utc,
            as_of_utc=node.age.as_of_utc,
            level_at=node.age.level_at,
            promoted_utc=record.promoted_utc,
            rival=_rival(node.rival),
            wrong_device=node.wrong_device,
            left_bytes=record.left_bytes,
            device_sectors=record.device_sectors,
            source_sectors=record.source_sectors,
            jobs=jobs.durable,
            bytes=jobs.durable_bytes,
            queued_bytes=jobs.queued_bytes,
            queued_s=node.queued_s,
            checksummed_bytes=disk.checksummer.hashed_bytes if disk else 0,
            journal_bytes=used,
            journal_size_bytes=size,
            held_s=node.hook.held_s,
            hook_failures=node.hook.failures,
            acked_at=node.acked_at,
            bad_messages=self._bad_messages,
            dropped=node.dropped,
            links=self.loop.links,
        )

    # Poll.

    def _on_tick(self, now_at: float) -> None:
        self._handle(events.Tick(now_at, int(time.time())))
        received_bytes = self.loop.connections.received_bytes(self._data)
        if received_bytes > self._received_bytes:
            self._received_bytes = received_bytes
            self._handle(events.BytesArrived())
        node = self._node
        # A word on the age is reported at once: it is at most a second old.
        key = node.has_source, node.record.condition, node.age.words
        self._reporter.tick(now_at, key)

    def _on_durable(self) -> None:
        assert self._disk is not None
        worker = self._disk.worker
        worker.drain_wakeup()
        if worker.error:
            raise worker.error
        self._handle(events.Durable(worker.durable))

    def _on_digests(self) -> None:
        assert self._disk is not None
        for peer, digests in self._disk.checksummer.answers():
            self._handle(events.DigestsMade(peer, digests))

    def _on_hook_ended(self) -> None:
        assert self._disk is not None
        assert self._disk.hook is not None
        for ended in self._disk.hook.ended():
            self._handle(ended)

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
            if not self._node.accepts_batches or not sockets.is_readable(self._data):
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
                assert self._disk is not None
                self._disk.worker.put(job)
            case events.Send(peer, message):
                try:
                    self._control.send_multipart([peer, encode_message(message)], zmq.NOBLOCK)
                except zmq.ZMQError as error:
                    # The message is repeated for its next HELLO.
                    if error.errno == zmq.EHOSTUNREACH:
                        self._handle(events.PeerLost(peer))
            case events.MakeDigests(peer, request):
                assert self._disk is not None
                self._disk.checksummer.put(peer, request)
            case events.RunHook():
                assert self._disk is not None
                assert self._disk.hook is not None
                self._disk.hook.put(action)
            case events.LogEvent(name, facts, is_warning):
                (self._log.warning if is_warning else self._log.info)(name, **facts)
            case _:
                assert_never(action)


def _rival(hello: Hello | None) -> str | None:
    """For people."""
    if hello is None:
        return None
    return (
        f"two histories: source {hello.source.hex()} at generation {hello.generations[0].hex()}, "
        f"slots {hello.tail} to {hello.head} of stream {hello.stream.hex()}, is not what this "
        "replica has followed; `bdr demote --give-up` gives up what only this replica has"
    )


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
    before_resync: list[str] | None,
    before_resync_seconds: float,
    before_resync_failure: str,
    address: str,
    port: int,
    run_dir: str | None,
) -> None:
    """Keeps the target device of VOLUME equal to its source."""

    def build() -> Applier:
        malloc.keep_big_buffers(KEPT_BYTES)
        record_file = RecordFile(state)
        record, disk, is_free, wrong = record_file.peek(volume=volume), None, False, None
        if record is None or not record.promoted_utc:
            device = TargetDevice(target)
            try:
                store, record = open_store(
                    journal=journal,
                    journal_size=journal_size,
                    device=device,
                    record_file=record_file,
                    volume=volume,
                )
            except WrongDeviceError as error:
                device.close()
                if record is None:
                    raise
                wrong = str(error)
                log.logger().error("wrong-device", reason=wrong)
            else:
                is_free = record.source == NO_SOURCE and is_blank(device)
                worker = StoreWorker(store)
                hook = None
                if before_resync is not None:
                    hook = Hook(
                        before_resync, timeout_s=before_resync_seconds, device=device, worker=worker
                    )
                disk = Disk(
                    worker=worker,
                    checksummer=Checksummer(device, worker),
                    journal=store if isinstance(store, JournalStore) else None,
                    hook=hook,
                )
        hooks = HookSettings(is_required=before_resync_failure == "hold")
        return Applier(
            node=TargetNode(
                record=record,
                is_blank=is_free,
                wrong_device=wrong,
                nonce=1 + secrets.randbits(48),
                stride=secrets.randbits(40),
                settings=TargetSettings(before_resync=hooks if before_resync else None),
            ),
            disk=disk,
            address=address,
            port=port,
            run_directory=RunDirectory(run_dir) if run_dir else None,
        )

    options.run(build, stage="applier", run_dir=run_dir)


if __name__ == "__main__":
    main()
