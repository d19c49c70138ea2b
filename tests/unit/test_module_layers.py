# SPDX-License-Identifier: GPL-2.0-only
"""The kernel module's files have floors: each uses only those below it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

KERN = Path(__file__).parents[2] / "kern"
FILES = re.findall(r"(\w+)\.o", (KERN / "dm" / "Kbuild").read_text())[1:]
"""From the highest to the lowest, as Kbuild has them; the first object is the module."""

FLOORS = [*FILES, "compat"]
SHARED = {path.stem for path in (KERN / "include").glob("*.h")}


def included_by(path: Path) -> set[str]:
    return set(re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE)) - SHARED


def test_kbuild_names_every_file() -> None:
    assert sorted(FILES) == sorted(path.stem for path in (KERN / "dm").glob("*.c"))


@pytest.mark.parametrize("name", FILES)
def test_file_includes_only_headers_of_floors_below(name: str) -> None:
    below = set(FLOORS[FLOORS.index(name) + 1 :])
    assert included_by(KERN / "dm" / f"{name}.c") <= below | {name}
    header = KERN / "dm" / f"{name}.h"
    if header.exists():
        assert included_by(header) <= below


@pytest.mark.parametrize(
    "header", sorted((KERN / "include").glob("*.h")), ids=lambda path: path.stem
)
def test_shared_header_includes_only_shared_ones(header: Path) -> None:
    assert included_by(header) == set()


def test_sources_are_copied_as_kbuild_wants_them_and_moved_headers_removed(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    # What an older checkout has left, and what is not the module's at all.
    for stale in ("bdr_ring.h", "include/bdr_gone.h", "other.h"):
        (tmp_path / stale).write_text("#error found in place of the header that it was\n")
    command = ["make", "-s", "-C", str(KERN / "dm"), "sources", f"OUT={tmp_path}"]
    subprocess.run(command, check=True)

    expected = {
        path.name for pattern in ("*.[ch]", "Kbuild") for path in (KERN / "dm").glob(pattern)
    }
    expected |= {f"include/{path.name}" for path in (KERN / "include").glob("*.h")}
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == expected | {"other.h"}
