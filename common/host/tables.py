# SPDX-License-Identifier: GPL-2.0-only
"""Every setting of BDR, declared once: the tables of bdr.toml. No I/O here.

Options of `bdr client`, `server`, `attach` and of the processes are derived from these
declarations, and docs/configuration.md is tested against them.
"""

from __future__ import annotations

import re
from typing import Literal

from bdr.common.host.keys import Key, key, table
from bdr.common.host.kinds import Kind, choice, command, path, seconds, size, switch, text, whole
from bdr.common.ring.layout import (
    CAPACITY_MAX,
    CAPACITY_MIN,
    JOURNAL_BYTES_MIN,
    REGION_SECTORS_DEFAULT,
    REGION_SECTORS_MAX,
    REGION_SECTORS_MIN,
    SLOT_BYTES,
)
from bdr.common.wire.codec import NAME_BYTES_MAX

WITHOUT_JOURNAL = "none"
"""The value of `journal` for a target without a journal."""

VOLUME_NAME = text(
    f"1 to {NAME_BYTES_MAX} letters, digits and dashes",
    re.compile(rf"[A-Za-z0-9-]{{1,{NAME_BYTES_MAX}}}").fullmatch,
)
MAPPED_NAME = text(
    "1 to 63 of a-z A-Z 0-9 - _ . with a letter or digit first",
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}").fullmatch,
)
"""A name under /dev, and in a device-mapper table."""

VOLUME = Key("volume", VOLUME_NAME, "Name of the volume; source and target must use the same one.")
"""Not a key of a table: it is the name of one."""

ROLE = choice("source", "target")
_ROLE = key(
    ROLE,
    'Whether this host has the device that is written to, "source", or its replica, "target".',
    accepted_by=("monitor",),
)


def _address(wanted: str) -> Kind:
    return text(wanted, lambda found: found.isprintable() and [found] == found.split())


# Keys that both roles have.

_PORT = key(
    whole(1, 65534),
    "The target's port for batches; the next port is for control messages.",
    default=8437,
    accepted_by=("reader", "sender", "scanner", "applier", "client", "server"),
)
_RPO_SECONDS = key(
    seconds(),
    "The volume counts as behind if the replica is more than this behind.",
    default=60.0,
    accepted_by=("monitor", "client", "server"),
)
_METRICS_ADDRESS = key(
    _address("an address of this host"),
    "Address of the Prometheus endpoint /metrics.",
    default="127.0.0.1",
    accepted_by=("monitor", "client", "server"),
)
_METRICS_PORT = key(
    whole(1, 65535, note=", another for each volume"),
    "Port of /metrics; not served if not set.",
    default=None,
    accepted_by=("monitor", "client", "server"),
)
_ON_EVENT = key(
    command(),
    "Command run on events of this volume, without a shell; facts are in its environment.",
    default=None,
    accepted_by=("monitor", "client", "server"),
)


@table
class Host:
    """The table [host]."""

    run_dir: str = key(path(), "Sockets and program files.", default="/run/bdr")
    state_dir: str = key(
        path(),
        "Persistent files: journals, states of both sides, the numbers of `bdr scale`.",
        default="/var/lib/bdr",
        accepted_by=("client", "server"),
    )
    log_dir: str = key(
        path(), "One log per process; rotated at 10 MB, five are kept.", default="/var/log/bdr"
    )
    log_format: Literal["text", "json"] = key(
        choice("text", "json"),
        'Format of log lines: "text" is logfmt, "json" is one object per line.',
        default="text",
        accepted_by=("reader", "sender", "scanner", "applier", "monitor", "client", "server"),
        variable="BDR_LOG_FORMAT",
    )
    log_level: Literal["debug", "info", "warning"] = key(
        choice("debug", "info", "warning"), "Lowest level that is logged.", default="info"
    )
    on_event: list[str] | None = key(
        command(), "Command run on events of volumes without their own.", default=None
    )


