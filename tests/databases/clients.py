# SPDX-License-Identifier: GPL-2.0-only
"""Clients that commit one transaction after the other, each in a thread, and keep a ledger."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from deploy.command import wait_for
from tests.databases.ledger import Ledger

PROGRESS_S = 90.0
"""A client that acknowledges nothing for so long has failed."""


class Client(Protocol):
    """One connection; every call is made by one thread."""

    def prepare(self, number: int) -> None:
        """Does everything of transaction `number` but its commit."""
        ...

    def commit(self) -> None:
        """Commits; returns when it was acknowledged."""
        ...

    def close(self) -> None: ...


class Clients:
    """Run from the start until `stop`.

    Args:
        connect: makes the client of a number; called by its thread.
        count: of clients, numbered from 0.
    """

    def __init__(self, connect: Callable[[int], Client], count: int) -> None:
        self.ledger = Ledger(count)
        self._connect = connect
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=[at]) for at in range(count)]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, count: int) -> None:
        """Waits until each client has committed `count` more."""
        wanted = [done + count for done in self.ledger.counts()]

        def is_done() -> bool:
            if self._error:
                raise self._error
            return all(
                done >= least for done, least in zip(self.ledger.counts(), wanted, strict=True)
            )

        wait_for(is_done, what=f"{count} more transactions of each client", timeout_s=PROGRESS_S)

    def stop(self) -> None:
        """Ends them after the transaction that each is in.

        Raises:
            BaseException: whatever ended a client before.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._error:
            raise self._error

    def _run(self, at: int) -> None:
        try:
            with contextlib.closing(self._connect(at)) as client:
                number = 0
                while not self._stop.is_set():
                    number += 1
                    client.prepare(number)
                    self.ledger.submit(at)
                    client.commit()
                    self.ledger.acknowledge(at)
        except BaseException as error:
            self._error = error


@contextlib.contextmanager
def running(connect: Callable[[int], Client], count: int) -> Iterator[Clients]:
    """Clients that have ended when the block ends."""
    clients = Clients(connect, count)
    try:
        yield clients
    finally:
        clients.stop()


def is_numbered(numbers: Sequence[int]) -> bool:
    """Whether these are 1, 2, 3 ... without a gap."""
    return sorted(numbers) == list(range(1, len(numbers) + 1))
