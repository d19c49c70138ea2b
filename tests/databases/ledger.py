# SPDX-License-Identifier: GPL-2.0-only
"""What clients submitted and what was acknowledged to them, kept outside of the database.

Each client does one transaction after the other, numbered 1, 2, 3 ... After a cut, a database
of asynchronous replication may lack the newest of them. It must be a prefix all the same: of
two transactions, if the one was submitted after the other was acknowledged, and the other is
lost, the one is lost too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """When the source was lost: at some instant from `began_at` to `ended_at`.

    What was written by `durable_at` is known to be durable on the target.
    """

    began_at: float
    ended_at: float
    durable_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a cut has left of a ledger.

    Attributes:
        acknowledged: transactions before the cut began.
        lost: how many of these are lost.
        durable: how many were acknowledged by what was durable on the target.
        lost_durable: how many of these are lost.
        lost_tail_s: time from the first acknowledgement of a lost one to the cut.
        out_of_order: (client, number) of survivors that were submitted after a lost one was
            acknowledged.
        later_than_cut: those that were submitted after the cut.
        unknown: those that were never submitted.
    """

    acknowledged: int
    lost: int
    durable: int
    lost_durable: int
    lost_tail_s: float
    out_of_order: tuple[tuple[int, int], ...]
    later_than_cut: tuple[tuple[int, int], ...]
    unknown: tuple[tuple[int, int], ...]

    @property
    def is_prefix(self) -> bool:
        """Whether what survived is what the source held at a moment before the cut, and after
        all that was known to be durable."""
        return not (self.lost_durable or self.out_of_order or self.later_than_cut or self.unknown)


class Ledger:
    """Written to by each client's thread; judged when they have ended."""

    def __init__(self, clients: int) -> None:
        self.submitted_at: list[list[float]] = [[] for _ in range(clients)]
        self.acknowledged_at: list[list[float]] = [[] for _ in range(clients)]

    def submit(self, client: int) -> None:
        """Its next transaction is about to be committed."""
        self.submitted_at[client].append(time.monotonic())

    def acknowledge(self, client: int) -> None:
        """Its transaction is durable."""
        self.acknowledged_at[client].append(time.monotonic())

    def counts(self) -> list[int]:
        """How many each client has acknowledged."""
        return [len(instants) for instants in self.acknowledged_at]

    def judge(self, newest: Mapping[int, int], cut: Cut) -> Judgement:
        """Compares with what survived.

        Args:
            newest: of each client, its last transaction that survived; those before it did.
            cut: when the source was lost.
        """
        acknowledged = self._acknowledged_by(cut.began_at)
        durable = self._acknowledged_by(cut.durable_at)
        left = [newest.get(client, 0) for client in range(len(acknowledged))]
        first_lost_at = [
            instants[last]
            for instants, last in zip(self.acknowledged_at, left, strict=True)
            if last < len(instants)
        ]
        order_at = min(first_lost_at, default=float("inf"))
        lost_before_cut = min((at for at in first_lost_at if at <= cut.began_at), default=None)
        return Judgement(
            acknowledged=sum(acknowledged),
            lost=_missing(acknowledged, left),
            durable=sum(durable),
            lost_durable=_missing(durable, left),
            lost_tail_s=0.0 if lost_before_cut is None else cut.began_at - lost_before_cut,
            out_of_order=self._submitted_after(order_at, left),
            later_than_cut=self._submitted_after(cut.ended_at, left),
            unknown=tuple(
                (client, last)
                for client, last in newest.items()
                if not 0 <= client < len(left) or last > len(self.submitted_at[client])
            ),
        )

    def _acknowledged_by(self, instant: float) -> list[int]:
        return [sum(at <= instant for at in instants) for instants in self.acknowledged_at]

    def _submitted_after(self, instant: float, left: list[int]) -> tuple[tuple[int, int], ...]:
        return tuple(
            (client, number + 1)
            for client, last in enumerate(left)
            for number, at in enumerate(self.submitted_at[client][:last])
            if at > instant
        )


def _missing(wanted: list[int], left: list[int]) -> int:
    return sum(max(0, most - last) for most, last in zip(wanted, left, strict=True))
