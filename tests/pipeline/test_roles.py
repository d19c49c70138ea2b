# SPDX-License-Identifier: GPL-2.0-only
"""What `bdr adopt` remembers, whatever the applier left behind."""

from __future__ import annotations

import pytest

from bdr.common.errors import StateError
from bdr.common.host.tables import Target
from bdr.common.storage.record_file import RecordFile
from bdr.common.storage.target_device import TargetDevice
from bdr.common.target.record import ANY_SOURCE
from bdr.services.cli import replica
from bdr.services.cli.adopt import adopt
from tests.pipeline.journal_host import Host, host, with_writes

__all__ = ["host"]  # a fixture

SOURCE, GENERATION = b"source-of-tests!", b"gener-01"
LEFT_BEHIND = [True, False]
"""Whether the applier ended cleanly, or was killed with its journal in use."""


def followed(host: Host, *, close: bool) -> None:
    """Leaves a replica of SOURCE behind."""
    host.known = {"source": SOURCE, "generation": GENERATION}
    with_writes(host, close=close)


def adopted(host: Host) -> None:
    adopt("v", Target(role="target", target=str(host.target)), state=str(host.state))


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
def test_adoption_does_not_make_another_disk_the_replica(
    host: Host, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    followed(host, close=close)
    put_in_another_disk(host, monkeypatch)
    before = host.state.read_bytes()
    with pytest.raises(StateError, match="--give-up"):
        adopted(host)
    assert host.state.read_bytes() == before
