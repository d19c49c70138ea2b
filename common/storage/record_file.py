# SPDX-License-Identifier: GPL-2.0-only
"""The file that holds a replica's record."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from bdr.common.copies import Kept
from bdr.common.errors import StateError, WrongDeviceError
from bdr.common.storage.copies_file import CopiesFile
from bdr.common.target import record as format_
from bdr.common.target.record import ReplicaRecord
from bdr.common.target.witness import Witness
from bdr.common.wire.codec import ID_BYTES

_WITNESS = "witness"
"""Beside the record's names: the encoded witness of the same moment."""


class RecordFile:
    """Opens or creates the file, exclusively.

    Attributes:
        witness: encoded, as loaded with the record.

    Raises:
        StateDiskError: it cannot be opened, or is locked by another applier.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.witness = b""
        self._file = CopiesFile(path, format_.COPIES)
        self._device = ""

    def peek(self, *, volume: str) -> ReplicaRecord | None:
        """What is remembered, whatever the device is; None for nothing.

        Raises:
            StateError: damaged, or of another volume.
        """
        record = self._decode(self._file.load())
        if record is not None:
            self._check_volume(record, volume)
        return record

    def load(
        self, *, volume: str, device_sectors: int, device: str = "", allow_foreign: bool = False
    ) -> ReplicaRecord:
        """The record of this volume, or a blank one.

        Args:
            device: the target's identity, if it has one; `save` stores it.
            allow_foreign: also load the record of a promoted or another device.

        Raises:
            WrongDeviceError: of another device, by its identity or size.
            StateError: damaged, of another volume, or of a device that was promoted.
        """
        record = self._decode(self._file.load())
        self._device = device
        if record is None:
            return ReplicaRecord(
                volume=volume,
                device_sectors=device_sectors,
                device=device,
                target=secrets.token_bytes(ID_BYTES),
            )
        self._check_volume(record, volume)
        if record.device not in ("", device) and not allow_foreign:
            raise WrongDeviceError(
                f"replica state {self.path}: found the target to be "
                f"{repr(device) if device else 'a file, or a disk without a number'}, wanted "
                f"{record.device!r}, which has the replica; name that as target, or, if the disk "
                f"was replaced, `bdr adopt {volume}` has everything compared"
            )
        if record.promoted_utc and not allow_foreign:
            raise StateError(
                f"replica state {self.path}: found its device promoted, on "
                f"{utc(record.promoted_utc)}; wanted a replica: `bdr demote {volume}` makes "
                "it one again, and discards what was written to it"
            )
        if record.device_sectors > device_sectors and not allow_foreign:
            raise WrongDeviceError(
                f"replica state {self.path}: found a replica of {record.device_sectors} sectors, "
                f"but the target has {device_sectors}; name the device that has it as target, or, "
                f"if it was replaced or shrunk, `bdr adopt {volume}` has everything compared"
            )
        return replace(record, device_sectors=device_sectors, device=self._device)

    def _check_volume(self, record: ReplicaRecord, volume: str) -> None:
        if record.volume != volume:
            raise StateError(
                f"replica state {self.path}: found that of volume {record.volume!r}, wanted that "
                f"of {volume!r}; name another state file"
            )

    def _decode(self, kept: Kept | None) -> ReplicaRecord | None:
        if kept is None:
            return None
        values = dict(kept.values)
        witness = values.pop(_WITNESS, b"")
        record = format_.of_values(values)
        if record is None or not isinstance(witness, bytes) or Witness.decode(witness) is None:
            raise StateError(
                f"replica state {self.path}: found values {', '.join(map(str, kept.values))}, "
                "wanted those of this version; go back to the version before, or move the file "
                "away: everything is compared once `bdr adopt` allows it"
            )
        self.witness = witness
        return record

    def save(self, record: ReplicaRecord, witness: bytes = b"") -> None:
        """Overwrites the older copy and syncs it.

        Args:
            witness: encoded; without it, the device is not compared with it any more.

        Raises:
            StateDiskError: the disk failed or is full; the other copy is intact.
        """
        values = format_.values_of(replace(record, device=self._device))
        self._file.save({**values, _WITNESS: witness})

    def close(self) -> None:
        """Releases the file."""
        self._file.close()


def utc(seconds: int) -> str:
    """A time of a record, in human-readable form."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
