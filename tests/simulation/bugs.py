# SPDX-License-Identifier: GPL-2.0-only
"""Known bugs, to be planted: each must be found, or the checkers do not bite.

A bug is a function that patches one rule away. `focus` changes the options that a
seed draws, where the bug needs some special world to show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from bdr.common.journal import format as journal_format
from bdr.common.journal.engine import JournalEngine
from bdr.common.ring import layout
from bdr.common.source.sequencer import Sequencer
from bdr.common.target import record as record_format
from bdr.common.target.extents import plan
from bdr.common.target.job import Apply
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.replica import Replica, ReplicaSettings
from bdr.common.wire import control as wire
from bdr.common.wire.control import Batch, Condition, Mark
from tests.simulation import parts, stores
from tests.simulation.parts import Reader
from tests.simulation.source import Gate, Write
from tests.simulation.world import World

Patch = AbstractContextManager[Any]


@dataclass(frozen=True)
class Bug:
    """One rule that is broken on purpose."""

    name: str
    plant: Callable[[], Patch]
    focus: dict[str, Any] = field(default_factory=dict)


BUGS: list[Bug] = []


def bug(**focus: Any) -> Callable[[Callable[[], Patch]], Callable[[], Patch]]:
    """Puts the function's bug on the list."""

    def enlist(plant: Callable[[], Patch]) -> Callable[[], Patch]:
        BUGS.append(Bug(plant.__name__, plant, focus))
        return plant

    return enlist


def _nothing(*_: Any) -> None:
    return


def _yes(*_: Any) -> bool:
    return True


def _no(*_: Any) -> bool:
    return False


def _zeros(*_: Any) -> bytes:
    return bytes(16)


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Replaces `owner.name` by what `make` makes of it."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


# The source.


@bug()
def release_on_send() -> Patch:
    def make(dispatch: Any) -> Any:
        def broken(self: Sequencer, *args: Any) -> None:
            dispatch(self, *args)
            self._release(self.cursor, args[-1])

        return broken

    return wrapped(Sequencer, "_dispatch", make)


@bug()
def release_on_arrival() -> Patch:
    def make(on_ack: Any) -> Any:
        return lambda self, ack, actions: on_ack(self, replace(ack, durable=ack.accepted), actions)

    return wrapped(Sequencer, "_on_ack", make)


@bug(may_overflow=True)
def gap_mark_forgotten() -> Patch:
    def make(due_mark: Any) -> Any:
        return lambda self: mark if (mark := due_mark(self)) is not Mark.RESYNC else None

    return wrapped(Sequencer, "_due_mark", make)


@bug(may_overflow=True, capacity=8, in_flight=8, source_disk_s=0.02, think_s=0.0005)
def gap_mark_only_in_stream_mode() -> Patch:
    def make(due_mark: Any) -> Any:
        def broken(self: Sequencer) -> Mark | None:
            mark: Mark | None = due_mark(self)
            is_overflow = self._status.mode is layout.Mode.OVERFLOW
            return None if mark is Mark.RESYNC and is_overflow else mark

        return broken

    return wrapped(Sequencer, "_due_mark", make)


@bug(may_overflow=True)
def ring_not_looked_at_after_resume() -> Patch:
    return mock.patch.object(Reader, "_look", _nothing)


@bug(store="direct")
def caught_up_at_once() -> Patch:
    def make(on_welcome: Any) -> Any:
        def broken(self: Sequencer, welcome: Any, actions: Any) -> None:
            on_welcome(self, welcome, actions)
            if self._consistent_at is not None:
                self._consistent_at = self.cursor

        return broken

    return wrapped(Sequencer, "_on_welcome", make)


@bug()
def welcome_slot_ignored() -> Patch:
    def make(on_welcome: Any) -> Any:
        def broken(self: Sequencer, welcome: Any, actions: Any) -> None:
            on_welcome(self, replace(welcome, slot=self._head()), actions)

        return broken

    return wrapped(Sequencer, "_on_welcome", make)


