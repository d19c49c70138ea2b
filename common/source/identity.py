# SPDX-License-Identifier: GPL-2.0-only
"""What a source remembers of itself on its own disk. No I/O here.

The **source id** is made once for a captured device and bound to it: targets keep other
sources out by it, whatever their volumes are called. For its **generation identifiers** see
`generation`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bdr.common.copies import Copies, Kept
from bdr.common.errors import StateError
from bdr.common.wire.codec import GENERATIONS, GENERATIONS_MAX, ID_BYTES, RANGES, U64, Range

NO_TARGET = bytes(ID_BYTES)
FINDINGS_RANGES_MAX = 64
COPIES = Copies(b"BDRSRC01", "source state")


@dataclass(frozen=True, slots=True)
class Findings:
    """What verifications have found; see `findings`."""

    verified_utc: int = 0
    """When the last one of the whole device ended: seconds since 1970; 0: there was none."""
    compared_bytes: int = 0
    """What it compared."""
    ignored_bytes: int = 0
    """Of these, what was in use, marked or unreadable: nothing is known of it."""
    differing_bytes: int = 0
    """What it found to differ."""
    unrepaired: tuple[Range, ...] = ()
    """What any has found to differ and is not repaired; at most `FINDINGS_RANGES_MAX`."""

    def values(self) -> dict[str, Any]:
        """For a `Copies`; the names are those on disk."""
        return {
            "verified_utc": self.verified_utc,
            "compared_bytes": self.compared_bytes,
            "ignored_bytes": self.ignored_bytes,
            "differing_bytes": self.differing_bytes,
            "unrepaired": RANGES.put(self.unrepaired),
        }


_FINDINGS = dict.fromkeys(Findings().values(), U64) | {"unrepaired": RANGES}


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Who this source is."""

    source: bytes
    """Its id: `ID_BYTES` random bytes."""
    volume: str
    device_sectors: int
    device: str = ""
    """What the captured device calls itself; empty where it has no such name."""
    generations: tuple[bytes, ...] = ()
    """Its generation identifiers, newest first, at most `GENERATIONS_MAX`."""
    assumed_for: bytes = NO_TARGET
    """The target for which "both devices are equal" was used: it counts once."""
    findings: Findings = Findings()

    def bound_to(
        self, *, volume: str, device_sectors: int, device: str, where: str
    ) -> SourceRecord:
        """The record for the device that is captured now, which must be the one of before.

        Args:
            where: the record's file, for messages.

        Raises:
            StateError: it is another one.
        """
        if self.volume != volume:
            raise StateError(
                f"source state {where}: found that of volume {self.volume!r}, wanted that of "
                f"{volume!r}; name another state file"
            )
        if self.device and device != self.device:
            raise StateError(
                f"source state {where}: found the captured device to be {device or 'unnamed'!r}, "
                f"wanted {self.device!r}; if the disks were swapped, swap them back; if this one "
                f"is to be replicated instead, move {where} away: targets of the one before will "
                "want `bdr adopt`"
            )
        if device_sectors < self.device_sectors:
            raise StateError(
                f"source state {where}: found a captured device of {device_sectors} sectors, "
                f"wanted at least {self.device_sectors}; is it the right one? If it is, move "
                f"{where} away: its targets will want `bdr adopt`"
            )
        return replace(self, device_sectors=device_sectors, device=device)

    def with_generation(self, generation: bytes) -> SourceRecord:
        """With a new identifier; the oldest goes."""
        return replace(self, generations=(generation, *self.generations)[:GENERATIONS_MAX])

    def values(self) -> dict[str, Any]:
        """For a `Copies`; the names are those on disk."""
        return {
            "source": self.source,
            "volume": self.volume,
            "device_sectors": self.device_sectors,
            "device": self.device,
            "generations": b"".join(self.generations),
            "assumed_for": self.assumed_for,
            "findings": self.findings.values(),
        }


def of_kept(kept: Kept | None, *, where: str) -> SourceRecord | None:
    """The record that a file has; None where it has none.

    Raises:
        StateError: of another version.
    """
    if kept is None:
        return None
    try:
        generations = GENERATIONS.make(kept.values["generations"])
        findings = _findings(kept.values["findings"])
        record = SourceRecord(**kept.values | {"generations": generations, "findings": findings})
        is_good = len(record.source) == len(record.assumed_for) == ID_BYTES
        is_good &= GENERATIONS.accepts(kept.values["generations"])
    except (TypeError, KeyError, ValueError):
        is_good = False
    if not is_good:
        raise StateError(
            f"source state {where}: found values {', '.join(sorted(map(str, kept.values)))}, "
            f"wanted those of this version; move {where} away, or go back to the version before"
        )
    return record


def _findings(values: Any) -> Findings:
    """Raises ValueError, KeyError or TypeError where they are none."""
    if not all(its.accepts(values[name]) for name, its in _FINDINGS.items()):
        raise ValueError(values)
    return Findings(**values | {"unrepaired": tuple(RANGES.make(values["unrepaired"]))})
