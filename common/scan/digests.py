# SPDX-License-Identifier: GPL-2.0-only
"""Digests of chunks and of their blocks, and their comparison.

A chunk whose digests are equal is equal; otherwise its blocks of 4 KiB are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from bdr.common.ring.layout import PAYLOAD_BYTES, SLOT_SECTORS
from bdr.common.scan.plan import Chunk, Flags
from bdr.common.wire.codec import DIGEST_BYTES, Buffer

BLOCK_SECTORS = SLOT_SECTORS


def digest(data: Buffer) -> bytes:
    """Digest of a whole chunk."""
    return xxhash.xxh3_128_digest(data)


def block_digests(data: Buffer, block_bytes: int = PAYLOAD_BYTES) -> bytes:
    """Digests of each block, concatenated; the last block may be shorter."""
    take = xxhash.xxh3_128_digest
    view = memoryview(data)
    return b"".join(take(view[at : at + block_bytes]) for at in range(0, len(view), block_bytes))


def differing(one: Buffer, other: Buffer) -> Flags:
    """Flags of the digests that differ; both sides have the same number."""
    pairs = (np.frombuffer(side, "<u8").reshape(-1, DIGEST_BYTES // 8) for side in (one, other))
    mine, theirs = pairs
    return np.asarray((mine != theirs).any(axis=1))


def split(chunks: Sequence[Chunk], limit: int) -> list[int]:
    """Splits chunks into requests for digests of their blocks, of at most `limit` digests each.

    Returns:
        Index of the first chunk of each request, and the end of the last one.
    """
    cuts, digests = [0], 0
    for at, chunk in enumerate(chunks):
        wanted = digests_wanted([chunk], BLOCK_SECTORS)
        if digests + wanted > limit and at > cuts[-1]:
            cuts.append(at)
            digests = 0
        digests += wanted
    return [*cuts, len(chunks)]


def digests_wanted(chunks: Sequence[Chunk], block_sectors: int) -> int:
    """Number of digests in the answer to a request for these chunks."""
    if not block_sectors:
        return len(chunks)
    return sum(-(-sectors // block_sectors) for _, sectors in chunks)
