# SPDX-License-Identifier: GPL-2.0-only
"""Scans under faults, seed by seed; and bugs that must be found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import pytest

from bdr.common.errors import BdrError
from bdr.common.scan import comparer
from bdr.common.scan.comparer import Comparer, Stage
from bdr.common.source.scheduler import TicketOffice
from bdr.common.source.sequencer import Sequencer
from bdr.common.target import replica
from tests.simulation.disk import Disk
from tests.simulation.scan_parts import Scanner, Target
from tests.simulation.scanning import ScanWorld
from tests.simulation.source import BrokenRuleError

SEEDS = 60
SEEDS_TO_FIND = 200


@pytest.mark.parametrize("seed", range(SEEDS))
def test_scan_under_faults_ends_with_an_identical_replica(seed: int) -> None:
    ScanWorld(seed).run()


def no_exclusions() -> AbstractContextManager[Any]:
    return mock.patch.object(TicketOffice, "dispatched")


def cleared_before_it_is_acknowledged() -> AbstractContextManager[Any]:
    return mock.patch.object(Sequencer, "durable", property(lambda self: self.dispatched))


def tickets_in_front_of_a_gap() -> AbstractContextManager[Any]:
    return mock.patch.object(
        TicketOffice, "_hold_slot", property(lambda _: 0, lambda *_: None), create=True
    )


def tickets_before_the_target_has_the_slots_in_front_of_a_gap() -> AbstractContextManager[Any]:
    def make(step: Callable[..., Any]) -> Callable[..., Any]:
        def broken(self: TicketOffice, now_s: float) -> Any:
            actions = step(self, now_s)
            if self._hold is not None:
                self._hold = 0
            return actions

        return broken

    return mock.patch.object(TicketOffice, "step", make(TicketOffice.step))


def read_before_begin() -> AbstractContextManager[Any]:
    return mock.patch.object(Scanner, "reads_before_begin", True)


def marks_of_resume_not_noticed() -> AbstractContextManager[Any]:
    def make(on_capture: Callable[..., None]) -> Callable[..., None]:
        def broken(self: Sequencer, *args: Any) -> None:
            generation = self.generation
            on_capture(self, *args)
            self.generation = generation

        return broken

    return mock.patch.object(Sequencer, "_on_capture", make(Sequencer._on_capture))


def consistent_at_once() -> AbstractContextManager[Any]:
    def make(on_capture: Callable[..., None]) -> Callable[..., None]:
        def broken(self: Sequencer, *args: Any) -> None:
            on_capture(self, *args)
            if self._consistent_at is not None:
                self._consistent_at = self.cursor

        return broken

    return mock.patch.object(Sequencer, "_on_capture", make(Sequencer._on_capture))


def checksums_of_what_is_only_in_the_journal() -> AbstractContextManager[Any]:
    return mock.patch.object(Target, "_is_settled", return_value=True)


def tickets_survive_a_new_epoch() -> AbstractContextManager[Any]:
    def make(lost: Callable[..., None]) -> Callable[..., None]:
        def broken(self: Sequencer) -> None:
            generation = self.generation
            lost(self)
            self.generation = generation

        return broken

    return mock.patch.object(Sequencer, "_in_flight_lost", make(Sequencer._in_flight_lost))


def unreadable_counts_as_equal() -> AbstractContextManager[Any]:
    return mock.patch.object(comparer, "_unreadable", return_value=[])


def buffer_used_while_a_thread_reads_into_it() -> AbstractContextManager[Any]:
    def broken(self: Comparer, job: Any) -> None:
        self._enter(job, Stage.OVER)
        del self._jobs[job.number]
        self._requests = {n: its for n, its in self._requests.items() if its[0] is not job}
        self._buffers.append(job.buffer)

    on_result = Comparer._on_result

    def deaf(self: Comparer, result: Any, actions: Any) -> None:
        if result.job in self._jobs:
            on_result(self, result, actions)

    patches = ExitStack()
    patches.enter_context(mock.patch.object(Comparer, "_end", broken))
    patches.enter_context(mock.patch.object(Comparer, "_on_result", deaf))
    return patches


def acknowledged_before_the_sync() -> AbstractContextManager[Any]:
    def work(self: Target) -> None:
        if self.jobs and self.store.fits(self.jobs[0]):
            self.written = self.jobs.popleft()
            self.store.write(self.written)
            self.hear(replica.Durable(self.written.job))
        elif self.written is not None:
            self.store.sync(self.written.record)
            self.written = None
        else:
            self.store.step()

    return mock.patch.object(Target, "work", work)


def cache_of_a_failed_disk_believed() -> AbstractContextManager[Any]:
    return mock.patch.object(Disk, "settle")


PLANTED: dict[Callable[[], AbstractContextManager[Any]], int] = {
    no_exclusions: 1,
    cleared_before_it_is_acknowledged: 1,
    read_before_begin: 36,
    tickets_in_front_of_a_gap: 22,
    tickets_before_the_target_has_the_slots_in_front_of_a_gap: 1012,
    marks_of_resume_not_noticed: 2,
    consistent_at_once: 652,
    checksums_of_what_is_only_in_the_journal: 117,
    tickets_survive_a_new_epoch: 141,
    unreadable_counts_as_equal: 24,
    buffer_used_while_a_thread_reads_into_it: 2,
    acknowledged_before_the_sync: 0,
    cache_of_a_failed_disk_believed: 3741,
}
"""Each bug, and a seed that found it once: where it no longer does, others are tried."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_bug_is_found(plant: Callable[[], AbstractContextManager[Any]]) -> None:
    with plant():
        for seed in (PLANTED[plant], *range(SEEDS_TO_FIND)):
            try:
                ScanWorld(seed).run()
            except (BrokenRuleError, BdrError):
                return
    pytest.fail(f"not found in {SEEDS_TO_FIND} seeds")
