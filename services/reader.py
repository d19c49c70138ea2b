# SPDX-License-Identifier: GPL-2.0-only
"""The reader: drains the ring, and alone decides order.

A thin loop around `common.sequencer`: it looks at the ring, tells the sequencer
what happened, and does what the sequencer says. Payload never passes through it.
"""

from __future__ import annotations

import contextlib
from typing import assert_never

import click
import msgpack
import zmq

from common import ring, sequencer, wire
from common.capture import Capture, Role, open_capture
from common.errors import WireError
from common.sequencer import Action, Sequencer, SequencerSettings
from services import log, metrics, options, sockets
from services.loop import Loop
from services.metrics import Reporter
from services.sockets import RunDirectory

TICK_MS = 250


class Reader:
    """One process, one volume.

    Args:
        volume: its name on both sides.
        capture: opened as consumer.
        control: ZeroMQ address of the applier's control socket.
        run_directory: where the descriptor and event sockets are bound.
        assume_clean: both devices are equal by the user's word.
        settings: the sequencer's limits.
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
        self.loop = Loop()
        context = self.loop.context
        self._descriptors = sockets.descriptor_pusher(context)
        self._events = sockets.event_publisher(context)
        self._control = sockets.control_client(context)
        self._armed: tuple[int, int] | None = None
        """The (tail, cursor) that the capture was told last, until it has woken us."""
        self._must_release = False
        self._look_at_s = 0.0
        self._waits_for_sender = False
        self._announced: dict[str, int] = {}
        self._reporter = Reporter(
            self.loop,
            run_directory.endpoint(metrics.ENDPOINT),
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
        self.loop.register(capture.fileno(), self._on_wakeup)
        sockets.bind(self._descriptors, run_directory.endpoint("descriptors"))
        sockets.bind(self._events, run_directory.endpoint("events"))
        self._control.connect(control)
        if assume_clean:
            self._log.warning(
                "assume-clean", meaning="source and target are taken to be equal, unchecked"
            )

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

    def _values(self) -> metrics.Values:
        machine = self.sequencer
        return {
            "phase": machine.phase.name,
            "condition": machine.condition.name,
            "epoch": machine.epoch,
            "tail": machine.tail,
            "cursor": machine.cursor,
            "in_flight": machine.in_flight,
            **{f"announced_{topic}": count for topic, count in self._announced.items()},
            **self.loop.links,
        }

    def _on_wakeup(self) -> None:
        self._capture.drain_wakeup()
        self._armed = None
        cursor = self.sequencer.cursor
        if not ring.published_count(
            self._capture.headers, cursor=cursor, limit=ring.WRITE_SLOTS_MAX
        ):
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

    def _look(self) -> None:
        self._tell(sequencer.CaptureSeen(self._capture.status()))

    def _pump(self) -> None:
        """Dispatches what is published, as far as window and senders allow; then waits."""
        headers, machine = self._capture.headers, self.sequencer
        blocked = False
        while True:
            limit = machine.dispatch_limit
            published = (
                ring.published_count(headers, cursor=machine.cursor, limit=limit) if limit else 0
            )
            if not published and (limit or not machine.has_mark_due):
                break
            if not sockets.is_writable(self._descriptors):
                blocked = True
                break
            self._tell(sequencer.SendersReady(published))
        self._wait_for_sender(blocked)
        self._arm(waits=bool(limit) and not blocked)

    def _arm(self, *, waits: bool) -> None:
        """Releases what may be, and asks to be woken for the next slot if nothing else will."""
        wanted = (self.sequencer.tail, self.sequencer.cursor)
        if wanted == self._armed or not (waits or self._must_release):
            return
        self._capture.release(tail=wanted[0], cursor=wanted[1])
        self._armed = wanted
        self._must_release = False

    def _wait_for_sender(self, waits: bool) -> None:
        if waits != self._waits_for_sender:
            self._waits_for_sender = waits
            if waits:
                self.loop.register(self._descriptors, _nothing, zmq.POLLOUT)
            else:
                self.loop.unregister(self._descriptors)

    def _tell(self, event: sequencer.Event) -> None:
        for action in self.sequencer.handle(event):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case sequencer.Dispatch(header):
                self._descriptors.send(wire.encode_descriptor(header))
            case sequencer.Release():
                self._must_release = True
            case sequencer.Send(message):
                self._send(message)
            case sequencer.Resume():
                slot = self._capture.resume()
                self._log.info("resumed", slot=slot)
                self._look()
            case sequencer.Announce(topic, facts):
                self._announce(topic, facts)
            case sequencer.Stop(error):
                raise error
            case _:
                assert_never(action)

    def _send(self, message: wire.Message) -> None:
        # Not connected: the sequencer repeats what matters.
        with contextlib.suppress(zmq.Again):
            self._control.send(wire.encode_message(message), zmq.NOBLOCK)

    def _announce(self, topic: str, facts: dict[str, int | str]) -> None:
        self._log.info(topic, **facts)
        self._announced[topic] = self._announced.get(topic, 0) + 1
        self._events.send_multipart([topic.encode(), msgpack.packb(facts)])


def _nothing() -> None:
    """The round's `after` does the work."""


@click.command()
@options.volume
@options.chardev
@options.target_address
@options.run_dir
@click.option(
    "--noreplication",
    "--no-replication",
    "--assume-clean",
    "assume_clean",
    is_flag=True,
    help="Source and target are equal already: no initial scan.",
)
@options.verbosity
def main(
    volume: str,
    chardev: str,
    address: str,
    port: int,
    run_dir: str,
    assume_clean: bool,
    verbose: bool,
    debug: bool,
    noprint: bool,
) -> None:
    """Drains the ring of VOLUME and has its senders ship it to the target."""
    log.configure(stage="reader", volume=volume, verbose=verbose, debug=debug, quiet=noprint)

    def build() -> Reader:
        run_directory = RunDirectory(run_dir)
        return Reader(
            volume=volume,
            capture=open_capture(chardev, Role.CONSUMER),
            control=options.tcp(address, port + 1),
            run_directory=run_directory,
            assume_clean=assume_clean,
        )

    options.run(build)


if __name__ == "__main__":
    main()
