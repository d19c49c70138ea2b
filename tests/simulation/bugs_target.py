# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the target: its node, its state file, its journal, its disks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from bdr.common.journal import entry as entry_format
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.superblock import Superblock
from bdr.common.target import admission, events
from bdr.common.target import record as record_format
from bdr.common.target.extents import plan
from bdr.common.target.intake import Intake
from bdr.common.target.job import Job
from bdr.common.target.node import TargetNode
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.reorder import ReorderBuffer
from bdr.common.target.replica import Replica
from bdr.common.target.session import SessionState
from bdr.common.target.settings import TargetSettings
from bdr.common.wire.batch import Batch
from bdr.common.wire.condition import Condition
from tests.simulation import stores
from tests.simulation.applier import Applier
from tests.simulation.bugs import Patch, bug, handled, no, nothing, wrapped, yes, zeros
from tests.simulation.disk import Disk


@bug()
def acknowledge_before_it_is_durable() -> Patch:
    def make(acknowledge: Any) -> Any:
        def broken(self: TargetNode) -> None:
            with mock.patch.object(self._session, "durable", self._session.accepted):
                acknowledge(self)

        return broken

    return wrapped(TargetNode, "_acknowledge", make)


@bug(faults={"power_cut": 0.15, "cut_control": 0.1})
def welcome_before_it_is_durable() -> Patch:
    def make(open_session: Any) -> Any:
        def broken(self: TargetNode, *args: Any) -> None:
            open_session(self, *args)
            self._session.state = SessionState.OPEN
            self._welcome()

        return broken

    return wrapped(TargetNode, "_open_session", make)


def _accept_anyway(node: TargetNode | Intake, batch: Batch, **changes: Any) -> None:
    """Makes a job of it without a look at its place."""
    extents = plan(batch.headers, batch.payload, device_sectors=node._replica.record.device_sectors)
    record = replace(node._replica.record, **changes)
    node._replica._advance(record, extents, batch.headers, batch.payload)


@bug(senders=3)
def apply_out_of_order() -> Patch:
    def broken(self: Intake, batch: Batch) -> None:
        # Applied when it comes; counted when its turn comes, which then is too late.
        _accept_anyway(self, batch)
        self.reorder.put(batch, wanted=batch.header.number)

    return mock.patch.object(Intake, "_keep", broken)


@bug(senders=3)
def skip_a_gap() -> Patch:
    def broken(self: Intake, batch: Batch) -> None:
        _accept_anyway(self, batch, slot=batch.header.end)
        self._session.accepted = batch.header.number
        self._session._jobs.append((self._replica.jobs.last, batch.header.number))
        self.forget()

    return mock.patch.object(Intake, "_keep", broken)


@bug(duplicates=0.05)
def apply_a_duplicate_again() -> Patch:
    def make(on_batch: Any) -> Any:
        def broken(self: TargetNode, arrived: events.BatchArrived) -> None:
            header, at = arrived.batch.header, self._session
            if at.is_open and header.epoch == self.record.epoch and header.number <= at.accepted:
                _accept_anyway(self, arrived.batch)
            else:
                on_batch(self, arrived)

        return broken

    return handled(TargetNode, events.BatchArrived, make)


@bug(flips=0.05)
def digest_ignored() -> Patch:
    return mock.patch.object(Batch, "is_intact", yes)


@bug(duplicates=0.02)
def epoch_ignored() -> Patch:
    def make(on_batch: Any) -> Any:
        def broken(self: TargetNode, arrived: events.BatchArrived) -> None:
            header = replace(arrived.batch.header, epoch=self.record.epoch)
            on_batch(self, events.BatchArrived(replace(arrived.batch, header=header)))

        return broken

    return handled(TargetNode, events.BatchArrived, make)


