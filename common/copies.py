# SPDX-License-Identifier: GPL-2.0-only
"""A small map of values that survives a power cut: two copies, written in turn. No I/O here.

A power cut while one copy is written leaves the other. Each copy bears a generation and a
checksum; the intact one of the higher generation counts.

Copy, `COPY_BYTES` long: 8 bytes magic, u64 generation, u32 body length, xxh3-128 of
generation and body (16 bytes), body: msgpack map; zeros. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import xxhash

from bdr.common.errors import StateError

COPY_BYTES = 4096
COPIES = 2
FILE_BYTES = COPIES * COPY_BYTES
_HEAD = struct.Struct("<8sQI16s")


@dataclass(frozen=True, slots=True)
class Kept:
    """The intact copy that counts."""

    generation: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Copies:
    """One kind of file.

    Args:
        magic: 8 bytes that every copy begins with.
        what: the file, for messages.
    """

    magic: bytes
    what: str

    def encode(self, values: Mapping[str, Any], generation: int) -> bytes:
        """One copy, padded to `COPY_BYTES`."""
        body: bytes = msgpack.packb(values, use_bin_type=True)
        head = _HEAD.pack(self.magic, generation, len(body), _digest(generation, body))
        copy = (head + body).ljust(COPY_BYTES, b"\0")
        if len(copy) != COPY_BYTES:
            raise ValueError(f"{self.what}: {len(body)} bytes do not fit into a copy")
        return copy

    def decode(self, data: bytes) -> Kept | None:
        """None where the copy is torn, blank or of another kind."""
        if len(data) != COPY_BYTES:
            return None
        magic, generation, length, digest = _HEAD.unpack_from(data)
        body = data[_HEAD.size : _HEAD.size + length]
        if magic != self.magic or len(body) != length or digest != _digest(generation, body):
            return None
        try:
            values = msgpack.unpackb(body, raw=False)
        except (ValueError, msgpack.UnpackException):
            return None
        return Kept(generation, values) if isinstance(values, dict) else None

    def choose(self, data: bytes, *, where: str) -> Kept | None:
        """What counts of a file's first `FILE_BYTES`; None where nothing was ever durable.

        Raises:
            StateError: something is there, and no copy of it is intact.
        """
        data = data.ljust(FILE_BYTES, b"\0")
        copies = [data[at : at + COPY_BYTES] for at in range(0, FILE_BYTES, COPY_BYTES)]
        intact = [kept for kept in map(self.decode, copies) if kept is not None]
        if intact:
            return max(intact, key=lambda kept: kept.generation)
        if data.strip(b"\0") and not self._is_first_save_torn(copies):
            raise StateError(
                f"{self.what} {where}: found bytes that are no intact copy of this version, "
                f"wanted two copies that begin with {self.magic.decode()}; if this file is not "
                "BDR's, name another one; if it is, its disk damaged it: move it away, and let "
                "everything be compared: `bdr adopt` on the target's host allows it"
            )
        return None

    def _is_first_save_torn(self, copies: list[bytes]) -> bool:
        """Whether the power was cut in the very first save: generation 1, into copy 1."""
        begun = copies[1][: len(self.magic)].rstrip(b"\0")
        return self.magic.startswith(begun) and not copies[0].strip(b"\0")


def place_of(generation: int) -> int:
    """Offset in the file at which the copy of a generation is written, bytes."""
    return generation % COPIES * COPY_BYTES


def _digest(generation: int, body: bytes) -> bytes:
    return xxhash.xxh3_128(generation.to_bytes(8, "little") + body).digest()
