# SPDX-License-Identifier: GPL-2.0-only
"""The reader: drains the ring, and determines the order of batches.

Poll, handle, perform around `common.source.node`; payload does not pass through this process.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Iterator
from typing import assert_never

import msgpack
import zmq

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.capture.view import RingView
from bdr.common.errors import WireError
from bdr.common.facts import Facts
from bdr.common.host.tables import Source
from bdr.common.source import events
from bdr.common.source.findings import size_of
from bdr.common.source.identity import Findings, SourceRecord
from bdr.common.source.node import SourceNode
from bdr.common.source.order import Waits
from bdr.common.source.rate_limit import ScanRateSettings
from bdr.common.source.settings import SchedulerSettings, SourceSettings
from bdr.common.status.reports import ReaderValues, VerificationValues
from bdr.common.status.states import ConnectionState
from bdr.common.storage.device_identity import identity_of
from bdr.common.storage.source_file import SourceFile
from bdr.common.wire.batch import encode_descriptor
from bdr.common.wire.control import Refused, decode_message, encode_message
from bdr.common.wire.reasons import RefusedReason
from bdr.common.wire.scan import decode_request, encode_answer
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.dialer import Dialer
from bdr.services.runtime.loop import Loop, Socket, nothing
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory
from bdr.services.runtime.workers import Tasks, Workers

TICK_MS = 250
_REQUESTS = ("leases", "requests")
"""Names of the sockets for scanners, and for commands."""


class Reader:
    """One process, one volume.

    Args:
        record: of the source, as it is on disk.
        state: where that stands.
        capture: opened as consumer.
        control: ZeroMQ address of the applier's control socket.
        run_directory: location of the sockets.
        assume_clean: the operator asserts that both devices are equal; applied only if neither has
            been replicated before.
        settings: limits and timeouts.
    """

    def __init__(
        self,
        *,
        record: SourceRecord,
        state: SourceFile,
        capture: Capture,
        control: str,
        run_directory: RunDirectory,
        claim: object,
        assume_clean: bool,
        settings: SourceSettings | None = None,
    ) -> None:
        self._log = log.logger()
        self._capture = capture
        self._claim = claim
        self.node = SourceNode(
            record=record,
            info=capture.info,
            status=capture.status(),
            ring=RingView(capture),
            assume_clean=assume_clean,
            settings=settings,
        )
        self._state = state
        self._saver = Workers(self._save, threads=1, name="state")
        self.loop = Loop()
        self.loop.register(self._saver.fileno(), self._on_saved)
        context = self.loop.context
        self._descriptors = sockets.descriptor_pusher(context)
        self._events = sockets.event_publisher(context)
        self._control = sockets.control_client(context)
        self._requests = {name: sockets.request_server(context) for name in _REQUESTS}
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT),
            stage="reader",
            values=self._values,
        )
        self._watch(self._descriptors, events.SenderLost())
        self.loop.register(self._control, self._on_control)
        sockets.bind(self._descriptors, run_directory.endpoint("descriptors"))
        sockets.bind(self._events, run_directory.endpoint("events"))
        self._watch(self._requests["leases"], events.ScannerLost())
        for name, server in self._requests.items():
            self.loop.register(server, functools.partial(self._on_request, name))
            sockets.bind(server, run_directory.endpoint(name))
        self._dialer = Dialer(self.loop, control)
        self._dialer.dial(
            self._control,
            up=functools.partial(self._handle_one, events.LinkUp()),
            down=functools.partial(self._handle_one, events.LinkDown()),
        )

    def _watch(self, watched: Socket, down: events.Event) -> None:
        """Of a socket within the host."""
        lost = functools.partial(self._handle_one, down)
        self.loop.watch_link(watched, up=nothing, down=lost, is_counted=False)

    def run(self) -> None:
        """Runs until SIGTERM.

        Raises:
            PermanentError: the target refused permanently.
            HostError: the capture is gone, or the state cannot be saved.
        """
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._end_round)
        finally:
            self._reporter.close()
            self._saver.close()
            self.loop.close()

    def _values(self) -> ReaderValues:
        order, scheduler = self.node.order, self.node.scheduler
        last_ack = self.node.last_ack
        if last_ack is not None and last_ack.condition is not order.condition:
            last_ack = None  # superseded: the next acknowledgement has the new one
        phase = ConnectionState[self.node.session.state.name]
        if phase is ConnectionState.STREAMING and not self.node.session.is_answered:
            phase = ConnectionState.GREETING
        return ReaderValues(
            phase=phase,
            # Unknown before the first WELCOME.
            condition=order.condition if order.epoch else None,
            since_utc=last_ack.since_utc if last_ack else 0,
            as_of_utc=last_ack.as_of_utc if last_ack else 0,
            stream=self._capture.info.stream.hex(),
            missed_since_ns=order.times.missed_since_ns,
            refused=self._dialer.trouble or _refused(self.node.session.refused),
            epoch=order.epoch,
            tail=order.tail,
            cursor=order.cursor,
            in_flight=order.window.in_flight,
            scanners=scheduler.scanners,
            scan_compared_bytes=scheduler.compared_bytes,
            scan_repaired_bytes=scheduler.repaired_bytes,
            scan_unreadable_ranges=len(scheduler.regions.unreadable),
            verification=_verification(self.node.memory.findings),
            links=self.loop.links,
        )

    # Poll.

    def _on_tick(self, now_at: float) -> None:
        self._handle(events.Tick(now_at, time.time_ns() // 10**6))
        order = self.node.order
        key = self.node.session.state, order.condition, order.times.missed_since_ns
        self._reporter.tick(now_at, key)

    def _save(
        self, tasks: Tasks[events.SaveGeneration | events.SaveFindings]
    ) -> Iterator[events.Event]:
        for task in tasks:
            match task:
                case events.SaveGeneration():
                    yield events.GenerationSaved(self._state.save_new_generation())
                case events.SaveFindings(findings):
                    self._state.save_findings(findings)
                    yield events.FindingsSaved()

    def _on_saved(self) -> None:
        for saved in self._saver.results():
            self._handle(saved)

    def _on_wakeup(self) -> None:
        self._capture.drain_wakeup()
        self._handle(events.RingWoken())

    def _on_control(self) -> None:
        while sockets.is_readable(self._control):
            frames = self._control.recv_multipart()
            try:
                message = decode_message(frames[-1])
            except WireError as error:
                self._log.warning("bad-message", reason=str(error))
            else:
                self._handle(events.MessageArrived(message))

    def _on_request(self, name: str) -> None:
        server = self._requests[name]
        while sockets.is_readable(server):
            peer, *frames = server.recv_multipart()
            try:
                request = decode_request(frames[-1] if len(frames) == 1 else b"")
            except WireError as error:
                self._log.warning("bad-request", reason=str(error))
            else:
                self._handle(events.RequestArrived(name.encode() + peer, request))

    def _end_round(self) -> None:
        """Dispatches batches to ready senders, then polls for what the node waits for."""
        while sockets.is_writable(self._descriptors) and self._handle(events.SenderReady()):
            pass
        self._handle(events.RoundEnded())
        waits_for = self.node.waits_for
        self.loop.listen(
            self._descriptors, nothing, zmq.POLLOUT, is_wanted=waits_for is Waits.SENDER
        )
        # A slot that may not be sent yet would cause a busy loop; without polling, the status query
        # of each tick is sufficient.
        self.loop.listen(self._capture.fileno(), self._on_wakeup, is_wanted=waits_for is Waits.RING)

    # Handle and perform.

    def _handle_one(self, event: events.Event) -> None:
        self._handle(event)

    def _handle(self, event: events.Event) -> bool:
        """Passes an event to the node and performs its actions; returns whether there were any."""
        waiting: deque[events.Event] = deque([event])
        has_acted = False
        while waiting:
            for action in self.node.handle(waiting.popleft()):
                has_acted = True
                if isinstance(action, events.QueryStatus):
                    waiting.append(events.StatusArrived(self._capture.status()))
                else:
                    self._perform(action)
        return has_acted

    def _perform(self, action: events.Action) -> None:  # noqa: PLR0912 - one line a kind
        match action:
            case events.Dispatch(header):
                self._descriptors.send(encode_descriptor(header))
            case events.Release(tail, cursor, acknowledged, counted):
                self._capture.release(
                    tail=tail, cursor=cursor, acknowledged=acknowledged, counted=counted
                )
            case events.Send(message):
                # Not connected: the node repeats messages that matter.
                with contextlib.suppress(zmq.Again):
                    self._control.send(encode_message(message), zmq.NOBLOCK)
            case events.Reply(peer, answer):
                name = next(name for name in _REQUESTS if peer.startswith(name.encode()))
                frames = [peer[len(name) :], encode_answer(answer)]
                self._requests[name].send_multipart(frames, zmq.NOBLOCK)
            case events.SaveGeneration() | events.SaveFindings():
                self._saver.put(action)
            case events.SaveAssumption(target):
                self._state.save_assumption(target)
            case events.Resume():
                self._log.info("resumed", slot=self._capture.resume())
            case events.MarkRegions(first, count):
                self._capture.mark_bitmap(first=first, count=count)
            case events.ClearRegions(first, count):
                self._capture.clear_bitmap(first=first, count=count)
            case events.Announce(name, facts):
                self._announce(name, facts)
            case events.Stop(error):
                raise error
            case events.QueryStatus():
                pass  # answered by an event
            case _:
                assert_never(action)

    def _announce(self, name: str, facts: Facts) -> None:
        # What an operator must learn of is also logged with --noprint.
        is_warning = name == "assume-clean" or (name == "verified" and facts["unrepaired_bytes"])
        write = self._log.warning if is_warning else self._log.info
        write(name, **facts)
        self._events.send_multipart([name.encode(), msgpack.packb(facts)])


def _verification(findings: Findings) -> VerificationValues:
    return VerificationValues(
        verified_utc=findings.verified_utc,
        verified_bytes=findings.compared_bytes,
        ignored_bytes=findings.ignored_bytes,
        differing_bytes=findings.differing_bytes,
        unrepaired_bytes=size_of(findings.unrepaired),
    )


def _refused(refused: Refused | None) -> str | None:
    """For people; a target that is busy will take this source soon."""
    if refused is None or refused.reason is RefusedReason.BUSY:
        return None
    return f"the target refuses this source: {refused.text}"


@options.stage("reader", [options.run_dir(), *options.of(Source, "reader", required=["state"])])
def main(
    volume: str,
    chardev: str,
    state: str,
    address: str,
    port: int,
    run_dir: str,
    assume_clean: bool,
    scan_rate: int | None,
) -> None:
    """Drains the ring of VOLUME, and dispatches batches to its senders."""

    def build() -> Reader:
        run_directory = RunDirectory(run_dir)
        rate_limit = ScanRateSettings(rate=scan_rate)
        # A second reader is refused by what it would share with the first, in this order.
        claim = run_directory.claim("reader")
        capture = open_capture(chardev, Role.CONSUMER)
        file = SourceFile(state)
        record = file.begin(
            volume=volume,
            device_sectors=capture.info.device_sectors,
            device=identity_of(capture.info.underlying),
        )
        return Reader(
            record=record,
            state=file,
            capture=capture,
            control=options.tcp(address, port + 1),
            run_directory=run_directory,
            claim=claim,
            assume_clean=assume_clean,
            settings=SourceSettings(scheduler=SchedulerSettings(rate_limit=rate_limit)),
        )

    options.run(build, stage="reader", run_dir=run_dir)


if __name__ == "__main__":
    main()