@bug(duplicates=0.2)
def late_hello_believed() -> Patch:
    def make(refusal: Any) -> Any:
        def broken(hello: Any, record: ReplicaRecord, **facts: Any) -> Any:
            is_late = hello.stream == record.stream and hello.head < record.slot
            return None if is_late else refusal(hello, record, **facts)

        return broken

    return wrapped(admission, "refusal", make)


@bug(faults={"stranger": 0.2, "kill_applier": 0.3}, target=TargetSettings(source_silence_s=1e6))
def second_source_let_in_after_a_restart() -> Patch:
    def make(on_message: Any) -> Any:
        def broken(self: TargetNode, arrived: Any) -> None:
            if self._session.state is SessionState.NONE:
                self._silence._heard_at = -1e9
            on_message(self, arrived)

        return broken

    return handled(TargetNode, events.MessageArrived, make)


@bug(faults={"misconfigure": 1.0})
def volume_not_compared() -> Patch:
    def make(refusal: Any) -> Any:
        def broken(hello: Any, record: ReplicaRecord, **facts: Any) -> Any:
            return refusal(replace(hello, volume=record.volume), record, **facts)

        return broken

    return wrapped(admission, "refusal", make)


_LETS_IN: dict[str, Any] = {"target": TargetSettings(source_silence_s=4.0)}


@bug(**_LETS_IN, faults={"source_power_cut": 1.0})
def slot_of_another_stream_believed() -> Patch:
    def make(start: Any) -> Any:
        return lambda hello, record: start(hello, replace(record, stream=hello.stream))

    return wrapped(admission, "start", make)


@bug(**_LETS_IN, is_equal=True, assume_clean=True, faults={"change_roles": 1.0})
def equal_by_assertion_after_it_had_a_source() -> Patch:
    def broken(hello: Any, record: ReplicaRecord) -> admission.Assumption:
        del record
        taken = hello.assume_clean and not hello.tail
        return admission.Assumption.TAKEN if taken else admission.Assumption.NOT_GIVEN

    return mock.patch.object(admission, "_assumption", broken)


@bug(senders=3)
def reorder_buffer_without_a_limit() -> Patch:
    def make(put: Any) -> Any:
        def broken(self: ReorderBuffer, batch: Batch, *, wanted: int) -> bool:
            self._batches_max = self._size_max = 1 << 60
            return bool(put(self, batch, wanted=wanted))

        return broken

    return wrapped(ReorderBuffer, "put", make)


@bug()
def epoch_not_advanced() -> Patch:
    def make(advance: Any) -> Any:
        def broken(self: Replica, record: ReplicaRecord, *rest: Any) -> Any:
            return advance(self, replace(record, epoch=1), *rest)

        return broken

    return wrapped(Replica, "_advance", make)


@bug(store="journal", is_equal=False, assume_clean=False, disk_s=0.01)
def checksums_of_what_is_only_in_the_journal() -> Patch:
    return mock.patch.object(Applier, "_is_applied", yes)


@bug(audits=1.0)
def acknowledged_before_the_sync() -> Patch:
    def make(write_one: Any) -> Any:
        def broken(self: Applier) -> None:
            write_one(self)
            if self.alive and self._last is not None and self.node.jobs.durable < self._last.number:
                self._handle(events.Durable(self._last.number))

        return broken

    return wrapped(Applier, "_write_one", make)


# Roles.


def _demotion_that_keeps(name: str) -> Patch:
    """This of the record stays as it was."""

    def make(demoted: Any) -> Any:
        def broken(record: ReplicaRecord, **kwargs: Any) -> ReplicaRecord:
            found: ReplicaRecord = demoted(record, **kwargs)
            kept: dict[str, Any] = {name: getattr(record, name)}
            return replace(found, **kept)

        return broken

    return wrapped(stores, "demoted", make)


@bug(**_LETS_IN, faults={"change_roles": 1.0})
def demoted_replica_keeps_its_condition() -> Patch:
    return _demotion_that_keeps("condition")


@bug(**_LETS_IN, faults={"change_roles": 1.0})
def demoted_replica_keeps_its_stream() -> Patch:
    return _demotion_that_keeps("stream")


