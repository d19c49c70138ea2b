# SPDX-License-Identifier: GPL-2.0-only
"""What each NBD request does to the file, and how the ring records it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bdr.common.capture.nbd import NbdCapture
from bdr.common.ring.layout import Op
from bdr.common.ring.slots import decode, published_count
from tests.nbdkit.client import FAST_ZERO, FLUSH, FUA, NO_HOLE, WRITE, NbdClient
from tests.nbdkit.server import Replay, Server

MIB = 1 << 20
Serve = Callable[..., Server]


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("writes=4096")


def slots(capture: NbdCapture) -> list[tuple[Op, int, int, bool, bool]]:
    """(op, first sector, sectors, FUA, last) of every published slot."""
    count = published_count(capture.headers, cursor=0, limit=capture.info.capacity)
    columns = decode(np.array(capture.headers[:count]))
    return [
        (Op(int(op)), int(sector), int(sectors), bool(fua), bool(last))
        for op, sector, sectors, fua, last in zip(
            columns.op, columns.sector, columns.sectors, columns.fua, columns.last, strict=True
        )
    ]


def length_in(capture: NbdCapture, slot: int) -> int:
    return int.from_bytes(capture.payload(slot, 1)[:8], "little")


def test_info_describes_the_export(server: Server, client: NbdClient, capture: NbdCapture) -> None:
    assert client.size == 16 * MIB
    assert client.block_sizes[:2] == (512, 4096)
    assert capture.info.device_sectors == 16 * MIB // 512
    assert capture.info.capacity == 4096
    assert capture.info.region_sectors == 128
    assert capture.info.regions == 256
    assert capture.info.underlying == str(server.file)


def test_each_start_has_its_own_stream(serve: Serve) -> None:
    streams = set()
    for _ in range(2):
        server = serve()
        observer = server.observer()
        streams.add(observer.info.stream)
        observer.close()
        server.stop()
    assert len(streams) == 2


def test_write_of_one_sector_takes_one_slot(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    data = os.urandom(512)
    client.write(7 * 512, data)
    assert slots(capture) == [(Op.WRITE, 7, 1, False, True)]
    assert bytes(capture.payload(0, 1)[:512]) == data
    assert server.file.read_bytes()[7 * 512 : 8 * 512] == data
    assert client.read(7 * 512, 512) == data


def test_write_is_split_into_slots_of_eight_sectors(client: NbdClient, capture: NbdCapture) -> None:
    data = os.urandom(18 * 512)
    client.write(3 * 512, data)
    assert slots(capture) == [
        (Op.WRITE, 3, 8, False, False),
        (Op.WRITE, 11, 8, False, False),
        (Op.WRITE, 19, 2, False, True),
    ]
    assert bytes(capture.payload(0, 3)[: len(data)]) == data


def test_write_over_one_mebibyte_is_recorded_as_several(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    data = os.urandom(2 * MIB + 4096)
    client.write(0, data, flags=FUA)
    found = slots(capture)
    assert len(found) == 513
    assert [i for i, slot in enumerate(found) if slot[4]] == [255, 511, 512]
    assert [i for i, slot in enumerate(found) if slot[3]] == [512]
    assert bytes(capture.payload(0, 513)) == data
    assert server.file.read_bytes()[: len(data)] == data


def test_flush_and_fua_are_recorded(client: NbdClient, capture: NbdCapture) -> None:
    client.write(0, bytes(4096), flags=FUA)
    client.flush()
    assert slots(capture) == [(Op.WRITE, 0, 8, True, True), (Op.FLUSH, 0, 1, False, True)]


def test_trim_reads_as_zeros_and_frees_space(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    client.write(0, b"x" * MIB)
    client.flush()
    before = server.file.stat().st_blocks
    client.trim(4096, MIB - 8192, flags=FUA)
    assert client.read(4096, MIB - 8192) == bytes(MIB - 8192)
    assert server.file.stat().st_blocks < before
    assert server.file.stat().st_size == 16 * MIB
    assert slots(capture)[-1] == (Op.DISCARD, 8, 8, True, True)
    assert length_in(capture, 257) == (MIB - 8192) // 512


@pytest.mark.parametrize("flags", [0, NO_HOLE, FUA | NO_HOLE])
def test_zero_reads_as_zeros(
    server: Server, client: NbdClient, capture: NbdCapture, flags: int
) -> None:
    client.write(0, b"x" * MIB)
    client.flush()
    before = server.file.stat().st_blocks
    client.zero(512, MIB - 1024, flags=flags)
    assert client.read(0, MIB) == b"x" * 512 + bytes(MIB - 1024) + b"x" * 512
    after = server.file.stat().st_blocks
    assert after >= before if flags & NO_HOLE else after < before
    assert slots(capture)[-1] == (Op.WRITE_ZEROES, 1, 8, bool(flags & FUA), True)
    assert length_in(capture, 257) == (MIB - 1024) // 512


def test_trim_over_four_gibibytes_less_one_sector_takes_one_slot(serve: Serve, disk: Path) -> None:
    os.truncate(disk, 8 << 30)
    server = serve()
    length = (4 << 30) - 512
    capture = server.consumer()
    with NbdClient(server.nbd) as client:
        client.trim(512, length)
    assert slots(capture) == [(Op.DISCARD, 1, 8, False, True)]
    assert length_in(capture, 0) == length // 512
    capture.close()


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 511), (256, 256), (513, 1024)])
def test_unaligned_request_is_refused_and_unrecorded(
    client: NbdClient, capture: NbdCapture, offset: int, length: int
) -> None:
    attempts: tuple[Callable[[], None], ...] = (
        lambda: client.write(offset, b"x" * length),
        lambda: client.trim(offset, length),
        lambda: client.zero(offset, length),
    )
    for attempt in attempts:
        with pytest.raises(OSError, match="NBD command") as caught:
            attempt()
        assert caught.value.errno == errno.EINVAL
    assert capture.status().head == 0
    assert client.read(0, 4096) == bytes(4096)


def test_request_beyond_the_end_is_refused(client: NbdClient, capture: NbdCapture) -> None:
    with pytest.raises(OSError, match="NBD command"):
        client.write(16 * MIB - 512, bytes(1024))
    assert capture.status().head == 0


def test_file_without_zero_range_gets_zeros_written(tmp_path: Path) -> None:
    """tmpfs punches holes, but has no ZERO_RANGE: the slow way, and no fast zero."""
    disk = Path("/dev/shm") / f"bdr-test-{os.getpid()}-{tmp_path.name}"
    try:
        with disk.open("wb") as file:
            file.write(b"x" * MIB)
        with Server(tmp_path, disk) as server, NbdClient(server.nbd) as client:
            capture = server.consumer()
            with pytest.raises(OSError, match="NBD command") as caught:
                client.zero(0, 65536, flags=NO_HOLE | FAST_ZERO)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert client.read(0, 65536) == b"x" * 65536
            # A refusal changed nothing: whatever slot it took is empty, no region dirty.
            status = capture.status()
            assert (status.active_regions, status.failed_writes) == (0, 0)
            assert {op for op, *_ in slots(capture)} <= {Op.NOP}
            client.zero(0, 65536, flags=FAST_ZERO)
            client.zero(65536, 700 * 1024, flags=NO_HOLE)
            # Known by now: refused without a slot.
            head = capture.status().head
            with pytest.raises(OSError, match="NBD command"):
                client.zero(0, 65536, flags=NO_HOLE | FAST_ZERO)
            assert capture.status().head == head
            replay = Replay(capture, bytearray(b"x" * MIB))
            replay.drain()
            assert replay.image == client.read(0, MIB) == disk.read_bytes()
            capture.close()
    finally:
        disk.unlink(missing_ok=True)


def test_read_only_server_takes_no_write(serve: Serve) -> None:
    server = serve(options=("-r",))
    with NbdClient(server.nbd) as client, pytest.raises(OSError, match="NBD command") as caught:
        client.write(0, bytes(512))
    assert caught.value.errno == errno.EPERM


def test_slots_of_a_flush_follow_the_writes_that_completed_before_it(
    server: Server, client: NbdClient, capture: NbdCapture
) -> None:
    """Also across connections, which is what multi-conn promises."""
    with NbdClient(server.nbd) as other:
        for round_number in range(50):
            cookies = [client.submit(WRITE, i * 4096, data=bytes(4096)) for i in range(4)]
            for cookie in cookies:
                assert client.wait(cookie).error == 0
            assert other.wait(other.submit(FLUSH)).error == 0
            ops = [op for op, *_ in slots(capture)]
            assert ops[round_number * 5 :] == [Op.WRITE] * 4 + [Op.FLUSH]
