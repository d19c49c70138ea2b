# SPDX-License-Identifier: GPL-2.0-only
"""What is wrong is refused with a clear error, and disturbs nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace

import msgpack
import zmq

from bdr.common.wire.batch import BatchHeader, BatchKind, Marker, encode_batch
from bdr.common.wire.control import Message, Refused, decode_message
from bdr.common.wire.reasons import RefusedReason
from deploy.command import run
from deploy.nbd_source import loop_device, mounted, nbd_server
from tests.pipeline.pair import DEADLINE_S, MIB, Pair

JUNK = random.Random(7).randbytes(4096)


def test_target_smaller_than_source_is_refused(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(size=64 * MIB, target_size=32 * MIB)
    pair.client.write(0, JUNK)
    pair.start()
    code, why = pair.ended_with("v-reader")
    assert code == 71
    assert f"found a source of {64 * MIB // 512} sectors" in why
    assert f"wanted at most {32 * MIB // 512}" in why
    assert not pair.target.read_bytes().strip(b"\0")
    assert pair.stack.pid("v-applier")


def test_another_volumes_name_is_refused(pair: Pair) -> None:
    with stranger(pair) as (programs, _):
        pair.stack.add(programs("w"))
        code, why = pair.ended_with("w-reader")
    assert code == 71
    assert "found volume 'w', wanted 'v'" in why
    still_replicates(pair)


def test_a_second_source_is_refused_while_the_first_lives(pair: Pair) -> None:
    with stranger(pair) as (programs, ring):
        renamed = [replace(program, volume="other") for program in programs("v")]
        pair.stack.add(renamed)
        pair.wait_logged("other-reader", "the target refused for now")
        assert "UNRELATED" in pair.stack.log("v-applier")
        still_replicates(pair)
        for program in renamed:
            pair.stack.stop(program.name)
    assert ring


def test_a_second_reader_of_one_capture_is_refused(pair: Pair) -> None:
    second = replace(pair.source_with(run_dir="elsewhere")[0], volume="other")
    pair.stack.add([second])
    code, why = pair.ended_with(second.name)
    assert code == 67
    assert "consumer" in why
    still_replicates(pair)


def test_a_second_reader_of_one_run_directory_is_refused(pair: Pair) -> None:
    with stranger(pair) as (_, ring):
        second = replace(pair.source_with(chardev=ring)[0], volume="other")
        pair.stack.add([second])
        code, why = pair.ended_with(second.name)
    assert code == 69
    assert "locked by another reader" in why
    still_replicates(pair)


def test_missing_target_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.stack.add([pair.target_with(target="/nonexistent/device")])
    code, why = pair.ended_with("v-applier")
    assert code == 66
    assert "/nonexistent/device" in why
    assert "No such file" in why


def test_mounted_target_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    run("mkfs.ext4", "-q", str(pair.target))
    with (
        loop_device(str(pair.target)) as device,
        mounted(device, pair.directory / "mount"),
    ):
        pair.stack.add([pair.target_with(target=device)])
        code, why = pair.ended_with("v-applier")
    assert code == 66
    assert "in use (mounted, or held by another program)" in why


def test_exclusively_opened_target_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    with loop_device(str(pair.target)) as device:
        holder = os.open(device, os.O_RDWR | os.O_EXCL)
        try:
            pair.stack.add([pair.target_with(target=device)])
            code, why = pair.ended_with("v-applier")
        finally:
            os.close(holder)
    assert code == 66
    assert "in use" in why


def test_target_file_behind_a_loop_device_ends_the_applier(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair()
    with loop_device(str(pair.target)) as device:
        pair.stack.add([pair.target_program])
        code, why = pair.ended_with("v-applier")
    assert code == 66
    assert f"found it behind {device}" in why


def test_target_of_another_applier_ends_the_second(pair: Pair) -> None:
    second = replace(pair.target_with(state="state2"), volume="other")
    pair.stack.add([second])
    code, why = pair.ended_with(second.name)
    assert code == 66
    assert "locked by another applier" in why
    still_replicates(pair)


def test_port_in_use_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    for port in (pair.port, pair.port + 1):
        with socket.create_server(("127.0.0.1", port)):
            program = replace(pair.target_program, volume=f"port{port}")
            pair.stack.add([program])
            code, why = pair.ended_with(program.name)
        assert code == 69
        assert f":{port}: found it in use" in why


def test_state_of_another_volume_ends_the_applier(pair: Pair) -> None:
    pair.stack.stop("v-applier")
    program = pair.target_with(volume="w")
    pair.stack.add([program])
    code, why = pair.ended_with(program.name)
    assert code == 72
    assert "found that of volume 'v'" in why


def test_damaged_state_ends_the_applier(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.state.write_bytes(JUNK * 2)
    pair.stack.add([pair.target_program])
    code, why = pair.ended_with("v-applier")
    assert code == 72
    assert "no intact copy" in why


def test_another_protocol_version_is_refused(pair: Pair) -> None:
    hello = {"type": "hello", "protocol": 99, "attempt": 7, "something": "new"}
    answer = ask(pair, msgpack.packb(hello))
    assert isinstance(answer, Refused)
    assert answer.attempt == 7
    assert answer.reason is RefusedReason.PROTOCOL
    assert "found protocol version 99, wanted 2" in answer.text
    still_replicates(pair)


def test_junk_on_either_port_is_dropped_and_disturbs_nothing(pair: Pair) -> None:
    before = pair.target.read_bytes()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for port, kind in ((pair.port, zmq.PUSH), (pair.port + 1, zmq.DEALER)):
            stranger_socket = context.socket(kind)
            stranger_socket.set(zmq.LINGER, -1)
            stranger_socket.connect(f"tcp://127.0.0.1:{port}")
            for frames in junk_messages():
                stranger_socket.send_multipart(frames)
            stranger_socket.close()
            for junk in (JUNK, b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" + bytes(8) + b"\x7f"):
                with (
                    socket.create_connection(("127.0.0.1", port)) as raw,
                    contextlib.suppress(OSError),
                ):
                    raw.sendall(junk)
        pair.wait_logged("v-applier", "event=bad-message")
    finally:
        context.destroy(linger=2000)
    assert pair.target.read_bytes() == before
    still_replicates(pair)


def test_an_oversized_frame_is_not_taken_in(pair: Pair) -> None:
    from tests.bench.rig import resident_bytes  # noqa: PLC0415

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for port, kind in ((pair.port, zmq.PUSH), (pair.port + 1, zmq.DEALER)):
            sender = context.socket(kind)
            sender.set(zmq.LINGER, 0)
            monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            sender.connect(f"tcp://127.0.0.1:{port}")
            sender.send(bytes(256 * MIB))
            assert monitor.poll(int(DEADLINE_S * 1000)), "the connection was not closed"
            sender.disable_monitor()
            monitor.close()
            sender.close()
    finally:
        context.destroy(linger=0)
    assert resident_bytes(pair.stack.pid("v-applier"))["VmHWM"] < 150 * MIB
    still_replicates(pair)


def test_batches_of_a_stranger_are_dropped_unread(pair: Pair) -> None:
    before = pair.target.read_bytes()
    header = BatchHeader(
        kind=BatchKind.LIVE,
        marker=Marker.NONE,
        stream=bytes(16),
        epoch=1,
        number=1,
        first=0,
        count=1,
    )
    slot = (1 << 51 | 1 << 55).to_bytes(8, "little")
    forged = [
        replace(header, stream=pair.capture.info.stream, epoch=99),
        replace(header, stream=pair.capture.info.stream, number=1 << 40),
        header,
    ]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        push = context.socket(zmq.PUSH)
        push.connect(f"tcp://127.0.0.1:{pair.port}")
        for each in forged:
            push.send_multipart([encode_batch(each, slot, JUNK), slot, JUNK])
        push.close(linger=2000)
    finally:
        context.term()
    pair.scribble(random.Random(5), 50)
    pair.settle()
    assert before != pair.target.read_bytes()
    assert pair.becomes_identical()


def junk_messages() -> list[list[bytes]]:
    """Messages that are none, of every shape."""
    map_ = msgpack.packb({"type": "hello", "protocol": 2})
    return [
        [b""],
        [JUNK],
        [map_],
        [msgpack.packb([1, 2, 3])],
        [msgpack.packb([msgpack.packb([2, 0, 0, bytes(16), 1, 1, 0, 1]), bytes(16)]), b"", b""],
        [msgpack.packb([msgpack.packb([3] * 8), bytes(16)]), bytes(8), bytes(4096)],
        [b"\x93" * 200, JUNK, JUNK],
        [JUNK] * 50,
        [b"\xc1", b"\xdf\xff\xff\xff\xff"],
    ]


def ask(pair: Pair, request: bytes) -> Message:
    """Sends one control message and returns the answer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{pair.port + 1}")
        dealer.send(request)
        assert dealer.poll(int(DEADLINE_S * 1000)), "no answer"
        return decode_message(dealer.recv())
    finally:
        context.destroy(linger=0)


@contextlib.contextmanager
def stranger(pair: Pair):  # type: ignore[no-untyped-def]
    """Another source device; gives its programs by volume name, and its ring."""
    directory = pair.directory / "stranger"
    directory.mkdir()
    backing = directory / "disk"
    with backing.open("wb") as file:
        file.truncate(pair.size)
    with nbd_server(str(backing), directory, writes=1024) as (_, _, ring):
        yield (
            lambda volume: pair.source_with(volume=volume, chardev=ring, run_dir="other"),
            ring,
        )


def still_replicates(pair: Pair) -> None:
    """New writes arrive, in the same session."""
    sessions = pair.stack.log("v-reader").count("event=streaming")
    pair.scribble(random.Random(9), 50)
    pair.settle()
    assert pair.becomes_identical()
    assert pair.stack.log("v-reader").count("event=streaming") == sessions