# Disks.


@bug(faults={"sync_failure": 0.15}, is_equal=False, assume_clean=False)
def cache_of_a_failed_disk_believed() -> Patch:
    return mock.patch.object(Disk, "settle", nothing)


# The state file.


@bug(store="direct")
def crash_taken_for_a_clean_stop() -> Patch:
    return mock.patch.object(ReplicaRecord, "at_start", lambda self: self)


@bug(store="direct")
def clean_flag_not_cleared() -> Patch:
    def make(advance: Any) -> Any:
        def broken(self: Replica, record: ReplicaRecord, *rest: Any) -> Any:
            return advance(self, replace(record, clean=True), *rest)

        return broken

    return wrapped(Replica, "_advance", make)


@bug(store="direct", audits=1.0)
def record_written_before_the_device_is_synced() -> Patch:
    def broken(self: stores.DirectStore, record: ReplicaRecord) -> None:
        self._record_file.save(record)

    return mock.patch.object(stores.DirectStore, "sync", broken)


@bug(store="direct", faults={"power_cut": 0.1})
def torn_record_trusted() -> Patch:
    return mock.patch.object(record_format, "_digest", zeros)


@bug(store="direct", audits=1.0)
def torn_first_save_taken_for_damage() -> Patch:
    return mock.patch.object(record_format, "_is_first_save_torn", no)


@bug(store="direct", faults={"power_cut": 0.1})
def record_in_one_copy() -> Patch:
    def make(save: Any) -> Any:
        def broken(self: stores.RecordFile, record: ReplicaRecord) -> None:
            self._generation += 1  # two at a time: always the same copy
            save(self, record)

        return broken

    return wrapped(stores.RecordFile, "save", make)


@bug(store="journal", faults={"power_cut": 0.2, "stop_applier": 0.2, "sync_failure": 0.1})
def record_believed_before_it_is_synced() -> Patch:
    return mock.patch.object(stores.RecordFile, "_drop_page_cache", nothing)


# The journal.


@bug(store="journal", audits=1.0)
def journal_not_synced() -> Patch:
    def broken(self: JournalEngine) -> None:
        self._durable = self._head
        self._unsynced_bytes = 0

    return mock.patch.object(JournalEngine, "commit", broken)


@bug(store="journal", audits=1.0)
def journal_applied_before_it_is_synced() -> Patch:
    def make(append: Any) -> Any:
        def broken(self: JournalEngine, job: Job) -> None:
            append(self, job)
            self._durable = self._head

        return broken

    return wrapped(JournalEngine, "append", make)


@bug(store="journal", audits=1.0)
def checkpoint_before_the_device_is_synced() -> Patch:
    return mock.patch.object(stores.Device, "sync", nothing)


@bug(store="journal", audits=1.0, faults={"power_cut": 0.2})
def torn_entry_trusted() -> Patch:
    return mock.patch.object(entry_format, "body_checksum", zeros)


@bug(store="journal", faults={"power_cut": 0.1, "stop_applier": 0.2})
def superblock_in_one_copy() -> Patch:
    return mock.patch.object(Superblock, "offset", 0)


@bug(
    store="journal",
    log_entries=2,
    capacity=12,
    think_s=0.0005,
    in_flight=8,
    audits=1.0,
    disk_s=0.01,
    wire_s=0.0002,
)
def journal_overwrites_what_is_not_applied() -> Patch:
    return mock.patch.object(JournalEngine, "fits", yes)


@bug(store="journal", may_overflow=True, think_s=0.0005, faults={"power_cut": 0.1})
def journal_forgets_the_condition() -> Patch:
    def make(record: Any) -> Any:
        def broken(self: Any, before: ReplicaRecord) -> ReplicaRecord:
            found: ReplicaRecord = record(self, before)
            return replace(found, condition=Condition.CONSISTENT)

        return broken

    return wrapped(entry_format.EntryHeader, "record", make)