@table
class Source:
    """A table [volume.NAME] with role = "source"."""

    role: Literal["source"] = _ROLE
    address: str = key(
        _address("a host name or address"),
        "The target host's name or address; each address of a name is tried.",
        accepted_by=("reader", "sender", "scanner", "client"),
    )
    port: int = _PORT
    chardev: str = key(
        path(),
        "Control device of the bdr target (/dev/NAME), or ring= socket of the nbdkit plugin.",
        accepted_by=("reader", "sender", "scanner", "monitor", "client"),
    )
    underdev: str | None = key(
        path(),
        "The underlying device; must be that of the capture.",
        default=None,
        fallback="that of the capture",
        accepted_by=("scanner", "client"),
    )
    mapper: str | None = key(
        MAPPED_NAME,
        "`bdr attach-all` creates /dev/mapper/MAPPER over `underdev`; without it, attach by hand.",
        default=None,
    )
    buffer_writes: int = key(
        whole(CAPACITY_MIN, CAPACITY_MAX),
        f"Capacity of the ring when it is attached, in writes of {SLOT_BYTES} bytes.",
        default=65536,
    )
    region_sectors: int = key(
        whole(REGION_SECTORS_MIN, REGION_SECTORS_MAX, is_power_of_two=True),
        "Sectors per bit of the dirty bitmap.",
        default=REGION_SECTORS_DEFAULT,
        accepted_by=("attach",),
    )
    stable: Literal["copy", "hint"] = key(
        choice("copy", "hint"),
        'How ring and disk are kept equal: "copy" writes the copy, "hint" requests stable pages.',
        default="copy",
        accepted_by=("attach",),
    )
    discard: Literal["zero", "pass"] = key(
        choice("zero", "pass"),
        'How a discard is passed to the underlying device: "zero" as write-zeroes, "pass" as is '
        "(thin volumes only).",
        default="zero",
        accepted_by=("attach",),
    )
    senders: int = key(
        whole(1, 64), "Processes that send batches, one connection each.", default=1,
        accepted_by=("client",),
    )  # fmt: skip
    scanners: int = key(
        whole(1, 16), "Processes that compare and repair.", default=1, accepted_by=("client",)
    )
    scan_rate: int | None = key(
        size("1 MiB", example="200MiB"),
        "Maximum bytes per second that all scanners compare together.",
        default=None,
        fallback="unlimited",
        accepted_by=("reader", "client"),
    )
    assume_clean: bool = key(
        switch(),
        "The operator asserts that source and target are equal: no scan at first contact.",
        default=False,
        accepted_by=("reader", "client"),
        aliases=("--noreplication", "--no-replication"),
    )
    state: str | None = key(
        path(),
        "File that remembers the source's id, generations, and what verifications found.",
        default=None,
        fallback="STATE_DIR/NAME.source",
        accepted_by=("reader", "client"),
    )
    rpo_seconds: float = _RPO_SECONDS
    metrics_address: str = _METRICS_ADDRESS
    metrics_port: int | None = _METRICS_PORT
    on_event: list[str] | None = _ON_EVENT


@table
class Target:
    """A table [volume.NAME] with role = "target"."""

    role: Literal["target"] = _ROLE
    address: str = key(
        _address("an address of this host, or *"),
        "Address to listen on; * is every one.",
        default="*",
        accepted_by=("applier", "server"),
    )
    port: int = _PORT
    target: str = key(
        path(), "The replica's device, or a file of its size.", accepted_by=("applier", "server")
    )
    journal: str | None = key(
        path(WITHOUT_JOURNAL),
        'File or device of the write-ahead journal, or "none".',
        default=None,
        fallback="a file next to the state",
        accepted_by=("applier", "server"),
    )
    journal_size: int | None = key(
        size(f"{JOURNAL_BYTES_MIN >> 20} MiB", example="1GiB"),
        "Size of the journal.",
        default=None,
        fallback="the present size, 1 GiB for a new file",
        accepted_by=("applier", "server"),
    )
    state: str | None = key(
        path(),
        "The replica's state file.",
        default=None,
        fallback="STATE_DIR/NAME.state",
        accepted_by=("applier", "server"),
    )
    before_resync: list[str] | None = key(
        command(),
        "Command run, without a shell, before a usable replica is made inconsistent or compared "
        "as a whole, such as a snapshot of its device.",
        default=None,
        accepted_by=("applier", "server"),
    )
    before_resync_seconds: float = key(
        seconds(),
        "`before_resync` is killed after this time, and has failed.",
        default=60.0,
        accepted_by=("applier", "server"),
    )
    before_resync_failure: Literal["hold", "proceed"] = key(
        choice("hold", "proceed"),
        'When `before_resync` fails: "hold" keeps the replica as it is, and runs it again; '
        '"proceed" goes on without.',
        default="hold",
        accepted_by=("applier", "server"),
    )
    rpo_seconds: float = _RPO_SECONDS
    metrics_address: str = _METRICS_ADDRESS
    metrics_port: int | None = _METRICS_PORT
    on_event: list[str] | None = _ON_EVENT


Volume = Source | Target
TABLES: dict[str, type[Source] | type[Target]] = {"source": Source, "target": Target}
"""Of a volume, by its role."""
