# SPDX-License-Identifier: GPL-2.0-only
"""Conflicts between settings that are valid individually. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bdr.common.host.kinds import path
from bdr.common.host.tables import (
    MAPPED_NAME,
    VOLUME_NAME,
    WITHOUT_JOURNAL,
    Host,
    Source,
    Volume,
)

_SOCKET_PATH_BYTES_MAX = 107
_LONGEST_SOCKET = "/descriptors.sock"
_COMMENT = re.compile(r"\s[;#]|\s$").search
"""Where supervisord's configuration ends a value; it has no quotes."""
_PATTERN = re.compile(r"[*?\[]").search
"""In the run directory: supervisord takes the place of its program files as a pattern."""


def problems(host: Host, volumes: Mapping[str, Volume]) -> list[str]:
    """One line for each conflict; a key is named as host.KEY or volume.NAME.KEY."""
    return [
        *_of_directories(host),
        *(problem for name in volumes for problem in _of_name(host, name)),
        *_of_sharing(volumes),
        *(problem for name, volume in volumes.items() for problem in _of_mapper(name, volume)),
    ]


def _of_directories(host: Host) -> Iterator[str]:
    """Directories that supervisord's configuration cannot name."""
    for key, found in (("run_dir", host.run_dir), ("log_dir", host.log_dir)):
        try:
            path().check(found)
        except ValueError:
            yield f"host.{key}: found {found!r}; wanted {path().wanted}"
        if _COMMENT(found):
            yield (
                f"host.{key}: found {found!r}; wanted a path without a blank at the end, or before "
                "a ; or #: supervisord would take the rest as a comment"
            )
    if _PATTERN(host.run_dir):
        yield (
            f"host.run_dir: found {host.run_dir!r}; wanted a path without *, ? and [: supervisord "
            "would take it as a pattern"
        )


def _of_name(host: Host, name: str) -> Iterator[str]:
    try:
        VOLUME_NAME.check(name)
    except ValueError:
        yield f"volume.{name}: found the name {name!r}; wanted {VOLUME_NAME.wanted}"
    path = f"{host.run_dir}/{name}{_LONGEST_SOCKET}".encode(errors="surrogateescape")
    if len(path) > _SOCKET_PATH_BYTES_MAX:
        yield (
            f"host.run_dir: found {host.run_dir!r}, which makes socket paths of "
            f"{len(path)} bytes for volume {name}; wanted at most {_SOCKET_PATH_BYTES_MAX}: "
            "choose a shorter directory"
        )


def _of_mapper(name: str, volume: Volume) -> Iterator[str]:
    """Settings that `bdr attach-all` could not use."""
    if not isinstance(volume, Source) or volume.mapper is None:
        return
    if volume.underdev is None:
        yield (
            f"volume.{name}.underdev: missing; wanted the device to put "
            f"/dev/mapper/{volume.mapper} before"
        )
    try:
        MAPPED_NAME.check(volume.chardev.removeprefix("/dev/"))
    except ValueError:
        yield (
            f"volume.{name}.chardev: found {volume.chardev!r}; wanted /dev/NAME, since mapper "
            "has the control device made there"
        )


def _of_sharing(volumes: Mapping[str, Volume]) -> Iterator[str]:
    """Values that two volumes of a host must not share."""
    owners: dict[tuple[str, object], str] = {}
    for name, volume in volumes.items():
        for kind, key, value in _exclusive(volume):
            own = f"volume.{name}.{key}"
            owner = owners.setdefault((kind, value), own)
            if owner != own:
                yield (
                    f"{own}: found {value!r}, which is also that of {owner}; wanted one of its "
                    "own for each volume"
                )


def _exclusive(volume: Volume) -> list[tuple[str, str, object]]:
    """(kind, key, value): within a kind, values are unique."""
    own: list[tuple[str, str, object]] = []
    if volume.metrics_port is not None:
        own.append(("metrics", "metrics_port", volume.metrics_port))
    if isinstance(volume, Source):
        paths = {
            "chardev": volume.chardev,
            "underdev": volume.underdev,
            "state": volume.state,
        }
        if volume.mapper is not None:
            paths["mapper"] = f"/dev/mapper/{volume.mapper}"
    else:
        own += [("port", "port", volume.port), ("port", "port + 1", volume.port + 1)]
        paths = {"target": volume.target, "state": volume.state}
        if volume.journal != WITHOUT_JOURNAL:
            paths["journal"] = volume.journal
    return own + [("file", key, path) for key, path in paths.items() if path is not None]
