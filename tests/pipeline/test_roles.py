# SPDX-License-Identifier: GPL-2.0-only
"""What `bdr adopt` and `bdr demote` remember, whatever the applier left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bdr.common.errors import StateError
from bdr.common.host.tables import Target
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import ANY_SOURCE, NO_JOURNAL, NO_SOURCE, NO_STREAM, ReplicaRecord
from bdr.services.cli import replica
from bdr.services.cli.adopt import adopt, adopt_first
from bdr.services.cli.main import main as bdr
from tests.pipeline.journal_host import STREAM, Host, damage, host, with_writes

__all__ = ["host"]  # a fixture

SOURCE, GENERATION = b"source-of-tests!", b"gener-01"
LEFT_BEHIND = [True, False]
"""Whether the applier ended cleanly, or was killed with its journal in use."""


def followed(host: Host, *, close: bool) -> None:
    """Leaves a replica of SOURCE behind."""
    host.known |= {"source": SOURCE, "generation": GENERATION}
    with_writes(host, close=close)


def adopted(host: Host) -> None:
    adopt("v", Target(role="target", target=str(host.target)), state=str(host.state))


def demote(host: Host, *words: str, more: str = "") -> Result:
    config = host.directory / "bdr.toml"
    config.write_text(
        f'[host]\nrun_dir = "{host.directory}/run"\n[volume.v]\nrole = "target"\n'
        f'target = "{host.target}"\nstate = "{host.state}"\n{more}'
    )
    return CliRunner().invoke(bdr, ["demote", "--config", str(config), *words, "v"])


def adopted_by_server(host: Host) -> None:
    adopt_first("v", Target(role="target", target=str(host.target)), state=str(host.state))


def remembered(host: Host) -> ReplicaRecord:
    """What the state file has, whatever device is there."""
    file = RecordFile(str(host.state))
    record = file.peek(volume="v")
    file.close()
    assert record is not None
    return record


def promoted(host: Host) -> None:
    record = remembered(host)
    file = RecordFile(str(host.state))
    file.peek(volume="v")
    file.save(replace(record, promoted_utc=1))
    file.close()


def put_in_another_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk(TargetDevice):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            self.identity = "another disk"

    monkeypatch.setattr(replica, "TargetDevice", Disk)
    file = RecordFile(str(host.state))
    record = file.load(volume="v", device_sectors=host.target.stat().st_size // 512, device="disk")
    file.save(record)
    file.close()


@pytest.mark.parametrize("close", LEFT_BEHIND)
def test_adoption_counts_however_the_applier_ended(host: Host, close: bool) -> None:
    followed(host, close=close)
    adopted(host)
    host.open().close()
    assert host.record.adopts == ANY_SOURCE
    assert (host.record.source, host.record.slot) == (SOURCE, 16)
    assert host.is_applied()


@pytest.mark.parametrize("close", LEFT_BEHIND)
def test_adoption_that_stays_on_a_command_line_counts_for_the_first_source_only(
    host: Host, close: bool
) -> None:
    adopted_by_server(host)
    host.open().close()
    assert host.record.adopts == ANY_SOURCE
    host.known = {"adopts": NO_SOURCE}
    followed(host, close=close)
    adopted_by_server(host)
    host.open().close()
    assert (host.record.source, host.record.adopts) == (SOURCE, NO_SOURCE)
    promoted(host)
    state = host.state.read_bytes()
    adopted_by_server(host)
    assert host.state.read_bytes() == state


@pytest.mark.parametrize("close", LEFT_BEHIND)
def test_adoption_of_another_disk_believes_nothing_that_was_remembered(
    host: Host, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    followed(host, close=close)
    put_in_another_disk(host, monkeypatch)
    adopted(host)
    record = remembered(host)
    assert (record.source, record.adopts) == (SOURCE, ANY_SOURCE)
    assert (record.stream, record.slot, record.is_given_up) == (NO_STREAM, 0, True)
    assert (record.device, record.journal) == ("another disk", NO_JOURNAL)


def test_another_disk_is_demoted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    followed(host, close=False)
    put_in_another_disk(host, monkeypatch)
    assert demote(host, "--give-up").exit_code == 0
    adopted(host)
    record = remembered(host)
    assert (record.source, record.stream) == (SOURCE, NO_STREAM)
    assert record.device == "another disk"


@pytest.mark.parametrize("close", LEFT_BEHIND)
def test_replica_is_given_up_by_that_word_only_and_still_knows_its_source(
    host: Host, close: bool
) -> None:
    followed(host, close=close)
    assert demote(host).exit_code == StateError.exit_code
    worker = host.open()
    assert (host.record.stream, host.record.slot) == (STREAM, 16)
    worker.close() if close else host.crash(worker)
    assert demote(host, "--give-up").exit_code == 0
    host.open().close()
    assert (host.record.stream, host.record.is_given_up) == (NO_STREAM, True)
    assert (host.record.source, host.record.generation) == (SOURCE, GENERATION)


def test_replica_whose_journal_is_damaged_is_not_given_up_without_a_word(host: Host) -> None:
    followed(host, close=False)
    for offset in (100, 4096 + 100):
        damage(host.journal, offset)
    assert demote(host).exit_code == StateError.exit_code
    Path(host.journal).unlink()
    assert demote(host).exit_code == StateError.exit_code
    assert demote(host, "--give-up").exit_code == 0
    host.open().close()
    assert host.record.is_given_up


def test_journal_in_use_is_given_up_where_none_is_configured_any_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(host.directory)
    followed(host, close=False)
    assert demote(host, "--give-up", more='journal = "none"').exit_code == 0
    assert not Path("none").exists()
    host.open(journal="none").close()
    assert (host.record.source, host.record.is_given_up) == (SOURCE, True)
    host.open().close()


def test_target_that_never_had_a_source_needs_no_word(host: Host) -> None:
    host.crash(host.open())
    assert demote(host).exit_code == 0
    host.open().close()
    assert replace(host.record, is_given_up=False).source == NO_SOURCE
