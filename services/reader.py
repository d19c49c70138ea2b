# SPDX-License-Identifier: GPL-2.0-only
"""The reader: drains the ring, and alone decides order.

A thin loop around `common.source.sequencer`: it looks at the ring, tells the sequencer
what happened, and does what the sequencer says. Payload never passes through it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import assert_never

import click
import msgpack
import zmq

from bdr.common.capture.api import Capture, Role
from bdr.common.capture.opening import open_capture
from bdr.common.errors import WireError
from bdr.common.ring import layout
from bdr.common.ring.slots import published_count, slots_at
from bdr.common.source import scheduler, sequencer
from bdr.common.source.rate_limit import PaceSettings
from bdr.common.source.scheduler import OfficeSettings, TicketOffice
from bdr.common.source.sequencer import Action, Sequencer, SequencerSettings
from bdr.common.wire import control as wire
from bdr.services.runtime import log, options, reports, sockets
from bdr.services.runtime.loop import Loop
from bdr.services.runtime.reports import Reporter
from bdr.services.runtime.sockets import RunDirectory

TICK_MS = 250
_TICKETS = ("tickets", "requests")
"""Names of the sockets for scanners, and for commands that a user runs."""


class Reader:
    """One process, one volume.

    Args:
        volume: its name on both sides.
        capture: opened as consumer.
        control: ZeroMQ address of the applier's control socket.
        run_directory: where the descriptor and event sockets are bound.
        assume_clean: both devices are equal by the user's word, if neither has been
            replicated before.
        settings: the sequencer's limits.
        scan: limits of what scanners get.
    """

    def __init__(
        self,
        *,
        volume: str,
        capture: Capture,
        control: str,
        run_directory: RunDirectory,
        assume_clean: bool,
        settings: SequencerSettings | None = None,
        scan: OfficeSettings | None = None,
    ) -> None:
        self._log = log.logger()
        self._capture = capture
        self._claim = run_directory.claim("reader")
        self.sequencer = Sequencer(
            volume=volume,
            info=capture.info,
            status=capture.status(),
            assume_clean=assume_clean,
            settings=settings,
        )
        self.office = TicketOffice(
            info=capture.info,
            machine=self.sequencer,
            read_bits=lambda bitmap, first, count: capture.read_bitmap(
                bitmap, first=first, count=count
            ),
            settings=scan,
        )
        self.loop = Loop()
        context = self.loop.context
        self._descriptors = sockets.descriptor_pusher(context)
        self._events = sockets.event_publisher(context)
        self._control = sockets.control_client(context)
        self._offices = {name: sockets.ticket_server(context) for name in _TICKETS}
        self._armed: tuple[int, int] | None = None
        """The (tail, cursor) that the capture was told last, until it has woken us."""
        self._must_release = False
        self._look_at_s = 0.0
        self._announced: dict[str, int] = {}
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(reports.ENDPOINT),
            stage="reader",
            values=self._values,
        )

        self.loop.watch_link(
            self._descriptors,
            up=_nothing,
            down=lambda: self._tell(sequencer.SenderLost()),
            is_counted=False,
        )
        self.loop.watch_link(
            self._control,
            up=lambda: self._tell(sequencer.LinkUp()),
            down=lambda: self._tell(sequencer.LinkDown()),
        )
        self.loop.register(self._control, self._on_control)
        sockets.bind(self._descriptors, run_directory.endpoint("descriptors"))
        sockets.bind(self._events, run_directory.endpoint("events"))
        self.loop.watch_link(
            self._offices["tickets"],
            up=_nothing,
            down=self.office.scanner_lost,
            is_counted=False,
        )
        for name, server in self._offices.items():
            self.loop.register(server, functools.partial(self._on_request, name))
            sockets.bind(server, run_directory.endpoint(name))
        self._control.connect(control)

    def run(self) -> None:
        """Runs until SIGTERM.

        Raises:
            PermanentError: the capture is gone, or the target refused for good.
        """
        try:
            self.loop.run(tick=self._on_tick, tick_ms=TICK_MS, after=self._pump)
        finally:
            self._reporter.close()
            self.loop.close()

    def _on_tick(self, now_s: float) -> None:
        self._tell(sequencer.Tick(now_s))
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + TICK_MS / 1000
            self._look()
        self._reporter.tick(now_s, (self.sequencer.phase, self.sequencer.condition))

    def _values(self) -> reports.Values:
        machine = self.sequencer
        standing = machine.standing
        if standing is not None and standing.condition is not machine.condition:
            standing = None  # the target is about to say the new one
        return {
            "phase": machine.phase.name,
            # Before the first WELCOME nobody knows.
            "condition": machine.condition.name if machine.epoch else None,
            "since_s": standing.since_s if standing else 0,
            "at_s": standing.at_s if standing else 0,
            "epoch": machine.epoch,
            "tail": machine.tail,
            "cursor": machine.cursor,
            "in_flight": machine.in_flight,
            "scanners": self.office.scanners,
            "scan_compared_bytes": self.office.compared_bytes,
            "scan_repaired_bytes": self.office.repaired_bytes,
            "scan_unreadable_ranges": len(self.office.unreadable),
            **{f"announced_{topic}": count for topic, count in self._announced.items()},
            **self.loop.links,
        }

    def _on_wakeup(self) -> None:
        self._capture.drain_wakeup()
        self._armed = None
        cursor = self.sequencer.cursor
        if not published_count(self._capture.headers, cursor=cursor, limit=layout.WRITE_SLOTS_MAX):
            self._look()  # woken without a slot: the mode changed

    def _on_control(self) -> None:
        while sockets.is_readable(self._control):
            frames = self._control.recv_multipart()
            try:
                message = wire.decode_message(frames[-1])
            except WireError as error:
                self._log.warning("bad-message", reason=str(error))
                continue
            self._tell(sequencer.MessageArrived(message))

    def _on_request(self, name: str) -> None:
        server = self._offices[name]
        while sockets.is_readable(server):
            peer, *frames = server.recv_multipart()
            try:
                request = scheduler.decode_request(frames[-1] if len(frames) == 1 else b"")
                if not isinstance(request, scheduler.Ask | scheduler.Commit):
                    # What a user asks about is the present.
                    self._look()
                actions = self.office.request(name.encode() + peer, request)
            except WireError as error:
                self._log.warning("bad-request", reason=str(error))
                continue
            self._perform_scan(actions)

    def _scan(self) -> None:
        """Gives scanners what they wait for."""
        must_go_on = True
        while must_go_on:
            actions = self.office.step(time.monotonic())
            must_go_on = any(
                isinstance(action, scheduler.Tell | scheduler.Clear) for action in actions
            )
            self._perform_scan(actions)

    def _perform_scan(self, actions: list[scheduler.Action]) -> None:
        must_look = False
        for action in actions:
            match action:
                case scheduler.Reply(peer, answer):
                    name = next(name for name in _TICKETS if peer.startswith(name.encode()))
                    frames = [peer[len(name) :], scheduler.encode(answer)]
                    self._offices[name].send_multipart(frames, zmq.NOBLOCK)
                case scheduler.Clear(first, count):
                    self._capture.clear_bitmap(first=first, count=count)
                    must_look = True
                case scheduler.MarkRegions(first, count):
                    self._capture.mark_bitmap(first=first, count=count)
                    must_look = True
                case scheduler.Tell(event):
                    self._tell(event)
                case _:
                    assert_never(action)
        if must_look:
            self._look()

    def _look(self) -> None:
        self._tell(sequencer.CaptureSeen(self._capture.status()))

    def _pump(self) -> None:
        """Dispatches what is published, as far as window and senders allow; then waits."""
        headers, machine = self._capture.headers, self.sequencer
        self._scan()
        blocked = False
        while True:
            limit = machine.dispatch_limit
            published = published_count(headers, cursor=machine.cursor, limit=limit) if limit else 0
            if not published and (limit or not machine.has_mark_due):
                break
            if not sockets.is_writable(self._descriptors):
                blocked = True
                break
            self._tell(sequencer.SendersReady(published))
        self.loop.listen(self._descriptors, _nothing, zmq.POLLOUT, is_wanted=blocked)
        self._arm(waits=bool(limit) and not blocked)

    def _arm(self, *, waits: bool) -> None:
        """Releases what may be, and asks to be woken for the next slot if nothing else will."""
        # A slot that may not go yet would wake us for ever; without, a look every `TICK_MS`
        # finds what else there is to know.
        self.loop.listen(self._capture.fileno(), self._on_wakeup, is_wanted=waits)
        wanted = (self.sequencer.tail, self.sequencer.cursor)
        if wanted == self._armed or not (waits or self._must_release):
            return
        self._capture.release(tail=wanted[0], cursor=wanted[1])
        self._armed = wanted
        self._must_release = False

    def _tell(self, event: sequencer.Event) -> None:
        for action in self.sequencer.handle(event):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case sequencer.Dispatch(header):
                self._descriptors.send(wire.encode_descriptor(header))
                if self.office.is_noting and header.count:
                    self._note(header)
            case sequencer.Release():
                self._must_release = True
            case sequencer.Send(message):
                self._send(message)
            case sequencer.Resume():
                slot = self._capture.resume()
                self._log.info("resumed", slot=slot)
                self._look()
            case sequencer.MarkAll():
                self._capture.mark_bitmap(first=0, count=self._capture.info.regions)
                self._look()
            case sequencer.Number():
                pass  # the scanner was told by the office
            case sequencer.Announce(topic, facts):
                self._announce(topic, facts)
            case sequencer.Stop(error):
                raise error
            case _:
                assert_never(action)

    def _note(self, header: wire.BatchHeader) -> None:
        first, count = header.first, header.count
        slots = slots_at(self._capture.headers, first=first, count=count)
        self.office.dispatched(slots, self._capture.payload(first, count))

    def _send(self, message: wire.Message) -> None:
        # Not connected: the sequencer repeats what matters.
        with contextlib.suppress(zmq.Again):
            self._control.send(wire.encode_message(message), zmq.NOBLOCK)

    def _announce(self, topic: str, facts: dict[str, int | str]) -> None:
        # The user's own word: also to be seen with --noprint.
        told = self._log.warning if topic == "assume-clean" else self._log.info
        told(topic, **facts)
        self._announced[topic] = self._announced.get(topic, 0) + 1
        self._events.send_multipart([topic.encode(), msgpack.packb(facts)])


def _nothing() -> None:
    """The round's `after` does the work."""


@click.command()
@options.source_stage("reader")
@options.assume_clean
@click.option(
    "--scan-rate",
    type=click.IntRange(1),
    help="Bytes of the device a second that scanners may compare; without it no limit.",
)
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
    assume_clean: bool,
    scan_rate: int | None,
) -> None:
    """Drains the ring of VOLUME and has its senders ship it to the target."""

    def build() -> Reader:
        run_directory = RunDirectory(run_dir)
        return Reader(
            volume=volume,
            capture=open_capture(chardev, Role.CONSUMER),
            control=options.tcp(address, port + 1),
            run_directory=run_directory,
            assume_clean=assume_clean,
            scan=OfficeSettings(pace=PaceSettings(rate=scan_rate)),
        )

    options.run(build)


if __name__ == "__main__":
    main()
