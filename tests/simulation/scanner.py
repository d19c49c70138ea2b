# SPDX-License-Identifier: GPL-2.0-only
"""A scanner, as `services/scanner.py`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from bdr.common.scan import events
from bdr.common.scan.repairer import Repairer
from bdr.common.wire.batch import encode_batch
from tests.simulation.comparison import Comparison
from tests.simulation.network import Channel, Duplex

if TYPE_CHECKING:
    from tests.simulation.world import World


class Scanner(Comparison):
    """One process, until it is killed."""

    def __init__(self, world: World, name: int) -> None:
        self.name = name
        self._data: Channel[list[bytes]] | None = None
        self._outgoing: deque[list[bytes]] = deque()
        self._is_busy = False
        comparer = Repairer(stream=world.gate.stream, settings=world.options.comparer)
        super().__init__(world, comparer, "scanner")

    @property
    def links(self) -> list[Duplex | Channel[list[bytes]]]:
        return [*super().links, *([self._data] if self._data is not None else [])]

    def _connect_more(self) -> None:
        world = self.world
        assert world.applier is not None
        self._data = world.data_channel()

    def _drop(self) -> None:
        super()._drop()
        self._data = None
        self._is_busy = False

    def _restart(self) -> None:
        self.world.restart_scanner(self.name)

    def _outgoing_batches(self) -> int:
        self._send()
        return len(self._outgoing)

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.SendBatch():
                buffer = self.buffer(action.buffer)
                header, headers, payload = action.build(buffer, self.gate.stream)
                self._outgoing.append([encode_batch(header, headers, payload), headers, payload])
            case events.DropUnsent():
                self._outgoing.clear()

    def _send(self) -> None:
        if self._outgoing and not self._is_busy and self._data is not None:
            self._is_busy = True
            incarnation = self._incarnation

            def sent() -> None:
                if incarnation == self._incarnation and self._data is not None:
                    self._is_busy = False
                    self._data.send(self.world.flip(self._outgoing.popleft()))
                    self._round()

            self.after(self.world.rng.uniform(0.0, self.world.options.wire_s), sent)
