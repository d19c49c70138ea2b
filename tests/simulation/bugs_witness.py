# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the witness: by what a target recognises its device."""

from __future__ import annotations

from typing import Any
from unittest import mock

from bdr.common.journal import run as journal_run
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.replay import replay
from bdr.common.ring.layout import Op
from bdr.common.target import witness
from bdr.common.target.extents import Extents
from bdr.common.target.record import NO_JOURNAL, ReplicaRecord
from bdr.common.target.witness import Witness
from bdr.common.target.witness_check import Evidence, Finding, Outcome, Versions
from bdr.services.target import recognition
from tests.simulation import stores
from tests.simulation.bugs import Patch, bug, nothing, wrapped

_EXCHANGES = {"exchange_device": 0.5, "stop_applier": 0.5}


def _outcome(change: dict[Outcome, Outcome]) -> Patch:
    found = Evidence.outcome.fget  # type: ignore[attr-defined]
    return mock.patch.object(
        Evidence, "outcome", property(lambda self: change.get(found(self), found(self)))
    )


@bug(store="journal", faults={"power_cut": 0.3, "kill_applier": 0.3})
def witness_compared_with_the_checkpoint_alone() -> Patch:
    return mock.patch.object(Versions, "add", nothing)


@bug(store="journal", faults={"power_cut": 0.2}, disk_s=0.01)
def torn_sector_taken_for_another() -> Patch:
    def make(add: Any) -> Any:
        def broken(self: Versions, *job: Any) -> None:
            add(self, *job)
            self._first_bytes.clear()

        return broken

    return wrapped(Versions, "add", make)


@bug(faults=_EXCHANGES)
def blank_disk_judged_by_the_comparison() -> Patch:
    return _outcome({Outcome.OTHER_DISK: Outcome.OTHER_MOMENT})


@bug(faults={"revert_device": 0.3, "stop_applier": 0.5})
def disk_of_another_moment_believed() -> Patch:
    return _outcome({Outcome.OTHER_MOMENT: Outcome.SAME})


@bug(faults={"stop_applier": 0.2})
def witness_not_updated_by_discards() -> Patch:
    def make(apply: Any) -> Any:
        def broken(self: Witness, extents: Extents, payload: Any) -> None:
            kept = [at for at, op in enumerate(extents.op) if op == Op.WRITE]
            columns = (extents.op, extents.offset, extents.length, extents.source)
            apply(self, Extents(*([column[at] for at in kept] for column in columns)), payload)

        return broken

    return wrapped(Witness, "apply", make)


@bug(faults={"stop_applier": 0.2})
def older_write_of_a_job_kept() -> Patch:
    """Of two writes of one job to a sector."""

    def make(written: Any) -> Any:
        return lambda *job, newest_first=False: written(*job, newest_first=False)

    return wrapped(witness, "written", make)


@bug(store="journal", faults={"power_cut": 0.3})
def witness_of_what_is_not_applied_yet() -> Patch:
    def make(append: Any) -> Any:
        def broken(self: JournalEngine, job: Any) -> None:
            append(self, job)
            self._witness.apply(job.extents, job.payload)

        return broken

    return wrapped(JournalEngine, "append", make)


@bug(store="journal", faults={"power_cut": 0.3})
def witness_does_not_follow_a_replay() -> Patch:
    def broken(device: Any, kept: Any, extents: Any, payload: Any, record: Any) -> None:
        del kept, record
        device.apply(extents, payload)

    return mock.patch.object(journal_run, "apply_job", broken)


@bug(faults={"revert_state": 0.3, "stop_applier": 0.3, "power_cut": 1.0})
def state_file_of_another_moment_believed() -> Patch:
    """The journal is replayed over what is newer."""
    return mock.patch.object(Versions, "_finding", return_value=Finding.TORN)


@bug(store="direct", faults={"power_cut": 0.3})
def judged_without_a_journal_after_a_crash() -> Patch:
    def make(recognised: Any) -> Any:
        def broken(device: Any, record: ReplicaRecord, kept: bytes) -> Any:
            decoded = Witness.decode(kept) or Witness()
            recognition.check(device, Versions(decoded), record)
            return recognised(device, record, kept)

        return broken

    return wrapped(stores, "recognised", make)


@bug(store="journal", faults={"exchange_device": 0.2, "kill_applier": 0.5}, disk_s=0.01)
def journal_replayed_before_the_device_is_recognised() -> Patch:
    def make(recover: Any) -> Any:
        def broken(self: stores.JournalStore) -> Any:
            copy = self.after_power_cut(None)
            if copy._record_file.load(1).journal != NO_JOURNAL:
                file = stores.JournalFile(copy._log_disk)
                found = copy._found(file)
                for entry in replay(file.read, found) if found else ():
                    device = stores.Device(self.device, stores.NOBODY)
                    device.apply(entry.extents, entry.payload)
            return recover(self)

        return broken

    return wrapped(stores.JournalStore, "recover", make)
