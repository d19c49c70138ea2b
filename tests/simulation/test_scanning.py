# SPDX-License-Identifier: GPL-2.0-only
"""Scans under faults, seed by seed; and bugs that must be found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest

from common.errors import BdrError
from common.sequencer import Sequencer
from common.tickets import TicketOffice
from tests.simulation.scanning import ScanWorld
from tests.simulation.source import BrokenRuleError

SEEDS = 60
SEEDS_TO_FIND = 200
FOUND = (1244, 1362, 1363, 1596, 1668)
"""A slot of before a gap, dispatched while a ticket was open, hid a newer missed write."""


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
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


def read_before_begin() -> AbstractContextManager[Any]:
    return mock.patch.object(ScanWorld, "reads_before_begin", True)


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


@pytest.mark.parametrize(
    "plant",
    [
        no_exclusions,
        cleared_before_it_is_acknowledged,
        read_before_begin,
        tickets_in_front_of_a_gap,
        marks_of_resume_not_noticed,
        consistent_at_once,
    ],
    ids=lambda plant: plant.__name__,
)
def test_planted_bug_is_found(plant: Callable[[], AbstractContextManager[Any]]) -> None:
    with plant():
        for seed in (*FOUND, *range(SEEDS_TO_FIND)):
            try:
                ScanWorld(seed).run()
            except (BrokenRuleError, BdrError):
                return
    pytest.fail(f"not found in {SEEDS_TO_FIND} seeds")