@bug(faults={"cut_data": 0.15})
def loss_never_noticed() -> Patch:
    def make(setback: Any) -> Any:
        def broken(self: Sequencer, why: str, actions: Any) -> None:
            if not any(word in why for word in ("sender", "arrive", "silent")):
                setback(self, why, actions)

        return broken

    return wrapped(Sequencer, "_setback", make)


# The capture.


@bug()
def shown_before_it_is_on_disk() -> Patch:
    def make(admit: Any) -> Any:
        def broken(self: World, write: Write) -> None:
            admit(self, write)
            if write.logged:
                self.gate.publish(write, failed=False, slots=range(write.slots))

        return broken

    return wrapped(World, "_admit", make)


@bug(may_overflow=True)
def missed_write_not_marked() -> Patch:
    return mock.patch.object(Gate, "mark", _nothing)


# The target.


@bug()
def acknowledge_before_it_is_durable() -> Patch:
    def broken(self: Replica, session: Any, actions: Any) -> None:
        number = session.next_number - 1
        actions.append(
            parts.replica.Send(session.peer, wire.Ack(self.record.epoch, number, number))
        )

    return mock.patch.object(Replica, "_acknowledge", broken)


@bug(faults={"power_cut": 0.15, "cut_control": 0.1})
def welcome_before_it_is_durable() -> Patch:
    def make(open_session: Any) -> Any:
        def broken(self: Replica, peer: bytes, hello: Any, actions: Any) -> None:
            open_session(self, peer, hello, actions)
            assert self._session is not None
            self._session.is_open = True
            welcome = wire.Welcome(
                hello.attempt, self.record.epoch, 1, self.record.slot, self.record.condition
            )
            actions.append(parts.replica.Send(peer, welcome))

        return broken

    return wrapped(Replica, "_open_session", make)


def _accept_anyway(self: Replica, batch: Batch, actions: Any, **changes: Any) -> None:
    """Makes a job of it without a look at its place."""
    assert self._session is not None
    extents = plan(batch.headers, batch.payload, device_sectors=self.record.device_sectors)
    record = replace(self.record, **changes)
    job = self._job(record, extents=extents, headers=batch.headers, payload=batch.payload)
    actions.append(job)


@bug(senders=3)
def apply_out_of_order() -> Patch:
    def broken(self: Replica, session: Any, batch: Batch, actions: Any) -> None:
        # Applied when it comes; counted when its turn comes, which then is too late.
        _accept_anyway(self, batch, actions)
        self._reorder[batch.header.number] = batch
        self._reorder_bytes += batch.size

    return mock.patch.object(Replica, "_wait", broken)


@bug(senders=3)
def skip_a_gap() -> Patch:
    def broken(self: Replica, session: Any, batch: Batch, actions: Any) -> None:
        _accept_anyway(self, batch, actions, slot=batch.header.end)
        self._jobs.append((self._last_job, batch.header.number))
        session.next_number = batch.header.number + 1
        self._forget_waiting()

    return mock.patch.object(Replica, "_wait", broken)


@bug(duplicates=0.05)
def apply_a_duplicate_again() -> Patch:
    def make(on_batch: Any) -> Any:
        def broken(self: Replica, batch: Batch, actions: Any) -> None:
            session = self._session
            if (
                session is not None
                and session.is_open
                and batch.header.epoch == self.record.epoch
                and batch.header.number < session.next_number
            ):
                _accept_anyway(self, batch, actions)
            else:
                on_batch(self, batch, actions)

        return broken

    return wrapped(Replica, "_on_batch", make)


@bug(flips=0.05)
def digest_ignored() -> Patch:
    return mock.patch.object(Batch, "is_intact", _yes)


@bug(duplicates=0.02)
def epoch_ignored() -> Patch:
    def make(on_batch: Any) -> Any:
        def broken(self: Replica, batch: Batch, actions: Any) -> None:
            header = replace(batch.header, epoch=self.record.epoch)
            on_batch(self, replace(batch, header=header), actions)

        return broken

    return wrapped(Replica, "_on_batch", make)


