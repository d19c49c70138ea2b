# SPDX-License-Identifier: GPL-2.0-only
"""Whether a device is the one that a record describes, at its moment. No I/O here.

Judged when an applier starts, before anything is replayed. A kept sector must hold what it
held at the checkpoint, or what a journal entry behind it wrote there: a power cut leaves
either. It may also leave a torn sector, which begins as one that was being written; that is
replaced when the journal is replayed, and shows nothing.

====================================  =============================================
most fixed places with data differ    another disk: refused, nothing is written to it
anything else differs, or cannot      the disk, or the state file, is of another
be read                               moment: everything is compared, and nothing of
                                      the journal is replayed
nothing differs                       it is the replica of the record
====================================  =============================================

Not judged is a device that was promoted, and without a journal one whose applier did not
stop cleanly: its sectors may have any later version, which only its source knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from bdr.common.errors import DeviceError
from bdr.common.ring.layout import SECTOR_BYTES
from bdr.common.target.extents import Extents
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import ZEROS, Device, Witness, digest_of, written
from bdr.common.wire.codec import Buffer
from bdr.common.wire.condition import Condition


class Outcome(Enum):
    """What a device turned out to be."""

    SAME = "the replica of the record"
    OTHER_MOMENT = "of another moment than its record"
    OTHER_DISK = "another disk than the one that has the replica"


class Finding(Enum):
    """What a kept sector turned out to be."""

    FITS = "as it was, or as the journal writes it"
    NO_DATA = "the same, but zeros, as on any blank device"
    TORN = "torn while it was written, or as good as that"
    DIFFERS = "something else"
    UNREADABLE = "unknown: it could not be read"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the kept sectors turned out to be."""

    fixed: tuple[Finding, ...] = ()
    recent: tuple[Finding, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """See the module's text."""
        if self.fixed.count(Finding.DIFFERS) > self.fixed.count(Finding.FITS):
            return Outcome.OTHER_DISK
        findings = {*self.fixed, *self.recent}
        if Finding.DIFFERS in findings or Finding.UNREADABLE in findings:
            return Outcome.OTHER_MOMENT
        return Outcome.SAME


class Versions:
    """What entries behind the checkpoint write to the kept sectors.

    Args:
        witness: of the checkpoint.
    """

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self._sectors = witness.sectors
        self._digests: dict[int, set[int]] = {}
        self._first_bytes: dict[int, set[int]] = {}

    def add(self, extents: Extents, payload: Buffer) -> None:
        """The next entry's."""
        for sector, content in written(self._sectors, extents, payload):
            self._digests.setdefault(sector, set()).add(digest_of(content))
            self._first_bytes.setdefault(sector, set()).add(memoryview(content)[0])

    def evidence(self, found: Mapping[int, bytes | None]) -> Evidence:
        """What the kept sectors are.

        Args:
            found: sector to its content, None where it cannot be read.
        """
        return Evidence(
            tuple(self._findings(found, self.witness.fixed)),
            tuple(self._findings(found, self.witness.recent)),
        )

    def _findings(
        self, found: Mapping[int, bytes | None], kept: Mapping[int, int]
    ) -> Iterable[Finding]:
        for sector, digest in kept.items():
            yield self._finding(sector, digest, found[sector])

    def _finding(self, sector: int, kept: int, content: bytes | None) -> Finding:
        if content is None:
            return Finding.UNREADABLE
        digest = digest_of(content)
        if digest == kept or digest in self._digests.get(sector, ()):
            return Finding.NO_DATA if digest == ZEROS else Finding.FITS
        is_begun = content[0] in self._first_bytes.get(sector, ())
        return Finding.TORN if is_begun else Finding.DIFFERS


def contents(device: Device, witness: Witness) -> dict[int, bytes | None]:
    """What the device holds in the kept sectors; None for one that cannot be read."""
    found: dict[int, bytes | None] = {}
    for sector in witness.sectors:
        buffer = bytearray(SECTOR_BYTES)
        try:
            device.read_into(memoryview(buffer), sector * SECTOR_BYTES)
        except DeviceError:
            found[sector] = None
        else:
            found[sector] = bytes(buffer)
    return found


def of_another_moment(record: ReplicaRecord) -> ReplicaRecord:
    """The record of a device that is not as it says: its position is not believed."""
    return record.without_position(condition=Condition.UNKNOWN, since_utc=0)
