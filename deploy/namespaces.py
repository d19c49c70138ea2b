# SPDX-License-Identifier: GPL-2.0-only
"""Two network namespaces, connected by a veth pair: a source host and a target host."""

from __future__ import annotations

import contextlib
import os
from typing import Self

from deploy.command import SetupError, run

_SOURCE_ADDRESS, _TARGET_ADDRESS = "10.213.7.1", "10.213.7.2"


class Namespaces:
    """Exist for the duration of the `with` block.

    Attributes:
        address: where the target listens.
        names: of the source host's, and of the target host's.
        source: words that run a command on the source host.
        target: words that run a command on the target host.
    """

    def __init__(self) -> None:
        self.address = _TARGET_ADDRESS
        self.names = [f"bdr-{side}-{os.getpid()}" for side in ("source", "target")]
        # `ip netns exec` would copy every mount: a device mounted in such a copy is busy.
        self.source, self.target = (["nsenter", f"--net=/run/netns/{name}"] for name in self.names)

    def __enter__(self) -> Self:
        try:
            for name in self.names:
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            source, target = self.names
            run(
                "ip", "link", "add", "cable", "netns", source,
                "type", "veth", "peer", "name", "cable", "netns", target,
            )  # fmt: skip
            for name, address in zip(self.names, (_SOURCE_ADDRESS, _TARGET_ADDRESS), strict=True):
                run("ip", "-n", name, "address", "add", f"{address}/30", "dev", "cable")
                run("ip", "-n", name, "link", "set", "cable", "up")
        except SetupError:
            self.__exit__(None, None, None)
            raise
        return self

    def disconnect(self) -> None:
        """Takes the link between the hosts down, and leaves it down."""
        run("ip", "-n", self.names[0], "link", "set", "cable", "down")

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            with contextlib.suppress(SetupError):
                run("ip", "netns", "delete", name)