@bug(duplicates=0.2)
def late_hello_taken_at_its_word() -> Patch:
    def make(on_hello: Any) -> Any:
        def broken(self: Replica, peer: bytes, hello: Any, actions: Any) -> None:
            if hello.head < self.record.slot:
                self._open_session(peer, hello, actions)
            else:
                on_hello(self, peer, hello, actions)

        return broken

    return wrapped(Replica, "_on_hello", make)


@bug(faults={"stranger": 0.2, "kill_applier": 0.3}, replica=ReplicaSettings(source_silence_s=1e6))
def second_source_let_in_after_a_restart() -> Patch:
    def make(handle: Any) -> Any:
        def broken(self: Replica, event: Any) -> Any:
            self._heard_s = -1e9 if self._session is None else self._heard_s
            return handle(self, event)

        return broken

    return wrapped(Replica, "handle", make)


@bug()
def epoch_not_advanced() -> Patch:
    def make(job: Any) -> Any:
        def broken(self: Replica, record: ReplicaRecord, **rest: Any) -> Apply:
            return job(self, replace(record, epoch=1), **rest)  # type: ignore[no-any-return]

        return broken

    return wrapped(Replica, "_job", make)


# The state file.


@bug(store="direct")
def crash_taken_for_a_clean_stop() -> Patch:
    return mock.patch.object(ReplicaRecord, "at_start", lambda self: self)


@bug(store="direct")
def clean_flag_not_cleared() -> Patch:
    def make(job: Any) -> Any:
        def broken(self: Replica, record: ReplicaRecord, **rest: Any) -> Apply:
            return job(self, replace(record, clean=True), **rest)  # type: ignore[no-any-return]

        return broken

    return wrapped(Replica, "_job", make)


@bug(store="direct")
def record_written_before_the_device_is_synced() -> Patch:
    def broken(self: stores.DirectStore, record: ReplicaRecord) -> None:
        self._record_file.save(record)

    return mock.patch.object(stores.DirectStore, "sync", broken)


@bug(store="direct", faults={"power_cut": 0.1})
def torn_record_trusted() -> Patch:
    return mock.patch.object(record_format, "_digest", _zeros)


@bug(store="direct", faults={"power_cut": 0.05})
def torn_first_save_taken_for_damage() -> Patch:
    return mock.patch.object(record_format, "_is_first_save_torn", _no)


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
    return mock.patch.object(stores.RecordFile, "_settle", _nothing)


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
        def broken(self: JournalEngine, job: Apply) -> None:
            append(self, job)
            self._durable = self._head

        return broken

    return wrapped(JournalEngine, "append", make)


@bug(store="journal", audits=1.0)
def checkpoint_before_the_device_is_synced() -> Patch:
    return mock.patch.object(stores.Device, "sync", _nothing)


@bug(store="journal", audits=1.0, faults={"power_cut": 0.2})
def torn_entry_trusted() -> Patch:
    return mock.patch.object(journal_format, "body_checksum", _zeros)


@bug(store="journal", faults={"power_cut": 0.1, "stop_applier": 0.2})
def superblock_in_one_copy() -> Patch:
    return mock.patch.object(journal_format.Superblock, "offset", 0)


@bug(store="journal", log_entries=2, capacity=8, audits=1.0, disk_s=0.01, wire_s=0.0002)
def journal_overwrites_what_is_not_applied() -> Patch:
    return mock.patch.object(JournalEngine, "fits", _yes)


@bug(store="journal", may_overflow=True, think_s=0.0005, faults={"power_cut": 0.1})
def journal_forgets_the_condition() -> Patch:
    def make(record: Any) -> Any:
        def broken(self: Any, before: ReplicaRecord) -> ReplicaRecord:
            return replace(record(self, before), condition=Condition.CONSISTENT)

        return broken

    return wrapped(journal_format.EntryHeader, "record", make)
