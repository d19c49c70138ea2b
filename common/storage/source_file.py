# SPDX-License-Identifier: GPL-2.0-only
"""The file that holds a source's record."""

from __future__ import annotations

import secrets
import threading
from dataclasses import replace

from bdr.common.source import identity
from bdr.common.source.identity import Findings, SourceRecord
from bdr.common.storage.copies_file import CopiesFile
from bdr.common.wire.codec import GENERATION_BYTES, ID_BYTES


class SourceFile:
    """Opens or creates the file, for this process alone. `save_...` may be called by any thread.

    Raises:
        StateDiskError: it cannot be opened, or another process has it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = CopiesFile(path, identity.COPIES)
        self._record: SourceRecord
        self._saving = threading.Lock()
        """The copies are written in turn, and each has the whole record."""

    def begin(self, *, volume: str, device_sectors: int, device: str) -> SourceRecord:
        """The record for a process that begins; it is durable.

        Args:
            device: what the captured device calls itself; empty if it does not.

        Raises:
            StateError: the file is damaged, or of another volume or device.
            StateDiskError: the disk failed or is full.
        """
        found = identity.of_kept(self._file.load(), where=self.path)
        if found is None:
            found = SourceRecord(
                secrets.token_bytes(ID_BYTES),
                volume,
                device_sectors,
                generations=(_new_generation(),),
            )
        self._save(
            found.bound_to(
                volume=volume, device_sectors=device_sectors, device=device, where=self.path
            )
        )
        return self._record

    def save_new_generation(self) -> bytes:
        """Makes a new identifier, and makes it durable.

        Raises:
            StateDiskError: the disk failed or is full.
        """
        generation = _new_generation()
        with self._saving:
            self._save(self._record.with_generation(generation))
        return generation

    def save_assumption(self, target: bytes) -> None:
        """Remembers that "both devices are equal" was used for this target.

        Raises:
            StateDiskError: the disk failed or is full.
        """
        with self._saving:
            self._save(replace(self._record, assumed_for=target))

    def save_findings(self, findings: Findings) -> None:
        """Remembers what verifications have found.

        Raises:
            StateDiskError: the disk failed or is full.
        """
        with self._saving:
            self._save(replace(self._record, findings=findings))

    def _save(self, record: SourceRecord) -> None:
        self._file.save(record.values())
        self._record = record

    def close(self) -> None:
        """Releases the file."""
        self._file.close()


def _new_generation() -> bytes:
    return secrets.token_bytes(GENERATION_BYTES)
