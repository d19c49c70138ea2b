# SPDX-License-Identifier: GPL-2.0-only
"""One volume with its source and its target, driven by tests.

The source is a file served by nbdkit with the plugin, and tests write to it over NBD;
a subclass may capture something else, see `Pair.captured`. The stages run under a
supervisord of the test's own.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from bdr.common.capture.api import Capture, CaptureStatus, Role
from bdr.common.capture.opening import open_capture
from bdr.common.host.programs import Program
from bdr.common.host.tables import Target
from bdr.services.cli.adopt import adopt
from deploy.command import SetupError, wait_for
from deploy.demo import free_port
from deploy.nbd_source import nbd_server
from deploy.stack import Stack, source_programs, target_programs
from tests.nbdkit.client import NbdClient

MIB = 1 << 20
BLOCK_BYTES = 4096
VOLUME = "v"
DEADLINE_S = 60.0
SMALL_JOURNAL = ("--journal-size", str(32 * MIB))


class Application(Protocol):
    """Writes to a captured device; each call returns when the device has done it."""

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """`flags` 1 is FUA."""
        ...

    def flush(self) -> None: ...

    def trim(self, offset: int, length: int) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...


class Pair:
    """Up while it is open; `start` starts the stages.

    Args:
        directory: for everything that it makes.
        size: of the source, in bytes.
        source: what is captured; a blank file of its own by default.
        target_size: of the target, if it differs.
        writes: capacity of the ring.
        senders: how many.
        applier_options: besides the necessary ones.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 64 * MIB,
        source: Path | None = None,
        target_size: int | None = None,
        writes: int = 8192,
        senders: int = 2,
        applier_options: Sequence[str] = SMALL_JOURNAL,
    ) -> None:
        self.directory = directory
        self.source = source or directory / "source"
        self.target = directory / "target"
        self.state = directory / "state"
        self.port = free_port()
        self.address = "127.0.0.1"
        """Where the source finds the target."""
        self.size = size
        self.target_program = self.target_with(options=applier_options)
        self.writes = writes
        self._senders = senders
        blank = {self.target: target_size or size} | ({} if source else {self.source: size})
        for path, bytes_ in blank.items():
            with path.open("wb") as file:
                file.truncate(bytes_)
        self._open = contextlib.ExitStack()

    def adopt(self) -> None:
        """Any source may overwrite what the target holds; before its applier starts."""
        target = Target(role="target", target=str(self.target))
        adopt(VOLUME, target, state=str(self.state))

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._captured = stack.enter_context(contextlib.ExitStack())
            self.stack = stack.enter_context(self.make_stack(self.directory / "run"))
            self._capture()
            stack.callback(self._close_capture)
            self._open = stack.pop_all()
        return self

    def _capture(self) -> None:
        self.ring, self.client = self._captured.enter_context(self.captured())
        self.capture: Capture = open_capture(self.ring, Role.OBSERVER)

    def _close_capture(self) -> None:
        self.capture.close()

    def make_stack(self, directory: Path) -> Stack:
        """What runs the stages."""
        return Stack(directory)

    def capture_anew(self) -> None:
        """Takes the capture away, and makes it anew in the same place; the stages stay."""
        self._close_capture()
        self._captured.close()
        self._capture()

    @contextlib.contextmanager
    def captured(self) -> Iterator[tuple[str, Application]]:
        """Captures the source: path of the ring, and who writes to it."""
        with (
            nbd_server(str(self.source), self.directory, writes=self.writes) as (_, nbd, ring),
            NbdClient(nbd) as client,
        ):
            self.nbd = nbd
            yield ring, client

    def __exit__(self, *_: object) -> None:
        self._open.close()

    # Stages.

    @property
    def source_programs(self) -> list[Program]:
        """Reader and senders."""
        return self.source_with()

    def source_with(
        self, *, volume: str = VOLUME, chardev: str | None = None, run_dir: str = "sockets"
    ) -> list[Program]:
        """Reader and senders, with something changed."""
        return source_programs(
            volume,
            chardev=chardev or self.ring,
            address=self.address,
            port=self.port,
            run_dir=self.directory / run_dir,
            senders=self._senders,
            assume_clean=True,
        )

    def target_with(
        self,
        *,
        volume: str = VOLUME,
        target: str | None = None,
        state: str = "state",
        options: Sequence[str] = (),
    ) -> Program:
        """An applier, with something changed."""
        (program,) = target_programs(
            volume,
            target=target or str(self.target),
            state=self.directory / state,
            address="127.0.0.1",
            port=self.port,
            options=options,
        )
        return program

    def start(self) -> None:
        """Starts applier, reader and senders."""
        self.stack.add([self.target_program, *self.source_programs])

    def stages(self) -> list[str]:
        """Names of the pair's programs."""
        return [program.name for program in (self.target_program, *self.source_programs)]

    def kill(self, name: str) -> None:
        """kill -9; supervisord starts it again."""
        pid = self.stack.pid(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: self.stack.pid(name) not in (0, pid),
            what=f"the restart of {name}",
            timeout_s=DEADLINE_S,
        )

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP, then SIGCONT."""
        pid = self.stack.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def ended_with(self, name: str) -> tuple[int, str]:
        """Waits for a program's end; returns its exit code and the line that says why."""
        wait_for(
            lambda: self.stack.pid(name) == 0 and "stopped" in self.stack.log(name),
            what=f"the end of {name}",
            timeout_s=DEADLINE_S,
        )
        (*_, line) = (x for x in self.stack.log(name).splitlines() if "event=stopped" in x)
        return self.stack.exit_code(name), line

    def wait_logged(self, name: str, text: str, *, times: int = 1) -> None:
        """Waits until a program has logged something."""
        wait_for(
            lambda: self.stack.log(name).count(text) >= times,
            what=f"{text!r} in the log of {name}",
            timeout_s=DEADLINE_S,
        )

    # Data.

    def status(self) -> CaptureStatus:
        """The capture's."""
        return self.capture.status()

    def settle(self) -> None:
        """Waits until everything written is durable on the target."""
        wait_for(
            lambda: self.status().tail == self.status().head,
            what="the replica's last batch",
            timeout_s=DEADLINE_S,
        )

    def scribble(self, rng: random.Random, count: int) -> None:
        """Writes of many sizes, zeroes, trims and flushes, all over the device."""
        for _ in range(count):
            sectors = rng.choice([1, 3, 8, 8, 8, 16, 64, 200])
            offset = rng.randrange(self.size // 512 - sectors) * 512
            kind = rng.random()
            if kind < 0.85:
                self.client.write(offset, rng.randbytes(512 * sectors), flags=rng.random() < 0.05)
            elif kind < 0.9:
                self.client.trim(offset, 512 * sectors)
            elif kind < 0.95:
                self.client.zero(offset, 512 * sectors)
            else:
                self.client.flush()

    def becomes_identical(self) -> bool:
        """Waits for the target to equal the source, over the source's size.

        What is durable may still be in the journal only: the device follows.
        """
        try:
            wait_for(self.is_identical, what="an identical target", timeout_s=20)
        except SetupError:
            print(f"differs in the MiB {self._first_difference()}; {self.status()}")
            return False
        return True

    def is_identical(self) -> bool:
        """Whether the target equals the source now, over the source's size."""
        return self._first_difference() is None

    def _first_difference(self) -> int | None:
        """The first MiB that differs."""
        with self.source.open("rb") as one, self.target.open("rb") as two:
            for at in range(-(-self.size // MIB)):
                block = one.read(MIB)
                if two.read(len(block)) != block:
                    return at
        return None
