# SPDX-License-Identifier: GPL-2.0-only
"""Files and directories of a host: those shipped with BDR, and those that it writes."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from bdr.common.errors import UsageError


def shipped(name: str) -> Path:
    """A file shipped with BDR: in the checkout, or in the installation's data directory."""
    checkout = Path(__file__).resolve().parents[2] / name
    if checkout.exists():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "bdr" / Path(name).name


def make_directory(path: Path, *, mode: int) -> None:
    """Creates a directory that this user can write to.

    Raises:
        UsageError: it cannot be created or written to.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"directory {path}: {error.strerror}; wanted one that this user can make: run as "
            "root, or name another"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(
            f"directory {path}: found it not writable; wanted one that this user may write to"
        )


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; wanted a file that this user may write"
        ) from error
