# SPDX-License-Identifier: GPL-2.0-only
"""A host goes back to what it was: a snapshot with its memory, or only its disks.

Each fault strikes twice: first a snapshot is taken, then the host goes back to it. What it
had made since is a history of its own, which lives on at the other side. Or a clone of the
source's host starts from it, and greets too. A person looks at both status pages, and gives
up what only the target has once both show two histories.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bdr.common.source.identity import SourceRecord
from bdr.common.wire.batch import PROTOCOL
from bdr.common.wire.control import Hello, Refused, decode_message, encode_message
from bdr.common.wire.reasons import RefusedReason
from tests.simulation.disk import Disk
from tests.simulation.history import History
from tests.simulation.source import Gate
from tests.simulation.stores import VOLUME, Store

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOK_S = 0.5
_IDLE_TRIES = 200


@dataclass(frozen=True, slots=True)
class SourceSnapshot:
    """Memory and disks of the source's host, at a moment without a write in flight."""

    gate: Gate
    history: History
    disk: Disk
    record: SourceRecord
    assume_clean: bool


class GoingBack:
    """Snapshots of a run, and the person."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._source: SourceSnapshot | None = None
        self._target: Store | None = None
        self._clone: Hello | None = None
        world.clock.after(LOOK_S, self._look)

    def _look(self) -> None:
        world = self._world
        world.clock.after(LOOK_S, self._look)
        if world.applier is None or world.reader is None:
            return
        refused = world.reader.node.session.refused
        is_source_refused = refused is not None and refused.reason is RefusedReason.TWO_HISTORIES
        if is_source_refused and world.applier.node.rival is not None:
            world.note("a person gives up what only the target has")
            world.change_roles()

    # The source.

    def source(self, tries: int = _IDLE_TRIES) -> None:
        """Takes a snapshot as soon as nothing is in flight, or goes back to it."""
        world = self._world
        if self._source is not None:
            self._revert_source(self._source)
            self._source = None
        elif not world.application.in_flight:
            self._source = SourceSnapshot(
                gate=world.gate.copy(),
                history=world.history.copy(),
                disk=world.source_disk.copy(),
                record=world.source_record,
                assume_clean=world.assume_clean,
            )
        elif tries and world.is_faulty:
            world.clock.after(0.002, lambda: self.source(tries - 1))

    def _revert_source(self, then: SourceSnapshot) -> None:
        world = self._world
        world.note(f"the source goes back to slot {then.gate.head}")
        world.oracle.host_went_back(then.gate.stream)
        world.end_source()
        world.application.crash()
        world.source_disk = then.disk
        world.gate = then.gate
        world.history = world.histories[then.gate.stream] = then.history
        world.source_record = then.record
        world.remembered.went_back()
        world.assume_clean = world.assume_clean and then.assume_clean
        world.boot_source_soon()

    def clone(self) -> None:
        """Keeps what the source would say in its greeting now, or says it from elsewhere.

        It confirms what it says. Where it is let in, it ends at once.
        """
        world, gate = self._world, self._world.gate
        if self._clone is None:
            self._clone = Hello(
                protocol=PROTOCOL,
                attempt=1,
                nonce=0,
                volume=VOLUME,
                source=world.source_record.source,
                generations=world.source_record.generations,
                stream=gate.stream,
                device_sectors=world.options.device_sectors,
                tail=gate.tail,
                head=gate.head,
                acknowledged=gate.acknowledged,
                counted=gate.counted,
                assume_clean=False,
            )
            return
        hello, self._clone = self._clone, None
        if world.applier is None:
            return

        def answered(data: bytes) -> None:
            match decode_message(data):
                case Refused(attempt=1, nonce=nonce) if nonce and link.is_connected:
                    link.up.send(encode_message(replace(hello, attempt=2, nonce=nonce)))

        world.oracle.clone_greets()
        link = world.applier.accept(answered)
        link.up.send(encode_message(hello))
        world.clock.after(1.0, link.cut)

    # The target.

    def target(self) -> None:
        """Takes a snapshot of all its disks, as a power cut would leave them, or goes back."""
        world = self._world
        if self._target is None:
            if world.exchanges.is_pending:
                return  # these disks do not belong together
            self._target = world.store.after_power_cut(world.rng, world.oracle)
            return
        then, self._target = self._target, None
        world.note("the target goes back")
        world.oracle.host_went_back(None)
        world.replace_store(then)
