# SPDX-License-Identifier: GPL-2.0-only
"""Bugs of the target: its node, its state file, its journal, its disks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from bdr.common import copies
from bdr.common.journal import entry as entry_format
from bdr.common.journal.engine import JournalEngine
from bdr.common.journal.superblock import Superblock
from bdr.common.source.greeting import Greeting
from bdr.common.source.release_tracker import ReleaseTracker
from bdr.common.target import admission, events, verdict
from bdr.common.target.answers import welcome
from bdr.common.target.extents import plan
from bdr.common.target.intake import Intake
from bdr.common.target.job import Job
from bdr.common.target.node import TargetNode
from bdr.common.target.reception import Reception
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.reorder import ReorderBuffer
from bdr.common.target.replica import Replica
from bdr.common.target.session import SessionState
from bdr.common.target.verdict import Relation
from bdr.common.wire.batch import Batch
from bdr.common.wire.condition import Condition
from bdr.common.wire.reasons import RefusedReason
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
    def make(admit: Any) -> Any:
        def broken(self: Reception, peer: Any, hello: Any, start: Any) -> Any:
            actions = admit(self, peer, hello, start)
            self._session.state = SessionState.OPEN
            return [*actions, events.Send(peer, welcome(self._session, self._replica))]

        return broken

    return wrapped(Reception, "_admit", make)


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
def late_hello_declared() -> Patch:
    """A HELLO that its source did not confirm shows two histories."""

    def make(declared: Any) -> Any:
        def broken(self: Reception, hello: Any, refusal: Any) -> Any:
            return declared(self, replace(hello, nonce=self._nonce), refusal)

        return broken

    return wrapped(Reception, "_declared", make)


@bug(faults={"stranger": 0.2, "kill_applier": 0.3})
def another_source_taken_for_the_replicas() -> Patch:
    def make(relation: Any) -> Any:
        def broken(hello: Any, record: ReplicaRecord, *, is_blank: bool) -> Any:
            found = relation(hello, record, is_blank=is_blank)
            return Relation.SAME if found is Relation.OTHER else found

        return broken

    return wrapped(verdict, "_relation", make)


# Hosts that go back.

_BACK = {"revert_source": 0.5, "kill_reader": 1.0}
_TARGET_BACK = {"revert_target": 0.5, "kill_reader": 0.5}


@bug(faults=_BACK, faults_s=15.0, writes=160)
def recent_batches_not_compared() -> Patch:
    return mock.patch.object(Greeting, "_are_ours", yes)


@bug(faults=_BACK, faults_s=15.0, writes=160)
def changes_counted_on_after_a_comparison() -> Patch:
    def make(begin: Any) -> Any:
        def broken(self: Replica, hello: Any, start: Any) -> Any:
            job = begin(self, hello, start)
            if self._start is not None:
                self._start = replace(self._start, changes=hello.acknowledged)
            return job

        return broken

    return wrapped(Replica, "begin_session", make)


@bug(faults=_TARGET_BACK, faults_s=15.0, writes=160, may_overflow=True, think_s=0.0005)
def changes_not_compared() -> Patch:
    def make(place: Any) -> Any:
        return lambda hello, record: place(hello, replace(record, changes=hello.acknowledged))

    return wrapped(verdict, "_place", make)


@bug(faults=_TARGET_BACK, faults_s=15.0, writes=160)
def epochs_given_out_again() -> Patch:
    def make(init: Any) -> Any:
        return lambda self, record, **_: init(self, record)

    return wrapped(Replica, "__init__", make)


@bug(faults={"clone_source": 0.15, "kill_reader": 0.5})
def two_histories_latched() -> Patch:
    def make(judge: Any) -> Any:
        def broken(self: Reception, hello: Any, **facts: Any) -> Any:
            found = judge(self, hello, **facts)
            if self.rival is None or isinstance(found, admission.Refusal):
                return found
            return admission.Refusal(RefusedReason.TWO_HISTORIES, "", is_declared=False)

        return broken

    return wrapped(Reception, "_judge", make)


@bug(may_overflow=True, faults={"kill_reader": 0.1, "kill_scanner": 0.3})
def counted_set_after_it_was_sent() -> Patch:
    def make(before: Any) -> Any:
        def broken(self: ReleaseTracker, actions: Any) -> Any:
            with mock.patch.object(self._order.window, "changes", self._counted):
                return before(self, actions)

        return broken

    return wrapped(ReleaseTracker, "before", make)


@bug(faults={"misconfigure": 1.0})
def volume_not_compared() -> Patch:
    def make(refusal: Any) -> Any:
        def broken(hello: Any, record: ReplicaRecord, *verdict: Any, **facts: Any) -> Any:
            return refusal(replace(hello, volume=record.volume), record, *verdict, **facts)

        return broken

    return wrapped(admission, "refusal", make)


@bug(faults={"source_power_cut": 1.0})
def slot_of_another_stream_believed() -> Patch:
    def make(place: Any) -> Any:
        return lambda hello, record: place(hello, replace(record, stream=hello.stream))

    return wrapped(verdict, "_place", make)


@bug(is_equal=True, assume_clean=True, faults={"change_roles": 1.0})
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


@bug(faults={"change_roles": 1.0})
def demoted_replica_keeps_its_condition() -> Patch:
    return _demotion_that_keeps("condition")


@bug(faults={"change_roles": 1.0})
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
    return mock.patch.object(copies, "_digest", zeros)


@bug(store="direct", audits=1.0)
def torn_first_save_taken_for_damage() -> Patch:
    return mock.patch.object(copies.Copies, "_is_first_save_torn", no)


@bug(store="direct", faults={"power_cut": 0.1})
def record_in_one_copy() -> Patch:
    def make(save: Any) -> Any:
        def broken(self: stores.RecordFile, record: ReplicaRecord, witness: bytes) -> None:
            self._generation += 1  # two at a time: always the same copy
            save(self, record, witness)

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
    def make(record_after: Any) -> Any:
        def broken(self: Any, before: ReplicaRecord) -> ReplicaRecord:
            found: ReplicaRecord = record_after(self, before)
            return replace(found, condition=Condition.CONSISTENT)

        return broken

    return wrapped(entry_format.EntryHeader, "record_after", make)
