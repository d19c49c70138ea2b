# SPDX-License-Identifier: GPL-2.0-only
"""A file holds one concept: it has a limit, and a pure module has a lower one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_import_rules import MODULES, ROOT, is_pure, name_of

LINES_MAX = 500
PURE_LINES_MAX = 300
FOLDERS = ("common", "services", "deploy", "tests")


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("folder", FOLDERS)
def test_python_file_is_within_the_limit(folder: str) -> None:
    sizes = {
        str(path.relative_to(ROOT)): line_count(path) for path in (ROOT / folder).rglob("*.py")
    }
    assert sizes
    assert {name: lines for name, lines in sizes.items() if lines > LINES_MAX} == {}


def test_pure_module_is_within_its_limit() -> None:
    sizes = {name_of(path): line_count(path) for path in MODULES if is_pure(name_of(path))}
    assert sizes
    assert {name: lines for name, lines in sizes.items() if lines > PURE_LINES_MAX} == {}
